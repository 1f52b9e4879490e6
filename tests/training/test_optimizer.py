"""How learning rates go, and optimisers under every precision."""

import pytest
from torch import nn

from audioldm2_pl.training.optimizer import OptimizerConfig, learning_rate_factor, make_optimizer
from audioldm2_pl.training.run import train


def test_linear_decay_goes_to_zero_in_equal_steps():
    config = OptimizerConfig(warmup_batches=2, decay="linear")
    factors = [learning_rate_factor(config, i, 6) for i in range(7)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert learning_rate_factor(OptimizerConfig(decay="linear"), 5, 10) == 0.5


@pytest.mark.parametrize("stage", ["audiomae", "vae"])
def test_bfloat16_goes_with_gradient_clipping(smoke, tmp_path, stage):
    """On CPUs, with Lightning's clipping and the adversarial stages' own."""
    experiment = smoke("trainer.precision=bf16-mixed", f"training.{stage}.gradient_clip=1", runs=tmp_path)
    train(experiment, stage)
    assert (experiment.model_folder / stage).is_dir()


def test_only_scaled_gradients_go_without_the_fused_optimiser():
    groups = {1e-3: list(nn.Linear(2, 2).parameters())}
    assert make_optimizer(groups, OptimizerConfig()).defaults["fused"]
    assert not make_optimizer(groups, OptimizerConfig(), scales_gradients=True).defaults["fused"]
