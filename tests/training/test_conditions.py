"""What stages are conditioned on: any list of conditions trains; conditioners train unless they are given."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.config import STAGES, load_experiment
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import loa_lengths
from audioldm2_pl.models.diffusion import DiffusionConfig
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.seeds import SharedRandom
from audioldm2_pl.training.conditions import draw_dropped, drop_conditions, encode_conditions
from audioldm2_pl.training.gpt2 import loa_distance, prompts_of
from audioldm2_pl.training.ldm import draw_dropped_clips
from audioldm2_pl.training.run import train
from data.shards import Clip, write_shards

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY_PHONEMES = "conditioners.phonemes={hidden_size: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, max_length: 40}"
# YAML -> what its T-UNet and its GPT-2 read, and the parts that it must not have
SYSTEMS = {
    "ablations/gpt2_without_clap.yaml": (["loa", "t5"], None, ["t5"]),
    "ablations/gpt2_without_t5.yaml": (["loa", "t5"], None, ["clap"]),
    "ablations/unet_without_t5.yaml": (["loa"], None, ["clap", "t5"]),
    "audioldm1.yaml": ([], "clap", []),
    "tango.yaml": (["t5"], None, []),
    "make_an_audio.yaml": (["clap"], None, []),
    "universal.yaml": (["loa", "t5"], None, ["clap", "t5", "phonemes"]),
}


def test_universal_system_has_a_length_of_loa_for_each_task(smoke, smoke_run, tmp_path):
    """Speech has more vectors than other sounds: in training, with both in a batch, in generation and in editing."""
    pytest.importorskip("phonemizer")
    noise = 0.1 * np.random.default_rng(0).standard_normal((4, 40_960))
    said = [(["a bell"], None), (None, "Hello."), (["rain"], None), (None, "No.")]
    clips = [
        Clip(f"{i}", captions=captions, waveform=noise[i], transcript=text) for i, (captions, text) in enumerate(said)
    ]
    write_shards(iter(clips), tmp_path / "train", num_workers=1)
    given = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "vae", "vocoder", "audiomae")]
    experiment = smoke(
        *overrides_of(EXPERIMENTS / "universal.yaml"), *given, "audiomae.speech_pooling=2", "gpt2.num_positions=512",
        f"data.train=[{tmp_path}/train]", "data.test=null", "training.gpt2.batch_size=4", "training.joint.batch_size=4",
        "training.gpt2.cache_features=true", runs=tmp_path / "runs",
    )  # fmt: skip
    train(experiment)
    model = AudioLDM2.from_pretrained(experiment.model_folder)
    lengths = [model.loa_generator.num_vectors(speaks) for speaks in (False, True)]
    assert lengths[1] > lengths[0] and lengths == list(loa_lengths(experiment.audiomae))
    heard = torch.randn(1, 40_960) * 0.1
    assert [model.loa_of(heard, speaks).shape[1] for speaks in (False, True)] == lengths
    steps = []
    both = model.generate(["a bell", ""], transcript=[None, "Hello."], num_steps=2, seed=1,
                          progress=lambda step, num_steps: steps.append((step, num_steps)))  # fmt: skip
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    alone = model.generate("", transcript="Hello.", num_steps=2, seed=2)
    torch.testing.assert_close(both[1], alone[0], atol=1e-3, rtol=0)
    for transcript in (None, "Yes."):
        edited, _ = model.edit(heard, "", transcript=transcript, extend=1.28, num_steps=2)
        assert edited.shape[1] == 61_440


def test_each_clip_weighs_the_same_whatever_the_length_of_its_loa(smoke, smoke_run):
    stage = stage_of(smoke_run, "gpt2").eval()
    encoder = stage.frozen["audio_encoder"]
    batch = {"text": ["a bell", "rain", ""], "transcript": ["", "", "Hello."], "waveform": 0.1 * torch.randn(3, 40_960)}
    batch |= {"key": list("abc"), "id": list("abc"), "sample_rate": 16_000}
    with torch.no_grad():
        whole = stage.losses(batch)["loa"]
        encoder.speech_pooling = encoder.pooling
        torch.testing.assert_close(stage.losses(batch)["loa"], whole)
        encoder.speech_pooling = encoder.pooling // 2
        mixed = stage.losses(batch)["loa"]
        rows = [slice(0, 2), slice(2, 3)]
        parts = [stage.losses({k: v if k == "sample_rate" else v[r] for k, v in batch.items()})["loa"] for r in rows]
    torch.testing.assert_close(mixed, (2 * parts[0] + parts[1]) / 3)


STOCK = ("ablations/unet_without_t5.yaml", "audioldm1.yaml")


def own_settings(path: Path) -> dict:
    """What a YAML says of conditions itself, as smoke overrides."""
    content = yaml.safe_load(path.read_text())
    return {key: content[key] for key in ("conditioners", "gpt2", "unet", "stages") if key in content}


def overrides_of(path: Path) -> list[str]:
    settings, lines = own_settings(path), []
    for section in ("gpt2", "unet"):
        lines += [f"{section}.{key}={yaml.safe_dump(value, default_flow_style=True).strip().splitlines()[0]}"
                  for key, value in settings.get(section, {}).items()]  # fmt: skip
    for name, config in settings.get("conditioners", {}).items():
        if name == "phonemes":
            lines.append(TINY_PHONEMES)
        elif config is not None:
            lines += [f"conditioners.{name}.{key}={value}" for key, value in config.items()]
    stages = settings.get("stages", ["ldm", "gpt2", "joint"])
    return [*lines, f"stages=[{','.join(stage for stage in stages if stage in ('ldm', 'gpt2', 'joint'))}]"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_list_of_conditions_trains_and_generates(name, smoke, smoke_run, tmp_path):
    path = EXPERIMENTS / name
    reads_loa = "loa" in SYSTEMS[name][0]
    parts = ("clap", "vae", "vocoder", *(("audiomae",) if reads_loa else ()))
    given = [f"from.{part}={smoke_run.model_folder}" for part in parts]
    experiment = smoke(*overrides_of(path), *given, runs=tmp_path)
    train(experiment)
    folder = ModelFolder(experiment.model_folder)
    unet, film, gpt2 = SYSTEMS[name]
    assert folder.conditions() == (unet, film, gpt2)
    assert folder.opens_in_diffusers == (name in STOCK)
    assert folder.has("language_model") == folder.has("audiomae") == bool(gpt2)
    model = AudioLDM2.from_pretrained(experiment.model_folder)
    needed = model.needs_transcript  # beside T5, which tells of other sounds, speech is optional
    assert model.reads_transcripts == ("phonemes" in gpt2) and needed == (model.reads_transcripts and "t5" not in gpt2)
    transcript = {"transcript": "Hello."} if needed else {}
    if model.reads_transcripts and not needed:
        spoken, silent = model.generate(["", "a bell"], transcript=["Hello.", None], num_steps=2, seed=[1, 1])
        torch.testing.assert_close(silent, model.generate("a bell", num_steps=2, seed=1)[0], atol=1e-3, rtol=0)
        assert not torch.equal(spoken, silent)
    waveform = model.generate("a bell rings", num_steps=2, seed=1, **transcript)
    assert waveform.shape == (1, 40_960) and waveform.isfinite().all()
    assert torch.equal(waveform, model.generate("a bell rings", num_steps=2, seed=1, **transcript))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "audioldm1.yaml"])
def test_a_system_is_ten_lines_of_yaml(name):
    lines = (EXPERIMENTS / name).read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 10
    experiment = load_experiment(EXPERIMENTS / name)
    assert (experiment.unet.conditions, experiment.unet.film) == SYSTEMS[name][:2]


def t5_weights(experiment) -> dict[str, torch.Tensor]:
    return load_file(experiment.model_folder / "text_encoder_2" / "model.safetensors")


def stage_of(experiment, name: str):
    return STAGES[name].build(experiment, ModelFolder(experiment.model_folder))


@pytest.mark.parametrize("name", ["ldm", "gpt2", "joint"])
def test_a_new_t5_trains_and_is_written(name, smoke_run):
    stage = stage_of(smoke_run, name)
    assert "t5" not in stage.frozen and all(p.requires_grad for p in stage.network("t5").parameters())
    assert stage.parts()["text_encoder_2"] is stage.t5.model


def test_gpt2_continues_the_t5_of_the_ldm_stage(smoke, tmp_path):
    experiment = smoke("stages=[clap,audiomae,vae,ldm]", runs=tmp_path)
    train(experiment)
    before = t5_weights(experiment)
    stage = stage_of(experiment, "gpt2")
    assert torch.equal(stage.t5.model.state_dict()["shared.weight"], before["shared.weight"])

    train(experiment, "gpt2")
    assert any(not torch.equal(weight, before[key]) for key, weight in t5_weights(experiment).items())


@pytest.mark.parametrize("name", ["ldm", "gpt2", "joint"])
def test_a_given_t5_stays_as_it_is(name, smoke, smoke_run, tmp_path):
    parts = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "t5", "audiomae", "vae", "unet", "gpt2")]
    experiment = smoke(*parts, runs=tmp_path)
    folder = ModelFolder(experiment.model_folder, experiment.from_)
    folder.take_given()
    stage = STAGES[name].build(experiment, folder)
    assert not hasattr(stage, "t5") and stage.network("t5") is stage.frozen["t5"]
    assert "text_encoder_2" not in stage.parts()


@pytest.mark.parametrize("unit", ["batch", "sample", "condition"])
def test_conditions_are_dropped_by_batch_clip_or_each(unit):
    config = DiffusionConfig(condition_dropout=0.3, dropout_unit=unit)
    draws = [draw_dropped(config, ["loa", "t5"], 400, SharedRandom(seed)) for seed in range(50)]
    rows = torch.stack([torch.stack(list(dropped.values())) for dropped in draws]).float()  # (draws, 2, 400)
    assert rows.mean().item() == pytest.approx(0.3, abs=0.15 if unit == "batch" else 0.02)
    assert (rows.std(2).max() == 0) == (unit == "batch")
    assert torch.equal(rows[:, 0], rows[:, 1]) == (unit != "condition")


@pytest.mark.parametrize("unit", ["batch", "sample"])
def test_one_condition_is_dropped_besides(unit):
    config = DiffusionConfig(condition_dropout=0.2, dropout_unit=unit, dropout_alone={"t5": 0.3, "clap": 0.5})
    draws = [draw_dropped(config, ["loa", "t5"], 400, SharedRandom(seed)) for seed in range(100)]
    assert all(set(dropped) == {"loa", "t5"} for dropped in draws)
    loa, text = (torch.cat([dropped[name] for dropped in draws]).float() for name in ("loa", "t5"))
    assert (text >= loa).all() and text[loa == 0].mean().item() == pytest.approx(0.3, abs=0.02)
    without = [draw_dropped(replace(config, dropout_alone={}), ["loa"], 400, SharedRandom(seed)) for seed in range(100)]
    assert torch.equal(loa, torch.cat([dropped["loa"] for dropped in without]).float())


def test_gpt2_learns_to_go_on_without_a_text(smoke_run):
    """With every clip's conditions dropped, GPT-2 reads the empty ones in training and the clip's in validation."""
    stage = stage_of(smoke_run, "gpt2")
    batch = {"text": ["a bell", "rain"], "transcript": ["", ""]}
    with torch.no_grad():
        encoded = encode_conditions(stage.conditioners, batch)
        stage.loa_generator.condition_dropout = 1.0
        for prompt, name in zip(prompts_of(stage.train(), encoded), stage.loa_generator.conditions):
            empty = stage.conditioners[name].empty()
            for row in range(2):
                assert torch.equal(prompt.embedding[row][prompt.mask[row]], empty.embedding[empty.mask])
        read = prompts_of(stage.eval(), encoded)
    assert all(torch.equal(a.embedding, encoded[n].embedding) for a, n in zip(read, stage.loa_generator.conditions))


@pytest.mark.parametrize("unit", ["batch", "sample", "condition"])
def test_conditions_can_be_dropped_always_and_never(unit):
    for probability in (0.0, 1.0):
        config = DiffusionConfig(condition_dropout=probability, dropout_unit=unit)
        dropped = draw_dropped(config, ["loa", "clap"], 8, SharedRandom(0))
        assert all(rows.float().mean() == probability and rows.shape == (8,) for rows in dropped.values())


def test_a_dropped_clip_has_the_empty_condition(smoke_run):
    stage = stage_of(smoke_run, "joint").eval()
    batch = {"text": ["a bell", "rain", "a dog and a siren"], "transcript": [""] * 3}
    with torch.no_grad():
        conditions = encode_conditions(stage.conditioners, batch) | {"loa": Condition.of(torch.ones(3, 2, 4))}
        dropped = {"loa": torch.tensor([True, False, False]), "t5": torch.tensor([False, True, False])}
        left = drop_conditions(conditions, dropped, stage.conditioners)
        empty = stage.conditioners["t5"].empty()
    assert left["loa"].embedding.flatten(1).sum(1).tolist() == [0.0, 8.0, 8.0] and left["loa"].mask.all()
    row = left["t5"][1]
    assert torch.equal(row.embedding[row.mask], empty.embedding[empty.mask])
    assert torch.equal(left["t5"].embedding[2], conditions["t5"].embedding[2])
    assert torch.equal(left["clap"].embedding, conditions["clap"].embedding)


def test_the_authors_first_batch_keeps_its_conditions(smoke, smoke_run, tmp_path):
    stage = stage_of(smoke_run, "ldm").train()
    stage.diffusion = replace(smoke_run.diffusion, condition_dropout=1.0, keep_first_batch=True)
    assert draw_dropped_clips(stage, 4) == {}
    stage.batch_idx = 1
    assert all(rows.all() for rows in draw_dropped_clips(stage, 4).values())

    parts = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "vae", "vocoder", "audiomae")]
    authors = ("diffusion.keep_first_batch=true", "training.joint.skip_dropped_loa=true",
               "conditioners.clap.empty_probability=0.1", "diffusion.condition_dropout=0.5")  # fmt: skip
    experiment = smoke(*parts, *authors, "stages=[ldm,gpt2,joint]", runs=tmp_path)
    train(experiment)
    assert (experiment.run_folder / "stages" / "joint.json").is_file()


def test_the_authors_replacement_of_clap(smoke_run):
    stage = stage_of(smoke_run, "gpt2").train()
    stage.conditioners["clap"].empty_probability = 1.0
    batch = {"text": ["a bell", "rain"], "transcript": ["", ""]}
    with torch.no_grad():
        encoded = encode_conditions(stage.conditioners, batch, SharedRandom(0))["clap"].embedding
        assert torch.equal(encoded, stage.conditioners["clap"].empty().embedding.expand(2, -1, -1))
        assert not torch.equal(encode_conditions(stage.conditioners, batch)["clap"].embedding, encoded)


def test_loa_of_dropped_clips_may_be_left_out_of_the_loss(smoke_run):
    stage = stage_of(smoke_run, "joint")
    predicted, loa = torch.zeros(2, 3, 4), torch.stack([torch.ones(3, 4), torch.full((3, 4), 3.0)])
    distances = loa_distance("mse", predicted, loa)
    assert distances.tolist() == [1.0, 9.0]
    dropped = torch.tensor([False, True])
    assert stage.loa_term(distances, dropped).item() == pytest.approx(5.0)
    stage.config = replace(stage.config, skip_dropped_loa=True)
    assert stage.loa_term(distances, dropped).item() == pytest.approx(1.0)
    assert stage.loa_term(distances, torch.tensor([True, True])).item() == 0.0
