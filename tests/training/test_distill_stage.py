"""Stage `distill`: a student of few steps beside its teacher, and all that generation does with it."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from breaking import break_off
from fitting import overfit
from safetensors.torch import load_file
from test_stages import STUDENT

from audioldm2_pl.cli import main
from audioldm2_pl.conditioning import encode_requests
from audioldm2_pl.editing import Edit
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.guidance import predictor
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.distill import Distillation
from audioldm2_pl.training.run import train

GIVEN = ("clap", "t5", "vae", "vocoder", "audiomae", "gpt2")
RECTIFIED = ("training.distill.method=rectified", "training.distill.num_solver_steps=3", "sampling.sampler=ddim")
UNET = "unet/diffusion_pytorch_model.safetensors"


def distilling(smoke, teacher: Path, runs: Path, *overrides: str):
    """A smoke experiment that distils the T-UNet of a model folder."""
    sources = [f"from.{part}={teacher}" for part in GIVEN]
    return smoke(
        "name=student", "stages=[distill]", *sources, f"start_from.unet={teacher}", *STUDENT, *overrides, runs=runs
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(experiment, prediction: str | None = None) -> tuple[Distillation, dict]:
    """The stage at its beginning, on the teacher's folder, and a batch."""
    teacher = ModelFolder(experiment.start_from["unet"], started=experiment.start_from)
    stage = Distillation.build(experiment, teacher)
    if prediction:
        stage.diffusion = replace(stage.diffusion, prediction=prediction)
    return stage.train(), next(iter(AudioShards(experiment.data, experiment.audio, 0, 4).train_dataloader()))


@pytest.fixture(scope="module")
def student(smoke, smoke_run, tmp_path_factory):
    """A run that has distilled the smoke run's T-UNet, and the teacher's files before it."""
    before = files(smoke_run.model_folder)
    recipe = "training.distill={ema_decay: null, optimizer: {learning_rate: 1.0e-2, warmup_batches: 0}}"
    experiment = distilling(smoke, smoke_run.model_folder, tmp_path_factory.mktemp("runs"), recipe)
    train(experiment)
    return experiment, before


@pytest.fixture(scope="module")
def model(student) -> AudioLDM2:
    return AudioLDM2.from_pretrained(student[0].model_folder)


def test_the_teacher_stays_as_it_is(student, smoke_run):
    experiment, before = student
    assert files(smoke_run.model_folder) == before
    own = files(experiment.model_folder)
    changed = {name.partition("/")[0] for name in own if own[name] != before.get(name)}
    assert changed == {"unet", "scheduler", "generation_config.json", "model_index.json"}
    assert own["unet/config.json"] == before["unet/config.json"]


