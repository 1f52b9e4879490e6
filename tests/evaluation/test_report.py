import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from tiny_corpus import AUDIO, PerfectModel

from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.report import ReportOptions, write_report
from evaluation.report.audio import read_test_clips
from evaluation.report.classification import TARGETS, compare_with_targets
from evaluation.report.costs import loss_curves
from evaluation.report.report import settings_against_presets
from evaluation.report.sections import outside_notes
from evaluation.report.sounds import tagged_clips
from evaluation.score import ScoreOptions

SCORING = ScoreOptions(resamples=20, num_workers=1)
LABELLED = ReportOptions(clips_per_class=4, order_clips=6, batch_size=5, device="cpu", score=SCORING)


class Model(PerfectModel):
    """Gives back each prompt's clip under noise."""

    def __init__(self, split, noise: float):
        super().__init__(split)
        self.noise = noise

    def generate(self, *arguments, **named):
        waveform = super().generate(*arguments, **named)
        draw = torch.Generator().manual_seed(0)
        return (waveform + self.noise * torch.randn(waveform.shape, generator=draw)).clamp(-1, 1)


@pytest.fixture
def options() -> ReportOptions:
    return ReportOptions("classifier", batch_size=16, device="cpu", score=SCORING)


@pytest.fixture
def other(experiment):
    """The same experiment with another model."""
    other = copy.copy(experiment)  # `replace` would check that the parts fit, which these never do
    other.name = "noisy"
    (other.run_folder / "model").mkdir(parents=True)
    (other.run_folder / "model" / "config.json").write_text("{}")
    return other


def add_stage(experiment, name: str, **facts) -> None:
    folder = experiment.run_folder / "stages"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"seconds": 12.5, "batches": 10, **facts}))
    logs = experiment.run_folder / "logs" / name
    logs.mkdir(parents=True)
    rows = [f"{i},train/reconstruction,{1 / (i + 1)}" for i in range(30)]
    (logs / "metrics.csv").write_text("\n".join(["batch,name,value", *rows, "29,train/kl,nan"]))


def sections_of(page: str) -> dict[str, str]:
    assert "http:" not in page and "https:" not in page and "file:" not in page
    assert "&lt;loud&gt;" in page and "<loud>" not in page
    return dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))


def test_classification_end_to_end(experiment, corpus, classifier_config, capsys):
    add_stage(experiment, "vae", peak_memory_gib=99.0)
    add_stage(experiment, "ldm", peak_memory_gib=1.0, peak_gpu_memory_gib=7.25)
    model = PerfectModel(corpus / "test")

    def write(options=LABELLED):
        return write_report([experiment], options, None, lambda folder, device: model, classifier_config)

    results = write()
    folder = experiment.run_folder / "report"
    assert json.loads(json.dumps(results)) == json.loads((folder / "report.json").read_text())
    scores = results["class_accuracy"]
    assert scores.pop("shuffled_captions") == 0.0
    assert scores == dict.fromkeys(("real", "reconstruction", "loa_to_audio", "text_to_audio"), 1.0)
    assert {name: r["scores"]["class_accuracy"]["value"] for name, r in results["systems"].items()} == scores
    assert results["order_accuracy"] == {"real": 1.0, "text_to_audio": 1.0}
    assert results["num_clips"] == {"class_accuracy": 12, "order_accuracy": 6}
    assert results["missed_targets"] == ["peak_memory_gib"]
    assert results["log_mel_distance_db"]["reconstruction"] < 0.5
    assert results["seconds"]["vae"] == 12.5 and results["peak_memory_gib"] == 99.0
    parts = [value for name, value in results["seconds"].items() if name != "total"]
    assert results["seconds"]["total"] == pytest.approx(sum(parts))
    assert str(folder / "report.html") in (printed := capsys.readouterr().out)
    assert "class_accuracy.text_to_audio" in printed and "6: MISSED" in printed
    check_classification_page((folder / "report.html").read_text())

    assert model.num_generated == 36  # 18 clips from LOA and from text
    (folder / "audio" / "text_to_audio" / "clip-2-000.flac").unlink()
    again = write()
    assert model.num_generated == 37
    assert again["class_accuracy"]["text_to_audio"] == 1.0
    training = json.loads((folder / "classifier.json").read_text())["seconds"]
    assert again["seconds"]["report"] > training  # what an earlier report spent counts too

    (experiment.run_folder / "model" / "vae" / "config.json").write_text('{"other": 1}')
    write()
    assert model.num_generated == 37 + 36  # another model: nothing is used again
    classifier_config.batches = 2
    write(replace(LABELLED, clips_per_class=1, order_clips=1, fresh=True))
    assert model.num_generated == 37 + 36 + 8


