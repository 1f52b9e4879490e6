"""What holds for every stage: it learns, it resumes to the bit, and frozen parts stay as they are."""

import gc
import itertools
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from breaking import break_off
from fitting import overfit
from safetensors.torch import load_file

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import GROUPS
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.audiomae import AudioMAEPretraining
from audioldm2_pl.training.checkpoint import changed_settings
from audioldm2_pl.training.ema import EMA
from audioldm2_pl.training.ldm import draw_dropped_clips
from audioldm2_pl.training.optimizer import OptimizerConfig, learning_rate_factor
from audioldm2_pl.training.records import peak_memory, recipe
from audioldm2_pl.training.run import STAGES, train
from data.shards import write_shards
from data.synthetic import clips

WRITES = {
    "clap": ("text_encoder",),
    "audiomae": ("audiomae",),
    "vae": ("vae",),
    "vocoder": ("vocoder",),
    "decoder": ("vae",),
    "ldm": ("unet", "text_encoder_2"),
    "gpt2": ("language_model", "projection_model"),
    "joint": ("unet", "language_model", "projection_model"),
    "distill": ("unet",),
}
GOES_ON = ("decoder", "joint", "distill")  # stages that start from what they write
STUDENT = ("sampling.sampler=lcm", "sampling.num_steps=4", "sampling.guidance_scale=1")


def prepared(smoke, smoke_run, stage: str, tmp_path: Path, name: str, *overrides: str):
    """A smoke experiment whose model folder already has all parts that `stage` starts from."""
    if stage == "distill":
        overrides = ("stages=[distill]", f"start_from.unet={smoke_run.model_folder}", *STUDENT, *overrides)
    experiment = smoke(f"name={name}", *overrides, runs=tmp_path)
    shutil.copytree(smoke_run.model_folder, experiment.model_folder)
    for part in WRITES[stage] if stage not in GOES_ON else ():
        shutil.rmtree(experiment.model_folder / part)
    return experiment


def weights(experiment, stage: str) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{key}": value
        for part in WRITES[stage]
        for file in sorted((experiment.model_folder / part).glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def start(smoke_run, stage: str):
    """A stage at its beginning, and an endless supply of one batch."""
    module = STAGES[stage].build(smoke_run, ModelFolder(smoke_run.model_folder)).train()
    data = AudioShards(smoke_run.data, smoke_run.audio, seed=0, batch_size=4, crop_seconds=module.config.crop_seconds)
    return module, next(iter(data.train_dataloader()))


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "image"])  # which wants pictures
def test_killed_and_resumed_ends_with_the_same_bits(stage, smoke, smoke_run, tmp_path, monkeypatch):
    straight = prepared(smoke, smoke_run, stage, tmp_path, "straight")
    train(straight, stage)

    broken = prepared(smoke, smoke_run, stage, tmp_path, "broken")
    break_off(broken, stage, 3, monkeypatch)
    assert (broken.run_folder / "checkpoints" / f"{stage}.ckpt").is_file()
    train(broken, stage)

    expected, resumed = weights(straight, stage), weights(broken, stage)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    rows = (broken.run_folder / "logs" / stage / "metrics.csv").read_text().splitlines()
    assert len(set(rows)) == len(rows)
    assert rows == (straight.run_folder / "logs" / stage / "metrics.csv").read_text().splitlines()


@pytest.mark.parametrize(
    ("stage", "share"),
    [("clap", 0.7), ("audiomae", 0.9), ("decoder", 0.9), ("ldm", 0.9), ("gpt2", 0.5), ("joint", 0.9), ("distill", 0.9)],
)
def test_overfits_one_batch(stage, share, smoke_run):
    torch.manual_seed(0)  # whatever tests ran before
    module, batch = start(smoke_run, stage)
    losses = overfit(module, batch, 60, learning_rate=5e-3, num_draws=4)
    assert sum(losses[-4:]) < share * sum(losses[:4])


