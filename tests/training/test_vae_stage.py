"""Stage `vae`: learns, steps the right network, joins the discriminator on time, measures the scaling factor."""

from itertools import islice

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from audioldm2_pl.audio import AudioConfig, LogMel
from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.discriminators import PatchGANConfig
from audioldm2_pl.models.vae import VAEConfig, build_vae, latent_of
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.vae import VAETraining, VAETrainingConfig


def tones() -> dict:
    """Four clips of 0.32 s."""
    time = torch.arange(5120) / 16_000
    pitches = torch.tensor([[150.0], [400.0], [1000.0], [3000.0]])
    return {"waveform": 0.5 * torch.sin(2 * torch.pi * pitches * time), "key": list("abcd")}


class Repeated(L.LightningDataModule):
    """The same batch, over and over."""

    def __init__(self, num_batches: int):
        super().__init__()
        self.num_batches = num_batches

    def train_dataloader(self) -> DataLoader:
        return DataLoader([tones() for _ in range(self.num_batches)], batch_size=None)  # type: ignore[arg-type]


VAE = VAEConfig(block_out_channels=[8, 16, 16], layers_per_block=1, norm_num_groups=8)


def build(**settings) -> VAETraining:
    torch.manual_seed(0)
    optimizer = OptimizerConfig(name="adam", learning_rate=3e-3, betas=(0.5, 0.9))
    recipe = VAETrainingConfig(optimizer=optimizer, discriminator=PatchGANConfig(base_channels=4), **settings)
    return VAETraining(recipe, build_vae(VAE), LogMel(AudioConfig()))


def fit(stage: VAETraining, num_batches: int) -> VAETraining:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(stage, Repeated(num_batches))
    return stage


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def test_overfits_one_batch():
    stage = build()
    before = stage.losses(tones())["reconstruction"].item()
    fit(stage, 50)
    assert stage.losses(tones())["reconstruction"].item() < 0.5 * before


def test_default_weights_keep_the_authors_ratio():
    stage = build()
    log_mel, reconstruction, posterior = stage.reconstruct(tones()["waveform"])
    terms = stage.generator_terms(log_mel, reconstruction, posterior)
    authors = (reconstruction - log_mel).abs().mean() * 1024 * 64 + 1000 * 0.5 * torch.mean(
        posterior.mean**2 + posterior.var - 1 - posterior.logvar
    )
    torch.testing.assert_close(stage.total(terms) * 1024 * 64, authors)


def test_discriminator_joins_on_time():
    stage = build(discriminator_start=2)
    calls = []
    stage.discriminator.register_forward_hook(lambda *_: calls.append(1))
    before = weights(stage.discriminator)
    fit(stage, 2)
    assert not calls and torch.equal(weights(stage.discriminator), before)
    assert set(stage.losses(tones())) == {"reconstruction", "kl"}
    fit(stage, 3)
    assert len(calls) == 3 and not torch.equal(weights(stage.discriminator), before)
    assert set(stage.losses(tones())) == {"reconstruction", "kl", "adversarial", "discriminator"}


def test_each_step_moves_its_own_network():
    stage = build(discriminator_start=0)
    seen = []

    def update(optimizer, loss, batch_idx):
        stage.zero_grad()
        loss.backward()
        seen.append({n for n, p in stage.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0})
        assert all(p.grad is None or p.grad.isfinite().all() for p in stage.parameters())

    stage.update = update
    stage.optimizers = lambda: (None, None)
    stage.log_terms = lambda *_: None
    stage.training_step(tones(), 0)
    discriminator_step, generator_step = seen
    assert discriminator_step and all(name.startswith("discriminator.") for name in discriminator_step)
    assert all(name.startswith("vae.") for name in generator_step)
    assert generator_step == {f"vae.{name}" for name, _ in stage.vae.named_parameters()}
    assert all(p.requires_grad for p in stage.parameters())


def test_adaptive_weight_balances_the_gradients_at_the_last_layer():
    stage = build(discriminator_start=0)
    stage.adversarial = True
    terms = stage.generator_terms(*stage.reconstruct(tones()["waveform"]))
    scaled = {**terms, "adversarial": terms["adversarial"] * stage.adversarial_scale(terms)}
    last_layer = stage.vae.decoder.conv_out.weight
    norms = [
        torch.autograd.grad(scaled[name], last_layer, retain_graph=True)[0].norm().item()
        for name in ("reconstruction", "adversarial")
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_accumulation_steps_once_for_several_batches():
    stage = build(accumulate_batches=3)
    before = weights(stage.vae)
    fit(stage, 2)
    assert torch.equal(weights(stage.vae), before)
    fit(stage, 3)
    assert not torch.equal(weights(stage.vae), before)


def test_finish_measures_the_scaling_factor_on_the_first_clips_wherever_training_is(smoke_run):
    stage = fit(build(scaling_batches=3), 4)
    data = AudioShards(smoke_run.data, smoke_run.audio, seed=0, batch_size=4)
    waveforms = [batch["waveform"] for batch in islice(data.first_clips(), 3)]
    factors = []
    for start in (0, 8):  # as a run that was resumed
        data.start = start
        stage.finish(data)
        factors.append(stage.parts()["vae"].config["scaling_factor"])
    assert factors[0] == factors[1] != VAE.scaling_factor
    log_mel = stage.log_mel(torch.cat(waveforms))
    latents = torch.cat([latent_of(stage.vae, log_mel) for _ in range(8)])
    assert latents.std().item() == pytest.approx(1.0, abs=0.02)


def test_goes_on_from_given_weights(tmp_path):
    given = build_vae(VAE)
    folder = ModelFolder(tmp_path, started={"vae": "elsewhere"})
    folder.save("vae", given)
    again = VAETraining.build(ExperimentConfig(vae=VAE), folder)
    assert torch.equal(weights(again.vae), weights(given)) and all(p.requires_grad for p in again.vae.parameters())
