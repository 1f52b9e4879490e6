"""Training an adapter: low-rank weights alone over a base that stays as it is."""

import json
import re
from pathlib import Path

import pytest
import torch
from breaking import break_off
from safetensors.torch import load_file

from audioldm2_pl.cli import main
from audioldm2_pl.errors import UserError
from audioldm2_pl.models.adapters import CONFIG_NAME, WEIGHTS_NAME
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.training.run import train
from evaluation.report.bench import Bench, ReportOptions

ALL = ("clap", "t5", "vae", "vocoder", "audiomae", "unet", "gpt2")
PARTS = {"ldm": {"unet"}, "gpt2": {"language_model"}, "joint": {"unet", "language_model"}}


def adapting(smoke, smoke_run, tmp_path: Path, name: str, *overrides: str):
    """A smoke experiment that trains an adapter of the smoke run's model."""
    sources = ", ".join(f"{part}: {smoke_run.model_folder}" for part in ALL)
    return smoke(
        f"name={name}", "stages=[joint]", "adapter={rank: 4}", f"from={{{sources}}}", *overrides, runs=tmp_path
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def adapted(smoke, smoke_run, tmp_path_factory):
    """A run that has trained an adapter in the stage `joint`, and the base's files before it."""
    before = files(smoke_run.model_folder)
    recipe = "training.joint={ema_decay: null, optimizer: {learning_rate: 0.5, warmup_batches: 0}}"  # it is heard
    experiment = adapting(smoke, smoke_run, tmp_path_factory.mktemp("runs"), "adapted", recipe)
    train(experiment)
    return experiment, before


def test_the_base_is_linked_and_stays_as_it_is(adapted, smoke_run):
    experiment, before = adapted
    assert files(smoke_run.model_folder) == before
    copies = [path for path in experiment.run_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    weights = [path for path in copies if path.suffix in (".safetensors", ".bin", ".ckpt")]
    assert weights and all(path.is_relative_to(experiment.adapter_folder) for path in weights)


def test_the_adapter_holds_low_rank_weights_and_names_its_base(adapted, smoke_run):
    folder = adapted[0].adapter_folder
    expected = {f"{part}/{name}" for part in PARTS["joint"] for name in (WEIGHTS_NAME, CONFIG_NAME)}
    assert set(files(folder)) == expected
    for part in PARTS["joint"]:
        weights = load_file(folder / part / WEIGHTS_NAME)
        assert all(re.search(r"\.lora_[AB]\.weight$", name) for name in weights)
        assert all(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)  # it has learnt
        config = json.loads((folder / part / CONFIG_NAME).read_text())
        assert (config["r"], config["base_model_name_or_path"]) == (4, str(smoke_run.model_folder))


def test_generation_at_strength_0_is_the_bases(adapted, smoke_run):
    def generate(adapters: dict[str, float]) -> torch.Tensor:
        model = AudioLDM2.from_pretrained(smoke_run.model_folder, adapters=adapters)
        return model.generate("a bell", num_steps=2)

    base, path = generate({}), str(adapted[0].adapter_folder)
    assert torch.equal(generate({path: 0.0}), base)
    assert not torch.equal(generate({path: 1.0}), base)
    assert not torch.equal(generate({path: 1.0}), generate({f"{path}/unet": 1.0}))  # GPT-2's has an effect


def test_the_command_line_takes_several(adapted, smoke_run, tmp_path, capsys):
    path = adapted[0].adapter_folder
    command = ["generate", str(smoke_run.model_folder), "a bell", "--steps", "2", "--device", "cpu"]
    given = ["--adapter", f"{path}/unet:0.5", "--adapter", f"{path}/language_model/{WEIGHTS_NAME}"]
    assert main([*command, *given, "--output", str(tmp_path / "with")]) == 0
    assert main([*command, "--output", str(tmp_path / "without")]) == 0
    assert "warning" not in capsys.readouterr().err
    assert files(tmp_path / "with") != files(tmp_path / "without")
    assert main([*command, "--adapter", f"{path}:11"]) == 2
    assert "from 0 to 10" in capsys.readouterr().err


@pytest.mark.parametrize("stage", PARTS)
def test_resumed_is_unbroken(stage, smoke, smoke_run, tmp_path, monkeypatch):
    overrides = (f"stages=[{stage}]", f"training.{stage}={{batches: 6, save_every_batches: 2, ema_decay: 0.9}}",
                 "adapter.dropout=0.3", "trainer.sample_every_batches=3", "trainer.sample_clips=1")  # fmt: skip
    straight = adapting(smoke, smoke_run, tmp_path, "straight", *overrides)
    train(straight)
    broken = adapting(smoke, smoke_run, tmp_path, "broken", *overrides)
    break_off(broken, stage, 5, monkeypatch)
    checkpoint = torch.load(broken.run_folder / f"checkpoints/{stage}.ckpt", weights_only=True)
    assert checkpoint["state_dict"] and all(".lora_" in name for name in checkpoint["state_dict"])
    assert all(".lora_" in name for name in checkpoint["callbacks"]["EMA"]["average"])
    assert all(".lora_" in name for name in checkpoint["parameter_names"][0])
    train(broken)
    assert {path.name for path in straight.adapter_folder.iterdir()} == PARTS[stage]
    assert files(broken.adapter_folder) == files(straight.adapter_folder)
    assert list((straight.run_folder / "samples" / stage).glob("*.wav"))


def test_stages_go_on_from_each_other_and_are_rewound(smoke, smoke_run, tmp_path):
    experiment = adapting(smoke, smoke_run, tmp_path, "chain", "stages=[ldm, joint]")
    train(experiment, "ldm")
    first = files(experiment.adapter_folder)
    train(experiment)
    both = files(experiment.adapter_folder)
    assert both[f"unet/{WEIGHTS_NAME}"] != first[f"unet/{WEIGHTS_NAME}"]
    alone = adapting(smoke, smoke_run, tmp_path, "alone")
    train(alone)
    assert files(alone.adapter_folder)[f"unet/{WEIGHTS_NAME}"] != both[f"unet/{WEIGHTS_NAME}"]
    (experiment.run_folder / "stages/ldm.json").unlink()
    train(experiment, "ldm")  # undoes joint
    assert files(experiment.adapter_folder)[f"unet/{WEIGHTS_NAME}"] == first[f"unet/{WEIGHTS_NAME}"]
    train(experiment)
    assert files(experiment.adapter_folder) == both


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["from.unet=null"], "nothing to adapt.*start_from: {unet"),
        (["adapter.networks=[gpt2]", "stages=[ldm]", "from.unet=null"], "ldm trains none of adapter.networks"),
        (["stages=[vae]", "from.vae=null"], "vae trains none"),
        (["from.t5=null"], "would train t5"),
        (["adapter.rank=17"], "adapter.rank=17 is above the width 16 that unet.block_out_channels gives"),
        (["adapter.rank=0"], "adapter.rank=0"),
        (["adapter.targets=[attention, mlp]"], "feed_forward"),
        (["adapter.targets=[]"], "adapter.targets is empty"),
        (["adapter.rnak=2"], "'rank'"),
        (["name=smoke"], "another `name`"),
    ],
)
def test_what_cannot_be_adapted_is_refused_at_once(overrides, message, smoke, smoke_run, tmp_path):
    with pytest.raises(UserError, match=message):
        adapting(smoke, smoke_run, smoke_run.run_folder.parent, "refused", *overrides)


def test_an_adapter_that_does_not_fit_the_base_is_one_line(adapted, smoke_run, tmp_path, capsys):
    folder = adapted[0].adapter_folder
    other = tmp_path / "unet"
    other.mkdir()
    config = json.loads((folder / "unet" / CONFIG_NAME).read_text())
    (other / CONFIG_NAME).write_text(json.dumps(config | {"r": 8}))
    (other / WEIGHTS_NAME).write_bytes((folder / "unet" / WEIGHTS_NAME).read_bytes())
    assert main(["generate", str(smoke_run.model_folder), "a bell", "--adapter", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "ask for" in said


def test_a_report_is_of_the_base_with_the_adapter(adapted):
    bench = Bench(adapted[0], ReportOptions())
    assert bench.generator.model.adapters == {str(adapted[0].adapter_folder): 1.0}


def test_describe_counts_what_trains(capsys):
    smoke = str(Path(__file__).parents[2] / "experiments/smoke.yaml")
    arguments = ["stages=[joint]", "adapter={rank: 4}", f"from={{{', '.join(f'{part}: x' for part in ALL)}}}"]
    assert main(["describe", smoke, *arguments]) == 0
    assert re.search(r"adapter in joint +0\.0[1-9] M", capsys.readouterr().out)