def check_classification_page(page: str) -> None:
    sections = sections_of(page)
    assert list(sections) == ["scores", "listen", "classes", "losses", "cost", "settings", "provenance"]
    assert page.count("<article>") == 3 * 2 + 6
    listen = sections["listen"]
    assert listen.count("<audio ") == listen.count('<img class="mel"') == 4 * page.count("<article>")
    assert "reconstruction" in sections["losses"] and "svg+xml" in sections["losses"]
    assert "guidance_scale" in sections["provenance"] and "classifier.safetensors" in sections["provenance"]
    assert "10 of 11 targets reached" in page and "<b>99.00 GiB</b></td><td>≤ 6 GiB" in page and "≤ 20 min 00 s" in page
    assert "Peak GPU memory" in sections["cost"] and "7.25 GiB" in sections["cost"]
    assert "RMS" in sections["scores"] and "Class accuracy: Wilson" in sections["scores"].replace("&#39;", "'")
    assert re.search(r"<b>1</b> <small>\[0\.\d+, 1\]</small>", sections["scores"])


def test_silent_generations_miss_the_targets(experiment, corpus, classifier_config):
    model = PerfectModel(corpus / "test")
    classifier_config.batches = 2
    model.clips = {text: torch.zeros_like(waveform) for text, waveform in model.clips.items()}
    results = write_report([experiment], LABELLED, None, lambda folder, device: model, classifier_config)
    assert "class_accuracy.text_to_audio" in results["missed_targets"]
    assert "order_accuracy.text_to_audio" in results["missed_targets"]
    assert results["levels"]["text_to_audio"]["share_of_silent_clips"] == 1.0
    assert "missed" in (experiment.run_folder / "report" / "report.html").read_text()


def test_bursts_that_no_classifier_hears_miss_a_target(experiment, corpus, classifier_config):
    """The first 5 ms of every generated clip at full scale: the class stays, the target of clipped samples does not."""
    model = PerfectModel(corpus / "test")
    for waveform in model.clips.values():
        waveform[:80] = 2.0
    results = write_report([experiment], LABELLED, None, lambda folder, device: model, classifier_config)
    assert "levels.text_to_audio.share_of_clipped_samples" in results["missed_targets"]
    assert "levels.reconstruction.share_of_clipped_samples" not in results["missed_targets"]
    assert "Clipped samples <small>" in (experiment.run_folder / "report" / "report.html").read_text()


def test_unmeasured_scores_are_neither_hit_nor_missed():
    nothing: dict = {}
    for key in TARGETS:
        *groups, name = key.split(".")
        place = nothing
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = None
    assert all(target["reached"] is None for target in compare_with_targets(nothing).values())


def test_two_experiments_end_to_end(experiment, other, corpus, options, classifier_config, tmp_path):
    models = {"tiny": Model(corpus / "test", 0.0), "noisy": Model(corpus / "test", 0.3)}

    def write(*experiments):
        output = tmp_path / "page" / "both.html"
        return write_report(
            list(experiments), options, output, lambda folder, _: models[folder.parent.name], classifier_config
        )

    results = write(experiment, other)
    assert json.loads(json.dumps(results)) == json.loads((tmp_path / "page" / "both.json").read_text())
    tiny, noisy = (results["systems"][name]["scores"] for name in ("tiny", "noisy"))
    assert tiny["fd"]["value"] < 0.05 * noisy["fd"]["value"] and tiny["kl"]["value"] < 0.1 * noisy["kl"]["value"]
    (difference,) = results["differences"]
    assert (difference["first"], difference["second"], difference["refused"]) == ("tiny", "noisy", None)
    assert difference["scores"]["kl"]["different"] and difference["scores"]["kl"]["high"] < 0
    assert results["systems"]["tiny"]["num_clips"] == 30
    assert results["systems"]["tiny"]["generated"].endswith("report/audio/text_to_audio")
    assert (experiment.run_folder / "report" / "scores" / "classifier.text_to_audio.npz").is_file()
    check_comparison_page((tmp_path / "page" / "both.html").read_text())

    assert models["tiny"].num_generated == 30
    next((experiment.run_folder / "report" / "audio" / "text_to_audio").iterdir()).unlink()
    options.clips = 12  # fewer than there are: the others stay, and are not scored
    again = write(experiment)
    assert models["tiny"].num_generated <= 31 and again["systems"]["tiny"]["num_clips"] == 12
    (experiment.run_folder / "model" / "vae" / "config.json").write_text('{"other": 1}')
    before = models["tiny"].num_generated
    write(experiment)
    assert models["tiny"].num_generated == before + 12  # another model: nothing is used again


