import json

import pytest
import torch
from tiny_corpus import PerfectModel

from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.costs import loss_curves
from evaluation.report import TARGETS, ReportOptions, compare_with_targets, write_report

OPTIONS = ReportOptions(clips_per_class=4, order_clips=6, batch_size=5, device="cpu")


def add_stage(experiment, name: str) -> None:
    folder = experiment.run_folder / "stages"
    folder.mkdir(exist_ok=True)
    facts = {"seconds": 12.5, "peak_memory_gib": 99.0, "batches": 10}
    (folder / f"{name}.json").write_text(json.dumps(facts))
    logs = experiment.run_folder / "logs" / name
    logs.mkdir(parents=True)
    rows = [f"{i},train/reconstruction,{1 / (i + 1)}" for i in range(30)]
    (logs / "metrics.csv").write_text("\n".join(["batch,name,value", *rows, "29,train/kl,nan"]))


def test_report_end_to_end(experiment, corpus, judge_config, capsys):
    add_stage(experiment, "vae")
    model = PerfectModel(corpus / "test")

    def write(options=OPTIONS):
        return write_report(experiment, options, lambda folder, device: model, judge_config)

    results = write()
    folder = experiment.run_folder / "report"
    assert results == json.loads((folder / "report.json").read_text())
    scores = results["class_accuracy"]
    assert scores.pop("shuffled_captions") == 0.0
    assert scores == dict.fromkeys(("real", "reconstruction", "loa_to_audio", "text_to_audio"), 1.0)
    assert results["order_accuracy"] == {"real": 1.0, "text_to_audio": 1.0}
    assert results["num_clips"] == {"class_accuracy": 12, "order_accuracy": 6}
    assert results["missed_targets"] == ["peak_memory_gib"]
    assert results["log_mel_distance_db"]["reconstruction"] < 0.5
    assert results["seconds"]["vae"] == 12.5 and results["peak_memory_gib"] == 99.0
    parts = [value for name, value in results["seconds"].items() if name != "total"]
    assert results["seconds"]["total"] == pytest.approx(sum(parts))
    assert str(folder / "report.html") in (printed := capsys.readouterr().out)
    assert "class_accuracy.text_to_audio" in printed and "6: MISSED" in printed
    check_page((folder / "report.html").read_text())

    assert model.num_generated == 36  # 18 clips from LOA and from text
    (folder / "audio" / "text_to_audio" / "clip-2-000.flac").unlink()
    again = write()
    assert model.num_generated == 37
    assert again["class_accuracy"]["text_to_audio"] == 1.0
    training = json.loads((folder / "judge.json").read_text())["seconds"]
    assert again["seconds"]["report"] > training  # what an earlier report spent counts too

    (experiment.run_folder / "model" / "vae" / "config.json").write_text('{"other": 1}')
    write()
    assert model.num_generated == 37 + 36  # another model: nothing is kept
    judge_config.batches = 2
    write(ReportOptions(1, 1, 5, "cpu", fresh=True))
    assert model.num_generated == 37 + 36 + 8


def check_page(page: str) -> None:
    for section in ("scores", "listen", "classes", "losses", "cost", "provenance"):
        assert f'id="{section}"' in page
    assert page.count("<article>") == 3 * 2 + 6
    assert page.count("<audio ") == page.count("<img ") == 4 * page.count("<article>")
    assert "&lt;loud&gt;" in page and "<loud>" not in page
    assert "reconstruction" in page and "<polyline" in page and "guidance_scale" in page
    assert "http:" not in page and "https:" not in page and "file:" not in page
    assert "$" not in page
    assert "8 of 9 targets reached" in page and "<b>99.00 GiB</b></td><td>≤ 6 GiB" in page and "≤ 20 min 00 s" in page


def test_silent_generations_miss_the_targets(experiment, corpus, judge_config):
    model = PerfectModel(corpus / "test")
    judge_config.batches = 2
    model.clips = {text: torch.zeros_like(waveform) for text, waveform in model.clips.items()}
    results = write_report(experiment, OPTIONS, lambda folder, device: model, judge_config)
    assert "class_accuracy.text_to_audio" in results["missed_targets"]
    assert "order_accuracy.text_to_audio" in results["missed_targets"]
    assert results["levels"]["text_to_audio"]["share_of_silent_clips"] == 1.0
    assert "missed" in (experiment.run_folder / "report" / "report.html").read_text()


def test_unmeasured_scores_are_neither_hit_nor_missed():
    groups = {key.split(".")[0] for key in TARGETS if "." in key}
    nothing: dict = {g: {k.split(".")[1]: None for k in TARGETS if k.startswith(g)} for g in groups}
    nothing["peak_memory_gib"] = None
    assert all(target["reached"] is None for target in compare_with_targets(nothing).values())


def test_missing_inputs_are_told_in_one_line(experiment):
    with pytest.raises(UserError, match="no model here"):
        experiment.name = "untrained"
        write_report(experiment, OPTIONS)
    experiment.name, experiment.data.judge = "tiny", None
    with pytest.raises(UserError, match=r"data\.judge"):
        write_report(experiment, OPTIONS)


def test_command_line(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nruns: {tmp_path}\n")
    assert main(["report", str(path)]) == 2
    assert "no model here" in capsys.readouterr().err
    assert main(["report", str(path), "--fresh", "name=other"]) == 2
    assert "other" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["report", str(path), "--frash"])
    assert exit.value.code == 2
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0


def test_loss_curves_are_read_where_they_are(tmp_path):
    assert loss_curves(tmp_path) == {}
    (tmp_path / "logs" / "ldm").mkdir(parents=True)
    (tmp_path / "logs" / "ldm" / "metrics.csv").write_text("batch,name,value\n5,train/noise,0.5\n6,train/noise,nan\n")
    assert loss_curves(tmp_path) == {"ldm": {"train/noise": [(5.0, 0.5)]}}
