"""Folders to results: pairing, reproducibility, comparison, and whether scores rank real degradations in order."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.compare import compare, read_result
from evaluation.features import encode_files, load_ahead, prepare_windows
from evaluation.folders import clip_files, read_names
from evaluation.metrics.embeddings import BACKENDS
from evaluation.metrics.kl import kl_of_logits
from evaluation.metrics.metric import Material
from evaluation.metrics.wer import WER
from evaluation.pairs import Inputs, clip_warnings, pair_up
from evaluation.protocols import AudioSettings, ModelSettings, Protocol, load_protocol
from evaluation.score import ScoreOptions, score_folders
from evaluation.sound_classifier import SoundClassifier, SoundClassifierConfig

RATE = 16_000
NUM_CLIPS = 12


def write_clips(folder: Path, noise: float, seconds: float = 1.0) -> Path:
    """12 tones under their own noise of the same seed; names in two folders."""
    draw = np.random.default_rng(0)
    for number in range(NUM_CLIPS):
        time = np.arange(round(seconds * RATE)) / RATE
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * number) * time)
        path = folder / f"{'ab'[number % 2]}" / f"{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone + noise * draw.normal(size=len(time)), RATE)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = SoundClassifierConfig(AudioConfig(), classes=["bell", "rain", "dog"], channels=[4, 8], embedding_size=8)
    SoundClassifier(config).save(folder / "report")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("audio")
    return {name: write_clips(folder / name, noise) for name, noise in (("real", 0.0), ("near", 0.01), ("far", 0.3))}


@pytest.fixture
def options(weights) -> ScoreOptions:
    return ScoreOptions(weights, resamples=40, batch_size=5)


def test_names_pair_across_formats_and_orders(tmp_path, folders):
    for path in sorted(folders["real"].rglob("*.wav"), reverse=True):
        target = tmp_path / "flac" / path.relative_to(folders["real"]).with_suffix(".flac")
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, soundfile.read(path)[0], RATE)
    pairs = pair_up(Inputs(folders["near"], tmp_path / "flac"), Protocol())
    assert pairs.names == sorted(pairs.names) and len(pairs.names) == NUM_CLIPS
    assert [p.stem for p in pairs.generated] == [p.stem for p in pairs.reference]
    assert pairs.missing == {"generated": [], "reference": []}


def test_names_pair_across_unicode_forms_and_hidden_files_are_none(tmp_path, folders):
    """A Mac writes é as two characters, and a ._ file beside each on other systems' disks."""
    sound, rate = soundfile.read(next(folders["real"].rglob("*.wav")))
    for side, form in (("generated", "NFD"), ("reference", "NFC")):
        (tmp_path / side).mkdir()
        soundfile.write(tmp_path / side / unicodedata.normalize(form, "café.wav"), sound, rate)
        (tmp_path / side / "._café.wav").write_bytes(b"\0\5\x16\7")
    captions = tmp_path / "captions.csv"
    captions.write_text(f"filename,caption\n{unicodedata.normalize('NFD', 'café.wav')},a cup\n", encoding="utf-8")
    pairs = pair_up(Inputs(tmp_path / "generated", tmp_path / "reference", captions), load_protocol("classifier"))
    assert pairs.names == [unicodedata.normalize("NFC", "café")] and pairs.captions == [["a cup"]]


def test_missing_names_are_errors_beyond_the_protocols_share(tmp_path, folders):
    write_clips(tmp_path, 0.1)
    (tmp_path / "a" / "00.wav").unlink()
    with pytest.raises(UserError, match=r"only 11 of 12 names .* generated misses 1, first 'a/00'"):
        pair_up(Inputs(tmp_path, folders["real"]), Protocol())
    pairs = pair_up(Inputs(tmp_path, folders["real"]), Protocol(min_paired=0.9))
    assert pairs.missing == {"generated": ["a/00"], "reference": []} and "a/00" not in pairs.names
    (tmp_path / "a" / "02.wav").rename(tmp_path / "a" / "shifted.wav")
    with pytest.raises(UserError, match="only 10 of 13"):
        pair_up(Inputs(tmp_path, folders["real"]), Protocol(min_paired=0.9))


def test_folders_that_cannot_be_scored(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        clip_files(tmp_path / "none")
    with pytest.raises(UserError, match="holds no audio"):
        clip_files(tmp_path)
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / f"a.{suffix}", np.zeros(10), RATE)
    with pytest.raises(UserError, match="are one name"):
        clip_files(tmp_path)