@pytest.mark.parametrize("stage", ["ldm", "gpt2", "joint", "distill"])
def test_frozen_parts_get_no_gradient_and_are_not_registered(stage, smoke_run):
    module, batch = start(smoke_run, stage)
    module.total(module.losses(batch)).backward()
    frozen = list(itertools.chain.from_iterable(net.parameters() for net in module.frozen.values()))
    assert frozen and all(p.grad is None and not p.requires_grad for p in frozen)
    registered = {id(p) for p in module.parameters()}
    assert not registered & {id(p) for p in frozen}


def test_diffusion_loss_reaches_gpt2_in_joint_finetuning(smoke_run):
    module, batch = start(smoke_run, "joint")
    # a fresh T-UNet's zero-initialised outputs would let nothing through
    with torch.no_grad():
        for parameter in module.unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    module.config.p_gt = 0.0
    module.losses(batch)["diffusion"].backward()
    assert module.loa_generator.gpt2.transformer.h[0].attn.c_attn.weight.grad.abs().max() > 0
    assert module.loa_generator.projection.projection.weight.grad.abs().max() > 0

    module.zero_grad()
    module.config.p_gt = 1.0
    module.losses(batch)["diffusion"].backward()
    assert all(p.grad is None or not p.grad.any() for p in module.loa_generator.parameters())


def test_a_finished_stage_leaves_no_weights_in_memory(smoke, tmp_path):
    train(smoke("stages=[audiomae,vae]", runs=tmp_path))
    alive = [thing.name for thing in gc.get_objects() if isinstance(thing, AudioMAEPretraining)]
    assert not alive


def test_peak_memory_counts_host_and_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert 0.05 < peak_memory()["peak_memory_gib"] < 100 and "peak_gpu_memory_gib" not in peak_memory()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 500 * 2**30)
    assert peak_memory()["peak_gpu_memory_gib"] == 500 and peak_memory()["peak_memory_gib"] < 100


def test_finished_stages_are_passed_over(smoke_run, capsys):
    before = weights(smoke_run, "joint")
    train(smoke_run)
    assert capsys.readouterr().out.count("finished") == len(smoke_run.stages)
    assert all(torch.equal(value, before[key]) for key, value in weights(smoke_run, "joint").items())


def test_changed_settings_of_a_finished_stage_are_pointed_out(smoke, smoke_run, capsys):
    changed = smoke("training.vae.batches=5", "sampling.num_steps=9", runs=smoke_run.run_folder.parent)
    train(changed)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "other settings" in line] == [line for line in lines if line.startswith("vae:")]
    assert "vae.json" in next(line for line in lines if line.startswith("vae:"))


def test_sampling_is_part_of_the_recipe_only_where_a_stage_samples(smoke, smoke_run):
    assert "sampling" not in recipe(smoke_run, "joint") and "sampling" not in recipe(smoke_run, "decoder")
    listening = smoke("training.decoder.sampled_from=[40]", "stages=[decoder]")
    now = recipe(listening, "decoder")
    assert now["sampling"]["num_steps"] == 3
    # a record of an earlier version, which had these settings under `diffusion`
    before = {**now, "diffusion": {**now["diffusion"], "num_steps": 9, "eta": 1.0}}
    del before["sampling"]
    assert changed_settings("decoder", before, now) == {}


def test_a_field_that_a_record_lacks_had_its_default(smoke):
    now = recipe(smoke("diffusion.dropout_alone={t5: 0.1}", "training.ldm.accumulate_batches=2"), "ldm")
    before = deepcopy(now)
    for key in ("dropout_alone", "keep_first_batch"):
        del before["diffusion"][key]
    del before["training"]["accumulate_batches"]
    changes = changed_settings("ldm", before, now)
    assert changes == {"diffusion.dropout_alone": [{}, {"t5": 0.1}], "training.accumulate_batches": [1, 2]}


def test_a_stage_trained_anew_begins_from_what_it_first_began_from(smoke, smoke_run, tmp_path, capsys):
    experiment = smoke("name=anew", runs=tmp_path)
    shutil.copytree(smoke_run.run_folder, experiment.run_folder)
    finetuned = {stage: weights(experiment, stage) for stage in ("decoder", "joint")}
    for stage in finetuned:
        (experiment.run_folder / "stages" / f"{stage}.json").unlink()
    train(experiment)
    for stage, before in finetuned.items():
        assert all(torch.equal(value, before[key]) for key, value in weights(experiment, stage).items())
    assert "undone" not in capsys.readouterr().out