def check_comparison_page(page: str) -> None:
    sections = sections_of(page)
    assert list(sections) == ["scores", "published", "listen", "losses", "cost", "settings", "provenance"]
    assert "TANGO" in sections["published"] and "1.67" in sections["published"] and "Table V" in sections["published"]
    assert "TANGO" not in sections["scores"] and "noisy" not in sections["published"]
    assert "noisy" in sections["scores"] and "different" in sections["scores"] and "nats" in sections["scores"]
    assert sections["listen"].count("<audio ") == sections["listen"].count("<img ") == 3 * page.count("<article>")
    assert "drawn at random" in sections["listen"] and "worst kl of noisy" in sections["listen"]
    assert "audio.clip_seconds" in sections["settings"] and "classifier.safetensors" in sections["provenance"]


def test_results_on_other_clips_are_not_compared(experiment, other, corpus, options, classifier_config, tmp_path):
    other.data = replace(other.data, test=str(corpus / "judge"))
    options.clips = 10
    models = {"tiny": Model(corpus / "test", 0.1), "noisy": Model(corpus / "judge", 0.1)}
    results = write_report(
        [experiment, other],
        options,
        tmp_path / "page.html",
        lambda folder, _: models[folder.parent.name],
        classifier_config,
    )
    assert "not comparable" in results["differences"][0]["refused"]
    assert "not comparable" in (tmp_path / "page.html").read_text()


def test_missing_inputs_are_named_before_anything_is_generated(experiment, options, tmp_path):
    def write(**changes):
        write_report([experiment], replace(options, **changes), tmp_path / "page.html", lambda *_: pytest.fail("open"))

    with pytest.raises(UserError, match=r"vggish-10086976\.pth"):
        write(protocol="audioldm2-paper")
    with pytest.raises(UserError, match=r"--figures dreams: .* guidance, reconstruction, tsne, continuation"):
        write(figures=["dreams"])
    with pytest.raises(UserError, match="--clips"):
        write(clips=1)
    with pytest.raises(UserError, match=r"index\.json is missing"):
        write(test_set=tmp_path)
    with pytest.raises(UserError, match="two have one name"):
        write_report([experiment, experiment], options, tmp_path / "page.html")
    with pytest.raises(UserError, match="give --protocol"):
        write_report([experiment, experiment], LABELLED)
    experiment.data.judge = None
    with pytest.raises(UserError, match=r"data\.judge"):
        write()
    with pytest.raises(UserError, match="no model here"):
        experiment.name = "untrained"
        write()
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


def test_a_score_outside_its_interval_is_explained():
    scores = {
        "fd": {"value": 9.4, "low": 5.0, "high": 8.0},
        "kl": {"value": 1.0, "low": 0.9, "high": 1.1},
        "bare": {"value": 1.0, "low": None, "high": None},
    }
    (line,) = outside_notes({"scores": scores})
    assert line.startswith("fd 9.4 lies outside its interval [5, 8]")


def test_command_line(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nruns: {tmp_path}\n")
    for arguments, message in (
        ([path], "no model here|data.test: not set"),
        ([path, "--fresh", "name=other"], "other|data.test"),
        ([path, "--clips", "5"], "--clips is no option of the protocol classification"),
        ([path, "--protocol", "classifier", "--order-clips", "5"], "--order-clips is no option of the protocol"),
        ([path, path], "give --protocol"),
        (["seed=1"], "name an experiment"),
        ([path, "--protocol", "nothing"], "no protocol 'nothing'"),
        ([path, "--protocol", "judge"], "it is called 'classifier' now"),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        assert re.search(message, capsys.readouterr().err)
    for arguments, code in ((["report", str(path), "--frash"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == code


def test_loss_curves_are_read_where_they_are(tmp_path):
    assert loss_curves(tmp_path) == {}
    (tmp_path / "logs" / "ldm").mkdir(parents=True)
    (tmp_path / "logs" / "ldm" / "metrics.csv").write_text("batch,name,value\n5,train/noise,0.5\n6,train/noise,nan\n")
    assert loss_curves(tmp_path) == {"ldm": {"train/noise": [(5.0, 0.5)]}}