def test_clips_that_say_little_are_told(tmp_path):
    rng = np.random.default_rng(0)
    sounds = {"a": rng.uniform(-0.5, 0.5, RATE), "b": np.full(RATE, 0.1), "c": rng.uniform(-0.5, 0.5, RATE // 100)}
    paths = [tmp_path / f"{name}.wav" for name in sounds]
    for path, sound in zip(paths, sounds.values()):
        soundfile.write(path, sound, RATE)
    assert clip_warnings("generated", list(sounds), paths) == [
        "generated: 1 of 3 clips are silent, first 'b'",
        "generated: 1 of 3 clips are shorter than 0.1 s, first 'c'",
    ]
    assert clip_warnings("reference", ["a"], paths[:1]) == []
    assert clip_warnings("reference", ["a", "b", "c"], [paths[0]] * 3) == ["reference: 3 of 3 clips are the same sound"]


def test_a_silent_first_channel_is_not_what_is_read(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([np.zeros(RATE), sound], axis=1), RATE)
    (read,) = prepare_windows(tmp_path / "a.wav", AudioSettings(channel="first"), RATE)
    np.testing.assert_allclose(read, sound, atol=1e-4)


def test_captions_of_a_clip_stay_together(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text('filename,caption\na/1.wav,"rain, then a bell"\nv1.5,a dog\na/1.wav,rain\n')
    assert read_names(path, "caption") == {"a/1": ["rain, then a bell", "rain"], "v1.5": ["a dog"]}
    path.write_text("file,text\na,b\n")
    with pytest.raises(UserError, match="columns filename and caption"):
        read_names(path, "caption")
    path.write_text("filename,caption\n")
    with pytest.raises(UserError, match="holds no captions"):
        read_names(path, "caption")


@pytest.mark.parametrize(
    "row, message",
    [
        ("b.wav,a bell rings, then rain", "line 3: more cells than columns"),  # the caption would be "a bell rings"
        ('b.wav,"a bell rings', "line 3: no row of CSV"),
        ("b.wav, ", "line 3: needs the columns"),
        (" ,a bell", "line 3: needs the columns"),
        ("b.wav,caf\ufffd", "line 3: needs the columns"),
        ("b.wav", "line 3: the row is cut off"),
    ],
)
def test_captions_that_would_be_misread_are_refused(tmp_path, row, message):
    path = tmp_path / "captions.csv"
    path.write_text(f"\ufefffilename,caption\na.wav,rain\n{row}\nc.wav,wind\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_names(path, "caption")


def test_batches_do_not_change_what_is_read(weights, folders, tmp_path):
    """Windows of clips of unlike lengths land in their own clip, whatever the batch."""
    paths = sorted(folders["near"].rglob("*.wav"))[:3]
    for number, seconds in enumerate((2.5, 0.7)):
        paths.insert(1, next(write_clips(tmp_path / str(number), 0.1, seconds).rglob("*.wav")))
    settings = ModelSettings("classifier", "report")
    settings.audio.window_seconds = 1.0
    backend = BACKENDS["classifier"].load(weights / "report", "cpu")
    together = encode_files(paths, settings, backend, batch_size=4)
    assert together.logits and together.logits.counts.tolist() == [1, 1, 3, 1, 1]
    for clip, path in enumerate(paths):
        alone = encode_files([path], settings, backend, batch_size=1)
        np.testing.assert_allclose(together.embeddings.take(np.array([clip])), alone.embeddings.rows, atol=1e-5)


def test_files_are_read_in_order_and_only_a_few_ahead():
    begun = []

    def load(path: Path) -> list[np.ndarray]:
        begun.append(path)
        return [np.array([int(path.name)])]

    for number, (piece,) in enumerate(load_ahead(load, [Path(str(n)) for n in range(100)], num_workers=2)):
        assert piece[0] == number and number < len(begun) <= number + 1 + 4 * 2
    assert len(begun) == 100


def test_result_says_what_it_is_of_and_comes_out_the_same_twice(folders, options):
    results = []
    for _ in range(2):
        result, samples = score_folders(Inputs(folders["near"], folders["real"]), "classifier", options)
        assert result.pop("seconds") > 0
        results.append((json.dumps(result), {name: array.tobytes() for name, array in samples.items()}))
    assert results[0] == results[1]
    result = json.loads(results[0][0])
    assert result["protocol"] == "classifier" and result["protocol_sha256"] == load_protocol("classifier").digest
    assert result["num_clips"] == NUM_CLIPS and result["sample_rates"] == {"generated": [RATE], "reference": [RATE]}
    assert set(result["weights"]["classifier"]) == {"report/classifier.json", "report/classifier.safetensors"}
    assert result["versions"]["numpy"] == np.__version__
    assert any("12 embeddings of 8 dimensions are few" in line for line in result["warnings"])
    scores = result["scores"]
    assert scores["kl"]["low"] < scores["kl"]["value"] < scores["kl"]["high"]
    assert np.mean(list(scores["kl"]["per_clip"].values())) == pytest.approx(scores["kl"]["value"])
    assert scores["fd"]["against_n"][-1] == [NUM_CLIPS, pytest.approx(scores["fd"]["value"])]


def test_a_folder_against_itself(folders, options):
    options.resamples = 0
    result, _ = score_folders(Inputs(folders["real"], folders["real"]), "classifier", options)
    assert result["scores"]["fd"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert result["scores"]["kl"]["value"] == pytest.approx(0.0, abs=1e-12)
    assert result["scores"]["kl"]["low"] is None and result["scores"]["fd"]["high"] is None


def test_windows_as_samples_are_weighed_alike(folders, options, tmp_path):
    (tmp_path / "windows.yaml").write_text(
        "windows:\n  models:\n"
        "    j: {backend: classifier, weights: report, audio: {window_seconds: 0.6, pad_window: false}}\n"
        "  scores: {kl: {kind: kl, model: j, sample: window, epsilon: 1.0e-6}}\n"
    )
    result, _ = score_folders(Inputs(folders["far"], folders["real"]), str(tmp_path / "windows.yaml"), options)
    settings = ModelSettings("classifier", "report")
    settings.audio.window_seconds, settings.audio.pad_window = 0.6, False
    backend = BACKENDS["classifier"].load(options.weights / "report", "cpu")
    sides = [encode_files(sorted(folders[name].rglob("*.wav")), settings, backend).logits for name in ("real", "far")]
    assert sides[0] and sides[1]
    expected = kl_of_logits(sides[0].rows, sides[1].rows, epsilon=1e-6).mean()
    assert result["scores"]["kl"]["value"] == pytest.approx(expected, rel=1e-6)


def test_speech_is_scored_with_any_recogniser(folders, tmp_path):
    lines = [f"{'ab'[n % 2]}/{n:02}.wav,number {n} is spoken" for n in range(NUM_CLIPS)]
    (tmp_path / "transcripts.csv").write_text("\n".join(["filename,caption", *lines]))
    pairs = pair_up(Inputs(folders["near"], captions=tmp_path / "transcripts.csv"), Protocol())
    recognised = [f"number {int(path.stem)} was spoken" for path in pairs.generated]
    material = Material(pairs.names, captions=pairs.captions, transcripts=recognised)
    measured = WER.compute(material, WER.settings())
    assert WER.interval(measured.samples, NUM_CLIPS, 40).value == pytest.approx(0.25)


def run(folders, weights, tmp_path, name: str, protocol: str = "classifier") -> Path:
    output = tmp_path / f"{name}.{Path(protocol).stem}.json"
    arguments = [str(folders[name]), "--reference", str(folders["real"]), "--protocol", protocol, "--resamples", "40"]
    assert main(["score", *arguments, "--weights", str(weights), "--output", str(output)]) == 0
    return output


def test_command_line_scores_and_compares(folders, weights, tmp_path, capsys):
    near, far = (run(folders, weights, tmp_path, name) for name in ("near", "far"))
    assert "95 % interval" in (printed := capsys.readouterr().out) and str(near) in printed
    found = compare(read_result(far), read_result(near))
    scores = [json.loads(path.read_text())["scores"] for path in (far, near)]
    for name in ("fd", "kl", "is"):
        assert found[name].value == pytest.approx(scores[0][name]["value"] - scores[1][name]["value"])
    assert found["fd"].low > 0 and found["kl"].excludes_zero
    assert main(["compare", str(far), str(near)]) == 0
    assert "different" in capsys.readouterr().out
    assert main(["score", str(folders["near"]), "--protocol", "classifier", "--weights", str(weights)]) == 2
    assert "score fd of protocol classifier needs --reference" in capsys.readouterr().err
    arguments = ["score", str(folders["near"]), "--protocol", "classifier", "--weights", str(weights)]
    with pytest.raises(SystemExit):
        main([*arguments, "--output", "result.txt"])
    assert "does not end in .json" in capsys.readouterr().err
    assert main([*arguments, "--device", "tpu"]) == main([*arguments, "--batch-size", "0"]) == 2
    assert "--device tpu: " in (error := capsys.readouterr().err) and "at least 1" in error
    arguments = [str(folders["near"]), "--reference", str(folders["real"]), "--weights", str(tmp_path)]
    assert main(["score", *arguments, "--protocol", "audiogen"]) == 2
    assert "score clap of protocol audiogen needs --captions" in capsys.readouterr().err
    assert main(["score", *arguments, "--protocol", "audiogen", "--captions", "captions.csv"]) == 2
    assert "vggish-10086976.pth: not there; put https" in capsys.readouterr().err


def test_unlike_results_are_not_compared(folders, weights, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(
        "mine:\n  models: {classifier: {backend: classifier, weights: report}}\n"
        "  scores: {kl: {kind: kl, model: classifier, epsilon: 1.0e-6}}\n"
    )
    near, other = (run(folders, weights, tmp_path, "near", p) for p in ("classifier", str(tmp_path / "mine.yaml")))
    capsys.readouterr()
    assert main(["compare", str(near), str(other)]) == 2
    error = capsys.readouterr().err
    assert "not comparable: protocol_settings" in error and "scores.kl.epsilon: 0.0 / 1e-06" in error
    result, samples = read_result(near)
    for change, message in (
        ({"clips": result["clips"][1:]}, "1 clips are in one result only, first 'a/00'"),
        ({"weights": {"classifier": {"classifier.json": "0"}}}, "weights: classifier"),
        ({"sha256": result["sha256"] | {"reference": "0"}}, r"sha256\.reference"),
    ):
        with pytest.raises(UserError, match=message):
            compare((result, samples), (result | change, samples))
    with pytest.raises(UserError, match="no result"):
        read_result(tmp_path / "none.json")
