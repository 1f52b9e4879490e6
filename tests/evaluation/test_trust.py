"""Metrics against human ratings: the layouts of ratings, the signs of correlations, ties, intervals, bad tables."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.ratings import Subject, read_ratings
from evaluation.sound_classifier import SoundClassifier, SoundClassifierConfig
from evaluation.trust import kendall, rank_correlation, spearman, weighted_spearman

RATE = 16_000
NOISES = {"best": 0.005, "good": 0.02, "fair": 0.06, "poor": 0.15, "bad": 0.4}
NUM_CLIPS = 6


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Tones of five systems under more and more noise, each clip's rating falling with it, and a classifier."""
    folder, rows = tmp_path_factory.mktemp("study"), ["file,system,rating,other"]
    draw = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    for clip in range(NUM_CLIPS):
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * clip) * time)
        for rank, (system, noise) in enumerate([("real", 0.0), *NOISES.items()]):
            path = folder / system / f"{clip}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, tone + noise * draw.normal(size=RATE), RATE)
            if noise:
                rows.append(f"{system}/{clip}.wav,{system},{5 - 0.7 * rank + 0.1 * draw.normal():.3f},3")
    (folder / "ratings.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    config = SoundClassifierConfig(AudioConfig(), classes=["bell", "rain"], channels=[4, 8], embedding_size=4)
    SoundClassifier(config).save(folder / "weights" / "report")
    return folder


def arguments(study: Path, *more: str) -> list[str]:
    weights = ["--weights", str(study / "weights"), "--resamples", "200"]
    protocol = ["--protocol", "classifier", "--reference", str(study / "real")]
    return ["trust", str(study / "ratings.csv"), *protocol, *weights, *more]


def test_distances_fall_as_ratings_rise(study, tmp_path, capsys):
    """Over clips and over systems, with an interval that excludes zero, in a table and in both kinds of files."""
    for suffix in ("json", "csv"):
        assert main(arguments(study, "--ratings", "rating", "--output", str(tmp_path / f"trust.{suffix}"))) == 0
    table = capsys.readouterr().out
    assert "classifier.kl ↓" in table and "30 clips" in table and "5 systems" in table and "agrees" in table
    rows = {(r["score"], r["over"]): r for r in json.loads((tmp_path / "trust.json").read_text())["correlations"]}
    assert rows["classifier.fd", "systems"]["spearman"] == pytest.approx(-1.0)
    assert rows["classifier.kl", "clips"]["high"] < 0 and rows["classifier.kl", "clips"]["finding"] == "agrees"
    assert ("classifier.is", "clips") not in rows  # a score of sets alone
    with (tmp_path / "trust.csv").open(newline="") as file:
        assert [(r["score"], r["over"]) for r in csv.DictReader(file)] == list(rows)


def test_ratings_that_are_all_alike_tell_nothing(study, tmp_path):
    assert main(arguments(study, "--ratings", "other", "--output", str(tmp_path / "trust.json"))) == 0
    rows = json.loads((tmp_path / "trust.json").read_text())["correlations"]
    assert {row["finding"] for row in rows} == {"all alike"} and rows[0]["spearman"] is None


def test_a_systems_folder_of_its_own_and_systems_left_out(study, tmp_path):
    """As `listen ratings` writes them: the clip's name alone, a row an answer, the anchors too."""
    rows = ["file,system,question,rating,rater"]
    for system, rating in (("best", 4), ("fair", 3), ("bad", 1), ("low-pass", 2)):
        rows += [f"{clip},{system},OVL,{rating + rater},{rater}" for clip in range(NUM_CLIPS) for rater in (0, 1)]
    (tmp_path / "ratings.csv").write_text("\n".join(rows) + "\n")
    systems = [word for s in ("best", "fair", "bad") for word in ("--system", f"{s}={study / s}")]
    command = arguments(study, *systems, "--output", str(tmp_path / "trust.json"))
    command[1] = str(tmp_path / "ratings.csv")
    assert main(command) == 0
    found = json.loads((tmp_path / "trust.json").read_text())["correlations"]
    (fd,) = [row for row in found if row["score"] == "classifier.fd" and row["over"] == "systems"]
    assert fd["rating"] == "OVL" and fd["num"] == 3 and fd["spearman"] == pytest.approx(-1.0) and fd["low"] is None


@pytest.mark.parametrize(
    ("text", "subject", "ratings"),
    [
        ("file,rating\na.wav,4\na.wav,5\n", Subject("a.wav"), {"rating": [4.5]}),
        (
            "audiomos2025-track1-S001_P044.wav,3.5,4.25\n",
            Subject("audiomos2025-track1-S001_P044.wav", "S001"),
            {"overall": [3.5], "textual": [4.25]},
        ),
        (
            "data_path,Production_Quality,Content Enjoyment\nb.flac,7,6.5\n",
            Subject("b.flac"),
            {"production_quality": [7.0], "content_enjoyment": [6.5]},
        ),
        (
            "text,audio_type,wave_filename,text_relevance_score\na dog barks,real,c.wav,9\n",
            Subject("c.wav", "", "a dog barks"),
            {"text_relevance_score": [9.0]},
        ),
    ],
    ids=["plain", "AudioMOS track 1", "AudioMOS track 2", "RELATE"],
)
def test_layouts_are_known_by_their_columns(tmp_path, text, subject, ratings):
    (tmp_path / "ratings.csv").write_text(text)
    found = read_ratings(tmp_path / "ratings.csv")
    assert found.subjects == [subject] and found.questions == ratings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,rating\na.wav,good\n", "line 2: the rating 'good' is no number"),
        ("file,rating\na.wav,nan\n", "line 2: the rating 'nan' is no number"),
        ("file,rating\na.wav,4,5\n", "line 2: 3 cells, but 2 columns"),
        ("file,rating\n,4\n", "line 2: names no clip"),
        ("file,stars\na.wav,4\n", "no column of ratings is known; name them with --ratings (columns: file, stars)"),
        ("rating\n4\n", "no column names the clips"),
        ("file,rating\n", "holds no rows of ratings"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, text, said):
    (tmp_path / "ratings.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_ratings(tmp_path / "ratings.csv")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_and_too_few_clips_are_one_line(study, tmp_path, capsys):
    command = arguments(study, "--audio", str(study))
    command[1] = str(tmp_path / "ratings.csv")
    for rows, said in (
        ("best/0.wav,4\nbest/9.wav,3", "1 of the rated files"),
        ("best/0.wav,4", "1 rated clips are too"),
    ):
        Path(command[1]).write_text(f"file,rating\n{rows}\n")
        assert main(command) == 2
        assert said in capsys.readouterr().err
    assert main(arguments(study, "--protocol", "classification")) == 2
    assert "asks for labels" in capsys.readouterr().err


def test_ties_have_mean_ranks():
    first, second = np.array([1.0, 2, 2, 3, 3]), np.array([10.0, 30, 20, 40, 40])
    assert spearman(first, second) == pytest.approx(9 / np.sqrt(9 * 9.5))
    assert kendall(first, second) == pytest.approx(8 / np.sqrt(8 * 9))
    assert spearman(first, -second) == -spearman(first, second)
    times = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 3, 1]])
    drawn = [spearman(np.repeat(first, row), np.repeat(second, row)) for row in times]
    np.testing.assert_allclose(weighted_spearman(first, second, times), drawn)
    assert np.isnan(weighted_spearman(first, second, np.array([[0, 0, 0, 2, 3]]))).all()


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_intervals_of_correlations_cover_the_truth(rho):
    """Of normal pairs Spearman's correlation is 6/π·asin(ρ/2)."""
    draw, covered = np.random.default_rng(0), []
    for _ in range(400):
        first = draw.normal(size=30)
        second = rho * first + np.sqrt(1 - rho**2) * draw.normal(size=30)
        interval = rank_correlation(first, second, np.arange(30), 200)
        covered.append(interval.low <= 6 / np.pi * np.arcsin(rho / 2) <= interval.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_clips_of_one_prompt_are_drawn_together():
    """Eight copies of each pair are no more clips than one."""
    draw = np.random.default_rng(0)
    first = draw.normal(size=20)
    second = first + draw.normal(size=20)
    alone = rank_correlation(first, second, np.arange(20), 200)
    copies = rank_correlation(*(np.repeat(x, 8) for x in (first, second, np.arange(20))), 200)
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.2)