def test_the_folder_says_its_steps_and_guidance_and_generate_takes_them(student, tmp_path, monkeypatch):
    folder = student[0].model_folder
    told = json.loads((folder / "generation_config.json").read_text())
    assert (told["sampler"], told["num_steps"], told["guidance_scale"]) == ("lcm", 4, 1.0)
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["original_inference_steps"]) == ("LCMScheduler", 50)
    assert json.loads((folder / "model_index.json").read_text())["scheduler"] == ["diffusers", "LCMScheduler"]
    seen, embed = [], TUNet.embed

    def note(self, timestep, film, latent):
        seen.append((len(latent), int(timestep[0])))
        return embed(self, timestep, film, latent)

    monkeypatch.setattr(TUNet, "embed", note)
    assert main(["generate", str(folder), "a bell", "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert seen == [(1, 999), (1, 759), (1, 499), (1, 259)]  # no pass without conditions


def test_clips_do_not_depend_on_their_neighbours(model):
    requests = [Generation("a bell", seed=3), Generation("rain", seed=4)]
    together = model.generate_latent(requests, model.sampling)
    alone = torch.cat([model.generate_latent([request], model.sampling) for request in requests])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.generate_latent(requests, model.sampling), together)


def test_stock_diffusers_samples_the_student(student):
    pipeline = diffusers.AudioLDM2Pipeline.from_pretrained(student[0].model_folder, low_cpu_mem_usage=False)
    assert isinstance(pipeline.scheduler, diffusers.LCMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    audio = pipeline(
        "a bell",
        num_inference_steps=4,
        guidance_scale=1.0,
        audio_length_in_s=2.56,
        max_new_tokens=pipeline.language_model.config.max_new_tokens,
        generator=torch.Generator().manual_seed(0),
    ).audios
    assert audio.shape == (1, 40_960) and np.isfinite(audio).all() and audio.std() > 0


def test_editing_prefixes_windows_and_candidates_work_with_it(model):
    source = 0.1 * torch.randn(1, 40_960, generator=torch.Generator().manual_seed(0))
    edited, _ = model.edit(source, "a siren", between=[(0.5, 1.5)])
    assert torch.equal(edited[:, :8000], source[:, :8000]) and not torch.equal(
        edited[:, 8000:24000], source[:, 8000:24000]
    )
    latent = model.encode_latent(source)
    near, far = (model.generate("rain", num_steps=20, edit=Edit(latent, start_timestep=t)) for t in (100, 900))
    assert near.isfinite().all() and far.isfinite().all() and not torch.equal(near, far)
    inversion = {"restyle": 0.6, "restyle_method": "inversion"}
    for changes in (inversion, {"restyle": 0.6}, {"extend": 1.0}, {"vary": 0.6}, {"above": 2000}):
        assert model.edit(source, "rain", **changes)[0].isfinite().all()
    prefix = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model.generate("rain", edit=Edit(loa_prefix=prefix)), model.generate("rain"))
    assert model.generate("rain", seconds=6.0, candidates=2).shape == (1, 96_000)
    with pytest.raises(UserError, match="num_steps=60: lcm samples in 50 steps or fewer"):
        model.generate("rain", num_steps=60)


def test_an_adapter_of_the_teacher_runs_on_the_student(student, smoke, smoke_run, tmp_path):
    sources = ", ".join(f"{part}: {smoke_run.model_folder}" for part in (*GIVEN, "unet"))
    recipe = "training.joint={ema_decay: null, optimizer: {learning_rate: 0.5, warmup_batches: 0}}"
    adapting = smoke("name=own", "stages=[joint]", "adapter={rank: 4}", f"from={{{sources}}}", recipe, runs=tmp_path)
    train(adapting)
    folder, path = student[0].model_folder, str(adapting.adapter_folder)
    plain, none, whole = (
        AudioLDM2.from_pretrained(folder, adapters=adapters).generate("a bell")
        for adapters in ({}, {path: 0.0}, {path: 1.0})
    )
    assert torch.equal(plain, none) and whole.isfinite().all() and not torch.equal(plain, whole)


def test_the_teacher_is_guided_as_in_generation(smoke, smoke_run, tmp_path):
    """GPT-2's LOA of the captions, and against it what generation takes for no condition."""
    stage, batch = start(distilling(smoke, smoke_run.model_folder, tmp_path))
    assert stage.guidance_scale == smoke_run.sampling.guidance_scale == 3.0  # generation_config.json of the teacher
    batch["text"] = ["a bell", "rain falls, then a siren", "a drum", "wind"]
    with torch.no_grad():
        for parameter in stage.frozen["teacher"].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a fresh T-UNet hears little
        conditions = stage.conditions_of(batch, stage.features(batch), torch.zeros(4, dtype=torch.bool))
        latent, timestep = torch.randn(4, 8, 32, 8), torch.tensor([999, 500, 100, 20])
        ours = stage.guided(conditions)(latent, timestep)
        model = AudioLDM2.from_pretrained(smoke_run.model_folder)
        model.unet.load_state_dict(stage.frozen["teacher"].state_dict())
        sampling = Sampling(guidance_scale=3.0)
        inputs = encode_requests(model, [Generation(text) for text in batch["text"]], sampling)
        theirs = predictor(model.unet, inputs, 3.0)(latent, timestep)
        plain = predictor(model.unet, inputs, 1.0)(latent, timestep)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_the_target_follows_the_student(smoke, smoke_run, tmp_path):
    stage, _ = start(distilling(smoke, smoke_run.model_folder, tmp_path, "training.distill.target_decay=0.9"))
    before = stage.target.conv_in.weight.clone()
    with torch.no_grad():
        stage.unet.conv_in.weight.add_(1.0)
    stage.update_target()
    torch.testing.assert_close(stage.target.conv_in.weight, before + 0.1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("method", [(), RECTIFIED])
def test_the_loss_of_both_methods_falls_for_both_predictions(method, prediction, smoke, smoke_run, tmp_path):
    stage, batch = start(distilling(smoke, smoke_run.model_folder, tmp_path, *method), prediction)
    with torch.no_grad():
        for parameter in stage.frozen["teacher"].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    features = stage.features(batch)
    stage.cache = {clip: {name: value[i] for name, value in features.items()} for i, clip in enumerate(batch["id"])}
    if method:
        stage.pairs = dict(zip(batch["id"], stage.sample_pairs(batch)))
    losses = overfit(stage, batch, 40, learning_rate=5e-3, num_draws=4)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_a_rectified_run_resumes_to_the_bit_and_samples_by_ddim(smoke, smoke_run, tmp_path, monkeypatch):
    overrides = (*RECTIFIED, "training.distill.max_clips=6")
    straight = distilling(smoke, smoke_run.model_folder, tmp_path / "straight", *overrides)
    train(straight)
    broken = distilling(smoke, smoke_run.model_folder, tmp_path / "broken", *overrides)
    break_off(broken, "distill", 3, monkeypatch)
    train(broken)
    assert files(broken.model_folder) == files(straight.model_folder)
    scheduler = json.loads((straight.model_folder / "scheduler/scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["timestep_spacing"]) == ("DDIMScheduler", "trailing")
    model = AudioLDM2.from_pretrained(straight.model_folder)
    assert model.sampling.sampler == "ddim" and model.generate("a bell").isfinite().all()


@pytest.mark.parametrize("conditions", [("unet.conditions=[t5]",), ("unet.conditions=[]", "unet.film=clap")])
def test_systems_without_a_language_of_audio_are_distilled(conditions, smoke, smoke_run, tmp_path):
    parts = [f"from.{part}={smoke_run.model_folder}" for part in ("clap", "t5", "vae", "vocoder")]
    teacher = smoke("name=teacher", *parts, "stages=[ldm]", *conditions, runs=tmp_path)
    train(teacher)
    own = [f"from.{part}={teacher.model_folder}" for part in ("clap", "t5", "vae", "vocoder")]
    student = smoke(
        "name=student", *own, f"start_from.unet={teacher.model_folder}", "stages=[distill]", *STUDENT, *conditions,
        "training.distill.optimizer={learning_rate: 1.0e-2, warmup_batches: 0}", runs=tmp_path,
    )  # fmt: skip
    train(student)
    first, second = (load_file(run.model_folder / UNET) for run in (teacher, student))
    assert any(not torch.equal(first[key], second[key]) for key in first)
    assert AudioLDM2.from_pretrained(student.model_folder).generate("a bell").isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["start_from.unet=null"], "overwrite its teacher.*`name` of its own.*start_from: {unet"),
        (["stages=[joint, distill]"], "would overwrite what joint makes"),
        (["sampling.sampler=ddim"], "sampling.sampler=lcm, sampling.guidance_scale=1"),
        (["sampling.guidance_scale=3"], "sampling.guidance_scale=1"),
        (["training.distill.method=rectified"], "sampling.sampler=ddim"),
        (["sampling.num_steps=51"], "num_steps=51 is above training.distill.num_solver_steps=50"),
        (["training.distill.num_solver_steps=1000"], "has to be below diffusion.num_timesteps=1000"),
        (["training.distill.num_solver_steps=0"], "num_solver_steps=0 has to be"),
        (["training.distill.guidance_scale=101"], "guidance_scale=101.0 has to be from 0 to 100"),
        (["training.distill.target_decay=1"], "target_decay=1.0 has to be"),
        (["training.distill.p_gt=-0.1"], "p_gt=-0.1 has to be from 0 to 1"),
        (["training.distill.huber_c=0"], "huber_c=0.0 has to be"),
        (["training.distill.max_clips=0"], "max_clips=0 has to be"),
        (["training.distill.loss=l3"], "loss='l3'.*l2"),
        (["training.distill.method=consistent"], "did you mean 'consistency'"),
        (["adapter={rank: 4}"], "distill trains none of adapter.networks"),
    ],
)
def test_what_cannot_be_distilled_is_refused_at_once(overrides, message, smoke, smoke_run, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        distilling(smoke, smoke_run.model_folder, tmp_path, *overrides)
    assert "\n" not in str(error.value)


def test_a_student_in_its_teachers_own_run_is_refused(smoke, smoke_run):
    with pytest.raises(UserError, match="would overwrite its teacher"):
        distilling(smoke, smoke_run.model_folder, smoke_run.run_folder.parent, "name=smoke")