def test_stages_that_went_on_from_one_that_is_trained_anew_are_undone(smoke, smoke_run, tmp_path, capsys):
    experiment = smoke("name=anew", "training.gpt2.batches=3", runs=tmp_path)
    shutil.copytree(smoke_run.run_folder, experiment.run_folder)
    stages = experiment.run_folder / "stages"
    as_ldm_left_it = load_file(stages / "joint/unet/diffusion_pytorch_model.safetensors")
    (stages / "gpt2.json").unlink()
    train(experiment, "gpt2")
    assert "joint: undone" in capsys.readouterr().out
    assert (stages / "ldm.json").is_file() and not (stages / "joint.json").exists()
    unet = load_file(experiment.model_folder / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, as_ldm_left_it[key]) for key, value in unet.items())
    gpt2 = load_file(experiment.model_folder / "language_model/model.safetensors")

    train(experiment, "joint")
    kept = load_file(stages / "joint/language_model/model.safetensors")
    assert all(torch.equal(value, kept[key]) for key, value in gpt2.items())
    after = load_file(experiment.model_folder / "language_model/model.safetensors")
    assert any(not torch.equal(value, after[key]) for key, value in gpt2.items())


def test_a_stage_that_begins_for_the_first_time_undoes_nothing(smoke, smoke_run, tmp_path, capsys):
    experiment = smoke("name=first", runs=tmp_path)
    shutil.copytree(smoke_run.model_folder, experiment.model_folder)
    train(experiment, "joint")
    train(experiment, "ldm")
    assert "undone" not in capsys.readouterr().out
    assert (experiment.run_folder / "stages" / "joint.json").is_file()


def test_parts_taken_from_elsewhere_are_not_trained(smoke, smoke_run, tmp_path, capsys):
    taken = smoke(f"from.vae={smoke_run.model_folder}", "stages=[vae]", runs=tmp_path)
    train(taken)
    assert "vae: taken from" in capsys.readouterr().out
    assert all(torch.equal(value, weights(smoke_run, "vae")[key]) for key, value in weights(taken, "vae").items())

    # `start_from` copies too, but its stage goes on training
    started = smoke(f"start_from.vae={smoke_run.model_folder}", "stages=[vae]", "name=started", runs=tmp_path)
    train(started)
    assert any(not torch.equal(value, weights(smoke_run, "vae")[key]) for key, value in weights(started, "vae").items())


