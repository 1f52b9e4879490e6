"""The model folder: what a whole run writes, how parts are taken, and stock diffusers on it."""

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import GROUPS, HUB_CLASSES, find_model, load_part
from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig
from audioldm2_pl.models.projection import ConditionProjection
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.pipeline import AudioLDM2

torch.set_num_threads(1)
TINY_MAE = AudioMAEConfig(
    num_frames=32, num_bins=32, embed_dim=8, depth=1, num_heads=2, decoder_dim=8, decoder_depth=1, decoder_heads=2
)


SMOKE_PARTS = (*HUB_CLASSES, "audiomae")


@pytest.fixture
def copy(smoke_run, tmp_path):
    """A trained model folder that a test may break."""
    return shutil.copytree(smoke_run.model_folder, tmp_path / "copy")


def weights(folder, part: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / part).glob("*.safetensors"))}


def test_index_names_all_parts_but_audiomae(smoke_run):
    index = json.loads((smoke_run.model_folder / "model_index.json").read_text())
    assert index.pop("_class_name") == "AudioLDM2Pipeline"
    assert index.pop("_diffusers_version") == diffusers.__version__
    assert {part: tuple(cls) for part, cls in index.items()} == HUB_CLASSES


def test_folder_holds_nothing_but_parts_and_no_pickles(smoke_run):
    assert {path.name for path in smoke_run.model_folder.iterdir()} == {
        "model_index.json",
        "generation_config.json",
        *SMOKE_PARTS,
    }
    suffixes = {path.suffix for path in smoke_run.model_folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt", ".model"} and ".safetensors" in suffixes


@pytest.mark.parametrize("part", SMOKE_PARTS)
def test_each_part_loads_as_its_class(part, smoke_run):
    content = load_part(smoke_run.model_folder, part)
    own = {"unet": TUNet, "audiomae": AudioMAE, "projection_model": ConditionProjection}
    if part in own:
        assert isinstance(content, own[part])
    else:
        library, name = HUB_CLASSES[part]
        assert isinstance(content, getattr(diffusers if library == "diffusers" else transformers, name))


@pytest.mark.parametrize(
    "part", ["vae", "unet", "vocoder", "language_model", "text_encoder", "audiomae", "tokenizer_2"]
)
def test_weights_and_words_survive_saving(part, smoke_run, tmp_path):
    folder = ModelFolder(tmp_path)
    folder.save(part, load_part(smoke_run.model_folder, part))
    files = {path.name for path in (smoke_run.model_folder / part).iterdir()}
    assert {path.name for path in (tmp_path / part).iterdir()} == files
    for name in weights(smoke_run.model_folder, part):
        with (
            safe_open(smoke_run.model_folder / part / name, "pt") as old,
            safe_open(tmp_path / part / name, "pt") as new,
        ):
            assert set(old.keys()) == set(new.keys())
            assert all(torch.equal(old.get_tensor(key), new.get_tensor(key)) for key in old.keys())  # noqa: SIM118


@pytest.mark.parametrize("part", list(HUB_CLASSES))
def test_a_missing_part_is_named(part, copy):
    shutil.rmtree(copy / part)
    with pytest.raises(UserError, match=rf"{copy}.*{part}/ is missing"):
        ModelFolder(copy).load(part)
    with pytest.raises(UserError, match=f"{part}/ is missing"):
        AudioLDM2.from_pretrained(copy)


def test_a_broken_part_is_named(copy):
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    (copy / "audiomae" / "config.json").write_text("{")
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    for part in ("vae", "audiomae", "text_encoder_2"):
        with pytest.raises(UserError, match=f"{copy / part}: cannot be loaded"):
            load_part(copy, part)


def convert(folder, kind: str) -> None:
    """Saves a copy's weights as another writer may: half precision, in shards, as a variant, or as .bin files."""
    for path in list(folder.rglob("*.safetensors")):
        half = torch.float16 if kind == "float16" else torch.bfloat16 if kind == "bfloat16" else None
        weights = {k: v.to(half) if half and v.is_floating_point() else v for k, v in load_file(path).items()}
        stem, names = path.name.removesuffix(".safetensors"), sorted(weights)
        path.unlink()
        if kind == "bin":
            stem = "pytorch_model" if path.name == "model.safetensors" else stem
            torch.save(weights, path.with_name(f"{stem}.bin"))
        elif kind == "shards":
            shards = {f"{stem}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in (0, 1)}
            for name, keys in shards.items():
                save_file({key: weights[key] for key in keys}, path.with_name(name), metadata={"format": "pt"})
            index = {"metadata": {}, "weight_map": {key: name for name, keys in shards.items() for key in keys}}
            path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
        else:
            name = f"{stem}.fp16.safetensors" if kind == "variant" else path.name
            save_file(weights, path.with_name(name), metadata={"format": "pt"})
    if kind in ("float16", "bfloat16"):  # transformers notes it
        for part in ("language_model", "text_encoder", "text_encoder_2", "vocoder"):
            path = folder / part / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": kind}))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "variant", "shards", "bin"])
def test_other_writers_folders_open_in_single_precision(copy, kind):
    original = AudioLDM2.from_pretrained(copy).generate("a bell", steps=2)
    convert(copy, kind)
    for part in ("audiomae", "unet", "vae", "vocoder", "language_model", "projection_model", "text_encoder"):
        assert {p.dtype for p in load_part(copy, part).parameters()} == {torch.float32}, part
    sound = AudioLDM2.from_pretrained(copy).generate("a bell", steps=2)
    assert torch.allclose(sound, original, atol=1e-6 if "float" not in kind else 0.2)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"layers_per_block": 10**6}),
        ("unet", {"block_out_channels": "wide"}),
        ("audiomae", {"depth": 10**6}),
        ("audiomae", {"depth": "deep"}),
        ("language_model", {"n_layer": 10**6}),
        ("vae", {"layers_per_block": 10**6}),
        ("vae", {"block_out_channels": [10**9]}),
        ("vocoder", {"upsample_rates": [2] * 5000}),
    ],
)
def test_a_config_out_of_bounds_is_told_at_once(copy, part, change):
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=str(copy / part)) as error:
        load_part(copy, part)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[1]", "[" * 9999, "5"])
def test_a_config_that_is_none_is_told(copy, content):
    (copy / "unet" / "config.json").write_text(content)
    with pytest.raises(UserError, match="unet: cannot be loaded"):
        AudioLDM2.from_pretrained(copy)


def test_audiomae_survives_saving(tmp_path):
    torch.manual_seed(0)
    audiomae = AudioMAE(replace(TINY_MAE, loa_layers=1, pooling=2))
    ModelFolder(tmp_path).save("audiomae", audiomae)
    loaded = ModelFolder(tmp_path).load("audiomae")
    assert loaded.config == audiomae.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in audiomae.state_dict().items())
    fbank = torch.randn(1, 1, 32, 32)
    assert torch.equal(loaded.eval().loa(fbank), audiomae.eval().loa(fbank))


