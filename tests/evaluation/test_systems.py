"""Our model, rivals' and folders of clips through one call and one command; weights are random, in the hub's layout."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_systems import BUILDERS
from transformers.utils.import_utils import BACKENDS_MAPPING

import evaluation.systems
from audioldm2_pl.audio import read_audio
from audioldm2_pl.conditioners.phonemes import prepare_espeak
from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.folders import clip_files
from evaluation.libraries import members
from evaluation.systems import SYSTEMS, Opener, Request, System
from evaluation.systems.folder import ClipOptions, generate_clips
from evaluation.systems.riffusion import HOP, NUM_FFT, POWER, WINDOW, mel_to_linear, sound_of
from evaluation.systems.system import one_by_one

SECONDS = 0.5
SPEECH = ("vits", "fastspeech2")  # as long as their text takes
FEW_STEPS = {"num_inference_steps": 2, "num_steps": 2}
G2P = "class G2p:\n    def __call__(self, text):\n        return list(text)\n"
RATES = {
    "riffusion": 44_100,
    "fastspeech2": 22_050,
    **dict.fromkeys(("audioldm", "audioldm2", "musicldm", "ours"), 16_000),
}
CAPTIONS = "filename,caption\na.wav,a bell rings\nb,rain falls\nbirds/c.flac,birds sing\na.wav,another caption\n"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """system -> its folder, written when it is first asked for."""
    root = tmp_path_factory.mktemp("systems")

    def find(name: str) -> Path:
        name = "audioldm2" if name == "ours" else name  # the same layout
        if not (root / name).exists():
            torch.set_num_threads(1)
            BUILDERS[name](root / name)
        return root / name

    return find


@pytest.fixture
def g2p(tmp_path, monkeypatch):
    """A stand-in for g2p_en, which asks the network for its dictionaries: letters in the place of phonemes."""
    (tmp_path / "packages" / "g2p_en").mkdir(parents=True)
    (tmp_path / "packages" / "g2p_en" / "__init__.py").write_text(G2P)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setitem(BACKENDS_MAPPING, "g2p_en", (lambda: True, ""))  # transformers has looked for it already


@pytest.fixture
def captions(tmp_path) -> Path:
    (tmp_path / "captions.csv").write_text(CAPTIONS)
    return tmp_path / "captions.csv"


def opened(name: str, folder: Path) -> System:
    opener = SYSTEMS[name]
    return opener.open(str(folder), "cpu", {key: n for key, n in FEW_STEPS.items() if key in opener.settings})


def line_of(capsys) -> str:
    """What a command says on stderr: one plain line."""
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Up to the rounding of another batch size."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max())


@pytest.mark.parametrize("name", [*BUILDERS, "ours"])
def test_a_clip_depends_on_its_caption_and_seed_alone(name, folder_of, g2p):
    system = opened(name, folder_of(name))
    assert system.sample_rate == RATES.get(name, 4_000)
    bell = Request("a", "a bell", seed=1)
    both = system.generate([bell, Request("b", "dogs bark at the old house", seed=2)], SECONDS)
    [alone] = system.generate([bell], SECONDS)
    assert alone.abs().max() > 1e-4
    assert same(both[0], alone, 1e-2 if name == "riffusion" else 1e-5)  # Griffin-Lim's rounds make rounding larger
    assert not same(both[1], alone)
    [other_seed] = system.generate([Request("a", "a bell", seed=3)], SECONDS)
    assert same(other_seed, alone) == (name == "fastspeech2")  # in which nothing is random
    [other_caption] = system.generate([Request("a", "drum", seed=1)], SECONDS)
    assert not same(other_caption, alone)
    num_samples = round(SECONDS * system.sample_rate)
    assert name in SPEECH or num_samples <= alone.shape[-1] < num_samples + 2_000
    assert alone.ndim == 1 or alone.shape[0] == (2 if name in ("stable-audio", "stable-audio-3", "ace-step") else 1)


def test_global_random_numbers_are_put_back(folder_of):
    system = opened("vits", folder_of("vits"))
    before = torch.get_rng_state()
    system.generate([Request("a", "a bell", seed=1)], SECONDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_reach_the_library(folder_of):
    [one] = opened("musicgen", folder_of("musicgen")).generate([Request("a", "a bell", 1)], SECONDS)
    greedy = SYSTEMS["musicgen"].open(str(folder_of("musicgen")), "cpu", {"top_k": 1})
    assert not same(one, greedy.generate([Request("a", "a bell", 1)], SECONDS)[0])
    folder = str(folder_of("audioldm"))
    made = [
        SYSTEMS["audioldm"]
        .open(folder, "cpu", {"num_inference_steps": 2, **more})
        .generate([Request("a", "a bell", 1), Request("b", "rain", 2)], SECONDS)
        for more in ({}, {"negative_prompt": "hiss and hum"}, {"guidance_scale": 9.0})
    ]
    assert not same(made[0][0], made[1][0]) and not same(made[0][0], made[2][0])


def test_a_picture_of_riffusion_sounds_as_it_was_drawn():
    """A sine's picture, made as theirs for training, comes back at the sine's frequency."""
    time = torch.arange(2 * 44_100) / 44_100
    sine = torch.sin(2 * torch.pi * 1_000 * time)
    window = torch.hann_window(WINDOW)
    magnitude = torch.stft(sine, NUM_FFT, HOP, WINDOW, window, return_complex=True).abs()[:, :100]
    filters, to_linear = mel_to_linear()
    mel = filters.T @ magnitude
    red = (1 - (mel / mel.max()) ** POWER).flip(0)
    waveform = sound_of(torch.stack([red, torch.zeros_like(red), torch.zeros_like(red)]), to_linear, seed=0)
    assert len(waveform) == 99 * HOP
    spectrum = torch.fft.rfft(waveform[HOP * 20 : HOP * 80]).abs()
    assert abs(int(spectrum.argmax()) * 44_100 / (HOP * 60) - 1_000) < 20


def test_the_command_writes_clips_of_one_length_and_level(folder_of, captions, tmp_path, capsys):
    output = tmp_path / "clips"
    arguments = ["generate", "audioldm", str(folder_of("audioldm")), str(captions), str(output), "--seconds", "0.4"]
    arguments += ["num_inference_steps=2", "--sample-rate", "8000", "--device", "cpu", "--batch-size", "2"]
    assert main(arguments) == 0 and "3 clips written, 0 kept" in capsys.readouterr().out
    files = clip_files(output)
    assert set(files) == {"a", "b", "birds/c"}
    for path in files.values():
        waveform, rate = read_audio(path)
        assert (rate, waveform.shape) == (8_000, (3_200, 1)) and abs(np.abs(waveform).max() - 0.5) < 1e-3
    record = json.loads((output / "system.json").read_text())
    assert record["system"] == "audioldm" and record["package"] == "diffusers" and record["version"]
    assert record["settings"] == {"num_inference_steps": 2} and (record["seconds"], record["seed"]) == (0.4, 0)

    kept, before = files["a"].stat().st_mtime_ns, read_audio(files["b"])[0]
    files["b"].unlink()
    assert main(arguments) == 0 and "1 clips written, 2 kept" in capsys.readouterr().out
    assert files["a"].stat().st_mtime_ns == kept
    assert np.abs(read_audio(files["b"])[0] - before).max() < 1e-4  # alone in its batch now

    for more in (["--seconds", "0.5"], ["--seed", "1"], ["--peak", "null"], ["guidance_scale=2"]):
        assert main([*arguments, *more]) == 2 and "name another folder" in line_of(capsys)
    captions.write_text(CAPTIONS.replace("rain falls", "hail falls"))
    assert main(arguments) == 2 and "other captions" in line_of(capsys)
    (output / "system.json").unlink()
    assert main(arguments) == 2 and "no system.json" in line_of(capsys)


@pytest.mark.parametrize("name", [*BUILDERS, "ours"])
def test_a_hub_id_that_is_not_there_is_one_line(name, captions, tmp_path, capsys, g2p):
    assert main(["generate", name, "nobody/nothing", str(captions), str(tmp_path / "clips")]) == 2
    assert "nobody/nothing" in line_of(capsys)
    assert not (tmp_path / "clips").exists()  # not claimed: the right name may follow


def test_a_folder_of_clips_is_a_system(captions, tmp_path, capsys):
    source, output = tmp_path / "theirs", tmp_path / "clips"
    (source / "birds").mkdir(parents=True)
    time = np.arange(24_000) / 24_000
    left, right = np.sin(2 * np.pi * 300 * time), 0.1 * np.sin(2 * np.pi * 500 * time)
    soundfile.write(source / "a.flac", 0.2 * left, 24_000)
    soundfile.write(source / "b.wav", np.stack([0.2 * left, right], 1), 24_000)
    arguments = ["generate", "clips", str(source), str(captions), str(output), "--seconds", "0.5"]
    assert main(arguments) == 2 and "holds no clip birds/c" in line_of(capsys)
    soundfile.write(source / "birds" / "c.wav", 0.3 * left[:2_000], 8_000)
    assert main([*arguments, "--peak", "null", "--sample-rate", "24000"]) == 0
    clips = {name: read_audio(path)[0][:, 0] for name, path in clip_files(output).items()}
    assert all(len(clip) == 12_000 for clip in clips.values())
    expected = 0.2 * left[:12_000]
    assert np.abs(clips["a"] - expected).max() < 1e-3
    assert np.abs(clips["b"] - (expected + right[:12_000]) / 2).max() < 1e-3  # the mean of its channels
    assert not clips["birds/c"][6_100:].any() and clips["birds/c"][:5_900].any()  # shorter: zeros at its end


def test_what_is_wrong_is_one_line(folder_of, captions, tmp_path, capsys):
    folder, output = str(folder_of("longcat")), str(tmp_path / "clips")

    def said(system: str, source: str, *more: str, file: Path = captions) -> str:
        assert main(["generate", system, source, str(file), output, "--device", "cpu", *more]) == 2
        return line_of(capsys)

    assert "did you mean 'audioldm'" in said("audioldn", folder)
    assert "did you mean 'guidance_scale'" in said("longcat", folder, "guidance=3")
    assert "it has none" in said("clips", folder, "guidance_scale=3")
    assert "a whole number" in said("longcat", folder, "num_inference_steps=many")
    assert "at least 1" in said("longcat", folder, "num_inference_steps=0")
    assert "at least 0" in said("longcat", folder, "guidance_scale=nan")
    assert "30 s at most" in said("longcat", folder, "--seconds", "31")
    assert "stable-audio: " in said("stable-audio", str(folder_of("stable-audio")), "--seconds", "600")
    assert "holds a LongCatAudioDiTPipeline" in said("riffusion", folder)
    assert "seconds=-1.0" in said("longcat", folder, "--seconds", "-1")
    assert "no such file" in said("longcat", folder, file=tmp_path / "none.csv")
    bad = tmp_path / "bad.csv"
    bad.write_text("filename,text\na.wav,rain\n")
    assert "no column caption" in said("longcat", folder, file=bad)
    bad.write_text("filename,caption\n../a.wav,rain\n")
    assert "leads out" in said("longcat", folder, file=bad)
    assert not clip_files_in(Path(output))


def clip_files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix == ".wav"]


def test_speech_says_what_package_is_missing(folder_of, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.systems.fastspeech2.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install g2p-en"):
        opened("fastspeech2", folder_of("fastspeech2"))
    BUILDERS["vits"](tmp_path / "vits")
    config = tmp_path / "vits" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"phonemize": false', '"phonemize": true'))
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # cannot be imported
    prepare_espeak.cache_clear()
    with pytest.raises(UserError, match="espeakng_loader"):
        opened("vits", tmp_path / "vits")


def test_pickled_weights_are_not_opened(folder_of, tmp_path):
    BUILDERS["longcat"](tmp_path / "pickled")
    weights = tmp_path / "pickled" / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot load LongCatAudioDiTPipeline"):
        opened("longcat", tmp_path / "pickled")
    BUILDERS["vits"](tmp_path / "vits")
    weights = tmp_path / "vits" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot load VitsModel"):
        opened("vits", tmp_path / "vits")


def toy(made: list[torch.Tensor | BaseException]) -> Opener:
    """A system whose clips are given, one a call."""

    def make(request: Request, seconds: float) -> torch.Tensor:
        clip = made.pop(0)
        if isinstance(clip, BaseException):
            raise clip
        return clip

    return Opener("toy", lambda source, device, settings: System(16_000, one_by_one(make)), None)


def test_a_killed_run_goes_on_where_it_was(captions, tmp_path):
    output, options = tmp_path / "clips", ClipOptions(seconds=0.1, batch_size=1)
    clip = torch.randn(1_600, generator=torch.Generator().manual_seed(0))
    with pytest.raises(KeyboardInterrupt):
        generate_clips(toy([clip, KeyboardInterrupt()]), "toy", captions, output, options)
    assert [path.name for path in output.rglob("*") if path.suffix in (".wav", ".part")] == ["a.wav"]
    assert generate_clips(toy([clip, clip]), "toy", captions, output, options) == (2, 1)


def test_a_clip_that_is_not_finite_is_not_written(captions, tmp_path):
    with pytest.raises(UserError, match="not finite"):
        generate_clips(
            toy([torch.full((9,), torch.nan)]), "toy", captions, tmp_path / "clips", ClipOptions(batch_size=1)
        )
    assert not clip_files_in(tmp_path / "clips")


def test_a_new_system_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "toy_system.py").write_text(
        "import torch\nfrom evaluation.systems.system import Opener, System\n\n"
        "def open_toy(source, device, settings):\n"
        "    return System(8_000, lambda requests, seconds: [torch.ones(9) for _ in requests])\n\n"
        'TOY = Opener("toy", open_toy, None)\n'
    )
    monkeypatch.setattr(evaluation.systems, "__path__", [*evaluation.systems.__path__, str(tmp_path)])
    found = {opener.name for _, opener in members("evaluation.systems", evaluation.systems.__path__, Opener)}
    assert found == {*SYSTEMS, "toy"}


def test_every_system_is_tested():
    assert set(SYSTEMS) == {*BUILDERS, "ours", "clips"}