def test_cached_features_equal_uncached(smoke, smoke_run, tmp_path):
    curves = []
    for cached in ("true", "false"):
        overrides = (f"training.ldm.cache_features={cached}",)
        experiment = prepared(smoke, smoke_run, "ldm", tmp_path, f"cached-{cached}", *overrides)
        train(experiment, "ldm")
        rows = (experiment.run_folder / "logs/ldm/metrics.csv").read_text().splitlines()[1:]
        curves.append([float(row.split(",")[2]) for row in rows])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_clips_of_equal_keys_have_features_of_their_own(smoke, smoke_run, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_shards(clips("train", 6, seed=seed), tmp_path / name, num_workers=1)
    folders = f"data.train=[{tmp_path}/a,{tmp_path}/b]"
    trained = []
    for cached in ("true", "false"):
        overrides = (folders, f"training.ldm.cache_features={cached}")
        experiment = prepared(smoke, smoke_run, "ldm", tmp_path, f"cached-{cached}", *overrides)
        train(experiment, "ldm")
        rows = (experiment.run_folder / "logs/ldm/metrics.csv").read_text().splitlines()[1:]
        trained.append([float(row.split(",")[2]) for row in rows])
    assert trained[0] == pytest.approx(trained[1], rel=1e-4)


def test_stages_of_one_call_share_cached_features_and_end_with_the_bits_of_several(
    smoke, smoke_run, tmp_path, monkeypatch
):
    overrides = ["training.ldm.batch_size=3", *(f"training.{s}.cache_features=true" for s in ("ldm", "gpt2", "joint"))]
    apart = prepared(smoke, smoke_run, "ldm", tmp_path, "apart", *overrides)
    for stage in ("ldm", "gpt2", "joint"):
        train(apart, stage)
    together = prepared(smoke, smoke_run, "ldm", tmp_path, "together", *overrides)
    together.stages = ["ldm", "gpt2", "joint"]
    passes = []
    storage_order = AudioShards.storage_order
    monkeypatch.setattr(AudioShards, "storage_order", lambda self: passes.append(1) or storage_order(self))
    train(together)
    assert len(passes) == 1
    expected = weights(apart, "joint")
    assert all(torch.equal(value, expected[key]) for key, value in weights(together, "joint").items())


def test_validation_is_logged_and_leaves_training_as_it_was(smoke, smoke_run, tmp_path):
    plain = prepared(smoke, smoke_run, "gpt2", tmp_path, "plain")
    validated = prepared(
        smoke,
        smoke_run,
        "gpt2",
        tmp_path,
        "validated",
        "trainer.validate_every_batches=2",
        "trainer.validation_batches=1",
    )
    train(plain, "gpt2")
    train(validated, "gpt2")
    rows = (validated.run_folder / "logs/gpt2/metrics.csv").read_text().splitlines()
    assert sum(",val/loa," in row for row in rows) == 2
    first, second = weights(plain, "gpt2"), weights(validated, "gpt2")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_validation_measures_the_weights_that_are_saved(smoke, smoke_run, tmp_path):
    experiment = prepared(
        smoke, smoke_run, "gpt2", tmp_path, "averaged", "training.gpt2.ema_decay=0.9",
        "trainer.validate_every_batches=4", "trainer.validation_batches=1", "gpt2.dropout=0.3",
    )  # fmt: skip
    train(experiment, "gpt2")
    rows = (experiment.run_folder / "logs/gpt2/metrics.csv").read_text().splitlines()
    measured = next(float(row.split(",")[2]) for row in rows if ",val/loa," in row)
    started = replace(experiment, start_from={"gpt2": str(experiment.model_folder)})
    stage = STAGES["gpt2"].build(started, ModelFolder(started.model_folder, started=started.start_from)).eval()
    data = AudioShards(experiment.data, experiment.audio, seed=0, batch_size=2)
    with torch.no_grad():
        saved = stage.losses(next(iter(data.val_dataloader())))["loa"].item()
    assert measured == pytest.approx(saved, rel=1e-4)


def test_validation_leaves_no_condition_out(smoke_run):
    stage, _ = start(smoke_run, "ldm")
    stage.diffusion = replace(smoke_run.diffusion, condition_dropout=1.0)
    dropped = draw_dropped_clips(stage, 8)
    assert list(dropped) == ["loa", "t5"] and all(rows.all() for rows in dropped.values())
    assert not draw_dropped_clips(stage.eval(), 8)


def test_learning_rate_warms_up_and_decays():
    config = OptimizerConfig(warmup_batches=10, decay="cosine")
    factors = [learning_rate_factor(config, i, 110) for i in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.5)
    assert factors[-1] < 1e-3
    assert [learning_rate_factor(OptimizerConfig(), i, 5) for i in range(5)] == [1.0] * 5


def test_networks_learn_at_rates_of_their_own(smoke, smoke_run, tmp_path):
    def words(experiment) -> dict[str, torch.Tensor]:
        return load_file(experiment.model_folder / "text_encoder_2/model.safetensors")

    before = words(smoke_run)
    for name, same in (("t5", True), ("loa_generator", False)):
        rates = f"training.gpt2.optimizer.learning_rates={{{name}: 0.0}}"
        experiment = prepared(smoke, smoke_run, "gpt2", tmp_path, name, rates)
        train(experiment, "gpt2")
        assert all(torch.equal(value, before[key]) for key, value in words(experiment).items()) == same

    rates = "training.vae.optimizer.learning_rates={vae.encoder: 0.0}"
    started = smoke(f"start_from.vae={smoke_run.model_folder}", rates, "stages=[vae]", "name=vae", runs=tmp_path)
    train(started)
    before, after = weights(smoke_run, "vae"), weights(started, "vae")
    changed = {key.split(".")[1] for key in after if not torch.equal(after[key], before[key])}
    assert "decoder" in changed and "encoder" not in changed


def test_a_learning_rate_of_no_network_is_named(smoke, smoke_run, tmp_path):
    unknown = prepared(
        smoke, smoke_run, "gpt2", tmp_path, "unknown", "training.gpt2.optimizer.learning_rates={t6: 1.0}"
    )
    with pytest.raises(UserError, match=r"gpt2.*learning_rates: no network 't6'; there are clap, t5, phonemes"):
        train(unknown, "gpt2")


def test_ema_warms_up_and_is_put_back(smoke_run):
    stage, ema = start(smoke_run, "audiomae")[0], EMA(decay=0.9)
    weight = stage.audiomae.decoder_pred.weight
    ema.on_train_start(None, stage)  # type: ignore[arg-type]
    first = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    ema.on_train_batch_end(None, stage, None, None, 0)
    with ema.applied(stage):
        assert torch.allclose(weight, first + 0.9)  # decay (1 + 0) / (10 + 0) keeps a tenth
    assert torch.allclose(weight, first + 1.0)


def test_ema_counts_steps_of_the_optimiser(smoke_run):
    stage, ema = start(smoke_run, "audiomae")[0], EMA(decay=0.9)
    stage.config = replace(stage.config, accumulate_batches=3, batches=4)
    ema.on_train_start(None, stage)  # type: ignore[arg-type]
    counts = []
    for batch_idx in range(4):
        ema.on_train_batch_end(None, stage, None, None, batch_idx)
        counts.append(ema.num_updates)
    assert counts == [0, 0, 1, 2]  # the last batch of the budget steps, too


def test_groups_cover_all_written_parts():
    known = {part for parts in GROUPS.values() for part in parts}
    assert {part for parts in WRITES.values() for part in parts} <= known
    assert {name for name, stage in STAGES.items() if stage.makes is None} == set(GOES_ON)


def test_tensorboard_and_offline_wandb_are_written_when_asked(smoke, smoke_run, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where an account's key would lie
    experiment = prepared(smoke, smoke_run, "gpt2", tmp_path, "logged", "trainer.loggers=[tensorboard,wandb]")
    break_off(experiment, "gpt2", 2, monkeypatch)
    logs = experiment.run_folder / "logs" / "gpt2"
    first = (logs / "wandb_id").read_text()
    train(experiment, "gpt2")
    assert list(logs.glob("tensorboard/events*"))
    runs = [path.stem for path in logs.glob("wandb/offline-run*/*.wandb")]
    assert len(set(runs)) == 1 and runs[0].endswith(first)  # one run, gone on with
    shutil.rmtree(experiment.run_folder / "stages")
    train(experiment, "gpt2")
    assert (logs / "wandb_id").read_text() != first  # trained anew


def test_stages_side_by_side_end_like_one_after_the_other(smoke, smoke_run, tmp_path):
    experiment = smoke("stages=[audiomae,vocoder]", "trainer.parallel_stages=2", runs=tmp_path)
    train(experiment)
    for stage in ("audiomae", "vocoder"):
        expected, beside = weights(smoke_run, stage), weights(experiment, stage)
        assert all(torch.allclose(beside[key], expected[key], atol=1e-6) for key in expected)
    assert {path.stem for path in (experiment.run_folder / "stages").iterdir()} == {"audiomae", "vocoder"}
    assert '"vocoder"' in (experiment.model_folder / "model_index.json").read_text()


def test_a_bad_clip_stops_stages_side_by_side_with_a_plain_error(smoke, shards, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(shards / "train", folder)
    for tar in folder.glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"fLaC", b"XXXX"))
    experiment = smoke("stages=[audiomae,vae]", "trainer.parallel_stages=2", f"data.train=[{folder}]", runs=tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        train(experiment)