def test_a_saved_part_takes_the_place_of_the_old_one_whole(tmp_path):
    folder = ModelFolder(tmp_path)
    folder.save("audiomae", AudioMAE(TINY_MAE))
    (tmp_path / "audiomae" / "left_over.json").write_text("{}")
    folder.save("audiomae", AudioMAE(replace(TINY_MAE, depth=2)))
    assert {path.name for path in (tmp_path / "audiomae").iterdir()} == {"config.json", "model.safetensors"}
    assert len(folder.load("audiomae").blocks) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"audiomae", "model_index.json"}


def test_a_broken_off_write_leaves_the_old_part(tmp_path):
    class Dies:
        def save_pretrained(self, path):
            (path / "config.json").write_text("half")
            raise OSError("disk full")

    folder = ModelFolder(tmp_path)
    folder.save("scheduler", diffusers.DDIMScheduler())
    before = (tmp_path / "scheduler" / "scheduler_config.json").read_bytes()
    with pytest.raises(UserError, match=r"scheduler: cannot be written \(disk full"):
        folder.save("scheduler", Dies())
    assert (tmp_path / "scheduler" / "scheduler_config.json").read_bytes() == before
    assert {path.name for path in (tmp_path / "scheduler").iterdir()} == {"scheduler_config.json"}
    folder.save("scheduler", diffusers.DDPMScheduler())  # over what the broken write left
    assert isinstance(folder.load("scheduler"), diffusers.DDPMScheduler)


def test_index_names_the_scheduler_that_is_there(tmp_path):
    ModelFolder(tmp_path).save("scheduler", diffusers.UniPCMultistepScheduler())
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "UniPCMultistepScheduler"]


@pytest.mark.parametrize("name", [name for name in GROUPS if name not in ("phonemes", "image")])
def test_given_parts_are_copied(name, smoke_run, tmp_path):
    folder = ModelFolder(tmp_path, given={name: str(smoke_run.model_folder)})
    folder.take_given()
    assert {path.name for path in tmp_path.iterdir()} == {"model_index.json", *GROUPS[name]}
    for part in GROUPS[name]:
        assert weights(tmp_path, part) == weights(smoke_run.model_folder, part)
        assert load_part(tmp_path, part) is not None
        assert folder.start(part) is None


def test_parts_that_are_here_are_not_taken_again(smoke_run, tmp_path):
    folder = ModelFolder(tmp_path, given={"vae": str(smoke_run.model_folder)})
    folder.take_given()
    (tmp_path / "vae" / "mark").touch()
    folder.take_given()
    assert (tmp_path / "vae" / "mark").exists()


def test_started_parts_are_gone_on_from(smoke_run, tmp_path):
    folder = ModelFolder(tmp_path, started={"audiomae": str(smoke_run.model_folder)})
    folder.take_given()
    assert isinstance(folder.start("audiomae"), AudioMAE)
    assert folder.start("vae") is None


def test_bad_sources_are_user_errors(smoke_run, tmp_path, copy):
    with pytest.raises(UserError, match=r"no part 'wae'.*vae"):
        ModelFolder(tmp_path, given={"wae": str(smoke_run.model_folder)})
    with pytest.raises(UserError, match="no part 'loa'"):
        ModelFolder(tmp_path, started={"loa": str(smoke_run.model_folder)})
    with pytest.raises(UserError, match="nowhere"):
        ModelFolder(tmp_path / "new", given={"vae": str(tmp_path / "nowhere")}).take_given()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a model folder"):
        find_model(tmp_path / "empty")
    shutil.rmtree(copy / "vae")
    with pytest.raises(UserError, match=rf"{copy}: has no vae/"):
        ModelFolder(tmp_path / "new", given={"vae": str(copy)}).take_given()


def test_stock_diffusers_opens_the_folder_and_makes_sound(smoke_run):
    pipeline = diffusers.AudioLDM2Pipeline.from_pretrained(smoke_run.model_folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    audio = pipeline(
        "a bell",
        num_inference_steps=2,
        audio_length_in_s=2.56,
        max_new_tokens=pipeline.language_model.config.max_new_tokens,
        generator=torch.Generator().manual_seed(0),
    ).audios
    assert audio.shape == (1, 40_960)
    assert np.isfinite(audio).all() and audio.std() > 0
