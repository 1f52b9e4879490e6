import json
import re
from itertools import combinations

import numpy as np
import pytest

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder, captions_of
from data import scores
from data.score_captions import TEMPO_BANDS, caption
from data.score_excerpts import beat_quarters
from data.score_notes import Score, at, read_scores, sounding_key, transposed
from data.score_rendering import INSTRUMENTS, RENDER_RATE, Note, find_soundfont, levelled, render
from data.score_works import FREE, SPLITS, Work, find_works, work_of
from data.scores import ScoreRecipe, recipes
from data.verify import verify

pytest.importorskip("music21")
pretty_midi = pytest.importorskip("pretty_midi")
pytest.importorskip("tinysoundfont")

TUNES = "".join(
    f"X:{n}\nT:Reel {n % 9}\nM:{'6/8' if n % 2 else '3/4'}\nL:1/8\nK:D\n" + "DFA dfa|agf edc|" * 5 + "d6|]\n\n"
    for n in range(1, 13)
)


@pytest.fixture(scope="module")
def soundfont():
    return find_soundfont(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tunebook, a MIDI file of two parts and drums, one of three movements, and what is no score."""
    folder = tmp_path_factory.mktemp("scores")
    (folder / "book.abc").write_text(TUNES)
    midi = pretty_midi.PrettyMIDI(initial_tempo=90)
    midi.time_signature_changes.append(pretty_midi.TimeSignature(4, 4, 0))
    midi.key_signature_changes.append(pretty_midi.KeySignature(9 + 12, 0))  # A minor
    for program, pitch, is_drum in ((73, 81, False), (0, 57, False), (0, 38, True)):
        part = pretty_midi.Instrument(program, is_drum)
        scale = (0, 2, 3, 5, 7, 3, 0, 7) * 8
        part.notes = [pretty_midi.Note(90, pitch + s, k / 1.5, (k + 1) / 1.5) for k, s in enumerate(scale)]
        midi.instruments.append(part)
    for name in ("duet.mid", "sonata_movement1.mid", "sonata_movement2.mid"):
        midi.write(str(folder / name))
    (folder / "broken.mid").write_bytes(b"MThd\0\0")
    (folder / "broken.musicxml").write_text("<score")
    return folder


def written(folder, output, *words):
    argv = ["--scores", str(folder), "--licence", "CC0", "--clips", "8", "--test-clips", "4", "--judge-clips", "4"]
    return scores.main([str(output), *argv, "--seconds", "2.56", "--workers", "1", *words])


def clips_of(split):
    shards = ShardFolder(split)
    return [shards.read(k, n) for k, count in enumerate(shards.counts) for n in range(count)]


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("shards")
    assert written(folder, output, "--captions", "3") == 0
    return output


def test_the_same_seed_gives_the_same_bytes(folder, output, tmp_path, capsys):
    assert written(folder, tmp_path / "again", "--captions", "3") == 0
    said = capsys.readouterr().out
    assert re.search(r"left out .*broken\.mid: cannot be read as a score", said)
    assert re.search(r"left out .*broken\.musicxml: cannot be read as a score", said)
    for split in SPLITS:
        assert verify(output / split)["num_clips"] == (8 if split == "train" else 4)
        first, second = ((parent / split / "000000.tar").read_bytes() for parent in (output, tmp_path / "again"))
        assert first == second
    assert written(folder, tmp_path / "other", "--seed", "1", "--test-clips", "0", "--judge-clips", "0") == 0
    other = (tmp_path / "other/train/000000.tar").read_bytes()
    assert other != (output / "train/000000.tar").read_bytes()


def test_splits_share_no_work_and_clips_tell_where_they_come_from(folder, output):
    works = {split: {clip["work"] for clip in clips_of(output / split)} for split in SPLITS}
    assert all(works.values()) and not any(works[a] & works[b] for a, b in combinations(SPLITS, 2))
    for clip in clips_of(output / "train"):
        assert clip["source"] == folder.name
        assert clip["licence"] == "score: CC0; SoundFont: TimGM6mb.sf2, GPL-2.0"
        assert clip["duration"] == 2.56 and len(captions_of(clip)) == 3


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("sonata_movement2.mid", "sonata"),
        ("mozart/k155/movement1.mxl", "mozart/k155"),
        ("bach/bwv101.7.mxl", "bach/bwv101"),
        ("bwv281.mxl", "bwv281"),
        ("tune_12.abc", "tune_12"),
    ],
)
def test_movements_of_a_work_stay_together(name, work):
    assert work_of(name) == work


def test_a_name_alone_decides_the_split():
    splits = [Work(f"work {n}", "", "").split for n in range(1000)]
    assert 150 < splits.count("test") < 250 and 150 < splits.count("judge") < 250


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_an_instrument_plays_the_pitch_that_is_written(name, soundfont):
    instrument = INSTRUMENTS[name]
    pitch = max(69, instrument.low) if instrument.high >= 69 else instrument.high
    rendered = render([Note(0, pitch, 90, 0.1, 1.4)], [instrument.program], 1.5, soundfont)
    assert len(rendered) == 1.5 * RENDER_RATE
    assert np.abs(rendered[: round(0.1 * RENDER_RATE)]).max() == 0 < np.abs(rendered[round(0.1 * RENDER_RATE) :]).max()
    sound = levelled(rendered, RENDER_RATE, len(rendered))[round(0.3 * RENDER_RATE) : round(0.9 * RENDER_RATE)]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**18))
    peak_hz = np.argmax(spectrum) * RENDER_RATE / 2**18
    harmonic = peak_hz / (440 * 2 ** ((pitch - 69) / 12))  # organ stops and overtones: of the pitch or its octaves
    nearest = max(0.5, round(2 * harmonic) / 2)
    assert abs(12 * np.log2(harmonic / nearest)) < 0.35, (peak_hz, harmonic)


def test_a_clip_is_levelled_and_dies_away(soundfont):
    rendered = render([Note(0, 60, 90, 0.0, 1.0)], [0], 1.5, soundfont)
    waveform = levelled(rendered, 16_000, 24_000)
    assert waveform.shape == (24_000,) and waveform.dtype == np.float32
    assert np.abs(waveform).max() <= 0.9 and waveform[-1] == 0 and np.abs(waveform[-3000:-1000]).max() > 1e-5
    with pytest.raises(UserError, match="no sound"):
        levelled(render([], [0], 1.5, soundfont), 16_000, 24_000)


def test_captions_tell_the_truth():
    truth = {
        "labels": ["oboe", "piano"],
        "tempo_bpm": 61,
        "tempo": "slow",
        "musical_key": "E-flat major",
        "metre": "6/8",
    }
    rng = np.random.default_rng(0)
    texts = [caption(truth | {"register": "high"}, rng) for _ in range(400)]
    assert len(set(texts)) > 150 and all(len(text) < 120 for text in texts)
    assert all("oboe" in text and "piano" in text and text.index("oboe") < text.index("piano") for text in texts)
    joined = " ".join(texts)
    assert all(
        word in joined for word in ("slow", "calm", "slowly", "high", "E-flat major", "6/8", "61 BPM", "an oboe")
    )
    assert not re.search(r"\b(fast|quick|lively|moderate|low|deep|a oboe)\b|None|\{|  | ,", joined)
    unknown = {"labels": ["flute"], "musical_key": None, "metre": None, "register": "middle"}
    assert not any("None" in caption(truth | unknown, rng) for _ in range(50))


def test_what_a_clip_says_is_what_it_plays(output):
    for clip in [clip for split in SPLITS for clip in clips_of(output / split)]:
        assert clip["programs"] == [INSTRUMENTS[name].program for name in clip["labels"]]
        low, high = TEMPO_BANDS[clip["tempo"]]
        assert low <= clip["tempo_bpm"] <= high
        assert clip["metre"] in ("3/4", "6/8", "4/4")
        written_key = "A minor" if clip["metre"] == "4/4" else "D major"
        assert clip["musical_key"] in (None, transposed(written_key, clip["transposition"]))
        assert all(clip["labels"][0] in text for text in captions_of(clip))
    assert any(clip["musical_key"] for clip in clips_of(output / "train"))


def test_midi_and_abc_are_read_as_they_are_written(folder):
    (duet,) = read_scores(folder / "duet.mid")
    assert len(duet.parts) == 2  # without the drums
    assert duet.parts[0][:3].round(3).tolist() == [[0, 1, 81], [1, 1, 83], [2, 1, 84]]
    assert duet.bars[:3].round(3).tolist() == [0, 4, 8]
    assert duet.metres == ((0.0, "4/4"),) and duet.keys == ((0.0, ("A minor",)),)
    tunes = read_scores(folder / "book.abc")
    assert len(tunes) == 12 and tunes[0].metres == ((0.0, "6/8"),) and tunes[0].keys == ((0.0, ("D major",)),)
    assert tunes[0].parts[0][:3, 2].tolist() == [62, 66, 69]
    (folder / "voices.abc").write_text(TUNES[: TUNES.index("X:3")])
    (merged,) = read_scores(folder / "voices.abc", merge=True)
    (folder / "voices.abc").unlink()
    assert len(merged.parts) == 2


def test_beats_and_keys():
    assert [beat_quarters(metre) for metre in ("3/4", "6/8", "2/2", "3/8", None)] == [1, 1.5, 2, 0.5, 1]
    assert at([(0.0, "a"), (4.0, "b")], 1, 4) == "a" and at([(0.0, "a"), (4.0, "b")], 1, 5) is None
    scale = np.array([[0, d, p] for p, d in zip((60, 62, 64, 65, 67, 69, 71), (4, 1, 2, 1, 3, 1, 1))], dtype=float)
    assert sounding_key(scale, ("C major", "A minor")) == "C major"
    assert sounding_key(scale, ("A minor",)) is None and sounding_key(scale, ("F-sharp major",)) is None
    assert sounding_key(scale, ()) is None
    assert transposed("A minor", 3) == "C minor" and transposed("B-flat major", -1) == "A major"


def test_a_work_without_a_fitting_excerpt_is_left_out(soundfont):
    rests = Score("Rests", (np.array([[0.0, 1, 60], [90, 1, 60]]),), np.arange(0, 92, 4.0), (), ())
    (clip,) = recipes([Work("rests", "", "CC0", [rests])], 1, ScoreRecipe("train", soundfont))
    with pytest.raises(UserError, match=r"no excerpt of 5.12 s at \d+ BPM in which Rests plays on"):
        clip.make()


def test_the_free_scores_of_music21_are_those_that_say_so():
    files = find_works(None, None)
    assert len(files) == 18 and len({file.work for file in files}) == 15
    assert {Work(file.work, "", "").split for file in files} == set(SPLITS)
    assert len({file.work for file in files if "polonaise" in file.path.name}) == 1
    assert not any(re.match(r"bach|palestrina|essen|ryans", pattern) for pattern in FREE)


def test_bad_input_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.abc").write_text(TUNES[: TUNES.index("X:2")])
    judged = ["--test-clips", "1", "--judge-clips", "1"]
    (tmp_path / "bad/a.abc").write_text("no music")
    (tmp_path / "a.sf2").write_bytes(b"RIFF")
    words = ["--clips", "1", "--test-clips", "0", "--judge-clips", "0", "--workers", "1"]
    for arguments, message in (
        (["--scores", str(folder)], "--scores needs --licence TEXT"),
        (["--licence", "CC0"], "name it with --scores"),
        (["--scores", str(tmp_path / "none"), "--licence", "CC0"], "holds no scores"),
        (["--scores", str(tmp_path / "gone"), "--licence", "CC0"], "no such folder"),
        (["--scores", str(tmp_path / "bad"), "--licence", "CC0"], "no score could be read: "),
        (["--soundfont", str(tmp_path / "gone.sf2")], "no such SoundFont"),
        (["--soundfont", str(tmp_path / "a.sf2")], "cannot be read as a SoundFont"),
        (["--scores", str(folder), "--licence", "CC0", "--seconds", "0.5"], "make them 1 s or longer"),
        (["--scores", str(tmp_path / "one"), "--licence", "CC0", *judged], "has no works"),
    ):
        assert scores.main([str(tmp_path / "out"), *words, *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_library_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tinysoundfont", None)
    assert scores.main([str(tmp_path), "--clips", "1"]) == 2
    assert "pip install 'audioldm2-pl[scores]'" in capsys.readouterr().err


def test_the_json_is_plain(output):
    clip = clips_of(output / "test")[0]
    kept = {name: clip[name] for name in ("labels", "programs", "tempo_bpm", "musical_key", "metre", "start_quarters")}
    assert json.loads(json.dumps(kept)) == kept
