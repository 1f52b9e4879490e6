import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from tiny_corpus import AUDIO, PerfectModel

from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.benchmark import settings_against_presets, write_benchmark
from evaluation.benchmark_audio import BenchmarkOptions, read_test_clips
from evaluation.benchmark_page import beside, tagged_clips
from evaluation.judge import JudgeConfig, load_or_train_judge
from evaluation.score import ScoreOptions


class Model(PerfectModel):
    """Gives back each prompt's clip under noise."""

    is_speech = False

    def __init__(self, split, noise: float):
        super().__init__(split)
        self.noise = noise

    def generate(self, *arguments, **named):
        waveform = super().generate(*arguments, **named)
        draw = torch.Generator().manual_seed(0)
        return (waveform + self.noise * torch.randn(waveform.shape, generator=draw)).clamp(-1, 1)


@pytest.fixture(scope="module")
def weights(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    config = JudgeConfig(AUDIO, channels=[8, 16, 16], embedding_size=8, batches=30, batch_size=12)
    load_or_train_judge(corpus / "judge", folder / "report", config)
    return folder


@pytest.fixture
def options(weights) -> BenchmarkOptions:
    scoring = ScoreOptions(weights=weights, resamples=20, num_workers=1)
    return BenchmarkOptions("judge", batch_size=16, device="cpu", score=scoring)


@pytest.fixture
def other(experiment):
    """The same experiment with another model."""
    other = copy.copy(experiment)  # `replace` would check that the parts fit, which these never do
    other.name = "noisy"
    (other.run_folder / "model").mkdir(parents=True)
    (other.run_folder / "model" / "config.json").write_text("{}")
    return other


def test_benchmark_end_to_end(experiment, other, corpus, options, tmp_path):
    models = {"tiny": Model(corpus / "test", 0.0), "noisy": Model(corpus / "test", 0.3)}

    def write(*experiments):
        return write_benchmark(
            list(experiments), options, tmp_path / "page" / "both.html", lambda folder, _: models[folder.parent.name]
        )

    results = write(experiment, other)
    assert json.loads(json.dumps(results)) == json.loads((tmp_path / "page" / "both.json").read_text())
    tiny, noisy = (results["systems"][name]["scores"] for name in ("tiny", "noisy"))
    assert tiny["fd"]["value"] < 0.05 * noisy["fd"]["value"] and tiny["kl"]["value"] < 0.1 * noisy["kl"]["value"]
    (difference,) = results["differences"]
    assert (difference["first"], difference["second"], difference["refused"]) == ("tiny", "noisy", None)
    assert difference["scores"]["kl"]["apart"] and difference["scores"]["kl"]["high"] < 0
    assert results["systems"]["tiny"]["num_clips"] == 30
    assert results["systems"]["tiny"]["generated"].endswith("benchmark/text_to_audio")
    assert (experiment.run_folder / "benchmark" / "judge.npz").is_file()
    check_page((tmp_path / "page" / "both.html").read_text())

    assert models["tiny"].num_generated == 30
    next((experiment.run_folder / "benchmark" / "text_to_audio").iterdir()).unlink()
    options.clips = 12  # fewer than there are: the others stay, and are not scored
    again = write(experiment)
    assert models["tiny"].num_generated <= 31 and again["systems"]["tiny"]["num_clips"] == 12
    (experiment.run_folder / "model" / "vae" / "config.json").write_text('{"other": 1}')
    before = models["tiny"].num_generated
    write(experiment)
    assert models["tiny"].num_generated == before + 12  # another model: nothing is kept


def check_page(page: str) -> None:
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    assert set(sections) == {"measured", "published", "listen", "settings", "provenance"}
    assert "TANGO" in sections["published"] and "1.67" in sections["published"] and "Table V" in sections["published"]
    assert "TANGO" not in sections["measured"] and "noisy" not in sections["published"]
    assert "noisy" in sections["measured"] and "apart" in sections["measured"]
    assert sections["listen"].count("<audio ") == sections["listen"].count("<img ") == 3 * page.count("<article>")
    assert "drawn at random" in sections["listen"] and "worst kl of noisy" in sections["listen"]
    assert "&lt;loud&gt;" in page and "<loud>" not in page
    assert "audio.clip_seconds" in sections["settings"] and "judge.safetensors" in sections["provenance"]
    assert "http:" not in page and "https:" not in page and "file:" not in page and "$" not in page


def test_results_on_other_clips_are_not_compared(experiment, other, corpus, options, tmp_path):
    other.data = replace(other.data, test=str(corpus / "judge"))
    options.clips = 10
    models = {"tiny": Model(corpus / "test", 0.1), "noisy": Model(corpus / "judge", 0.1)}
    results = write_benchmark(
        [experiment, other], options, tmp_path / "page.html", lambda folder, _: models[folder.parent.name]
    )
    assert "not comparable" in results["differences"][0]["refused"]
    assert "not comparable" in (tmp_path / "page.html").read_text()


def test_what_is_missing_is_told_before_anything_is_generated(experiment, corpus, options, tmp_path):
    def write(**changes):
        write_benchmark(
            [experiment], replace(options, **changes), tmp_path / "page.html", lambda *_: pytest.fail("open")
        )

    with pytest.raises(UserError, match=r"vggish-10086976\.pth"):
        write(protocol="audioldm2-paper")
    with pytest.raises(UserError, match=r"--figures dreams: .* guidance, reconstruction, tsne, continuation"):
        write(figures=["dreams"])
    with pytest.raises(UserError, match="--clips"):
        write(clips=1)
    with pytest.raises(UserError, match=r"index\.json is missing"):
        write(test_set=tmp_path)
    with pytest.raises(UserError, match="two have one name"):
        write_benchmark([experiment, experiment], options, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_larger_draw_of_clips_holds_a_smaller_one(corpus):
    few, more = ([clip.key for clip in read_test_clips(corpus / "test", AUDIO, n)] for n in (5, 12))
    assert len(few) == 5 and len(more) == 12 and set(few) < set(more) and more == sorted(more)
    clip = next(read_test_clips(corpus / "test", replace(AUDIO, peak=0.1)))
    assert abs(clip.waveform).max() == pytest.approx(0.1, abs=1e-3) and abs(clip.stored).max() > 0.3
    assert clip.captions == [clip.text] and clip.stored_rate == AUDIO.sample_rate


def test_worst_and_best_follow_the_score():
    kinds = {"kl": {"kind": "kl"}, "clap": {"kind": "clap"}}
    per_clip = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    result = {
        "protocol_settings": {"scores": kinds},
        "clips": list(per_clip),
        "scores": {"kl": {"per_clip": per_clip}, "clap": {"per_clip": {**per_clip, "d": None}}},
    }
    tags = tagged_clips({"ours": result})
    assert "worst kl of ours: 4" in tags["d"] and "worst kl of ours: 3" in tags["c"]
    assert "best kl of ours: 1" in tags["a"] and "worst clap of ours: 1" in tags["a"]
    assert "best clap of ours: 3" in tags["c"]
    assert sum("drawn at random" in tag for tag in tags.values()) == 2


def test_settings_that_equal_both_presets_are_left_out(experiment):
    settings = settings_against_presets([experiment])
    assert settings["columns"] == ["tiny", "paper", "official"]
    assert settings["rows"]["audio.clip_seconds"] == ["0.64", "10.24", "10.24"]
    assert settings["rows"]["audiomae.loa_layers"] == ["3", "16", "3"]
    assert "audio.hop_length" not in settings["rows"] and "name" not in settings["rows"]


def test_command_line(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nruns: {tmp_path}\n")
    for arguments, told in (
        ([path, "--clips", "5"], "--clips needs --protocol"),
        ([path, "--protocol", "judge", "--order-clips", "5"], "--order-clips goes without --protocol"),
        ([path, path], "give --protocol"),
        (["seed=1"], "name an experiment"),
        ([path, "name=other", "--protocol", "judge", "--weights", tmp_path], "no such checkpoint|report"),
        ([path, "--protocol", "nothing"], "no protocol 'nothing'"),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        assert re.search(told, capsys.readouterr().err)


def test_a_score_beside_its_interval_is_explained():
    scores = {
        "fd": {"value": 9.4, "low": 5.0, "high": 8.0},
        "kl": {"value": 1.0, "low": 0.9, "high": 1.1},
        "bare": {"value": 1.0, "low": None, "high": None},
    }
    (line,) = beside({"scores": scores})
    assert line.startswith("fd 9.4 lies outside its interval [5, 8]")
