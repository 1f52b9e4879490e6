import re

import numpy as np
import pytest

from audioldm2_pl.errors import UserError
from data import synthetic
from data.synthetic import CLASSES, PITCH_BANDS, SPLITS, clips, draw_dial
from data.synthetic_captions import ATTRIBUTES, CLAUSES, NOUNS, PAIRS, caption
from data.verify import verify

SECONDS = 1.28


def events(*names, **levels):
    chosen = {"pitch": "low", "tempo": "slow", "loudness": "loud"} | levels
    return [{"name": name} | {attribute: chosen[attribute] for attribute in ATTRIBUTES[name]} for name in names]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("num_samples", [2_560, 40_960])
def test_every_sound_at_every_setting(name, num_samples):
    for setting in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(0)
        dials = synthetic.Dials(pitch=setting, tempo=setting, colour=setting, rng=rng)
        waveform = CLASSES[name](dials, num_samples, 16_000)
        assert waveform.shape == (num_samples,)
        assert np.isfinite(waveform).all() and waveform.std() > 1e-3


def test_levels():
    for clip in clips("train", 48, SECONDS):
        assert clip.waveform.shape == (20_480,)
        for event in clip.extra["events"]:
            start, num_samples = (round(event[key] * 16_000) for key in ("start", "duration"))
            part = clip.waveform[start : start + num_samples]
            low, high = synthetic.LOUDNESS_BANDS[event["loudness"]]
            assert low - 6 * synthetic.HISS <= np.abs(part).max() <= high + 6 * synthetic.HISS
            assert abs(part.mean()) < 3e-3
            assert abs(part[-1]) < 0.01 + 6 * synthetic.HISS


def test_a_clip_depends_on_seed_split_and_index_alone():
    few, many = list(clips("test", 4, SECONDS)), list(clips("test", 8, SECONDS))
    for a, b in zip(few, many):
        assert (a.key, a.text, a.extra) == (b.key, b.text, b.extra)
        np.testing.assert_array_equal(a.waveform, b.waveform)
    other = list(clips("test", 4, SECONDS, seed=1))
    assert [clip.text for clip in other] != [clip.text for clip in few]


def test_a_clip_may_have_several_wordings():
    for clip in clips("train", 24, SECONDS, num_captions=5):
        assert clip.text is None and len(clip.captions) == 5 and len(set(clip.captions)) > 1
    assert all(clip.text and clip.captions is None for clip in clips("train", 2, SECONDS))


def test_splits_share_no_value_and_cover_the_same_range():
    rng = np.random.default_rng(0)
    low, high = PITCH_BANDS["middle"]
    cells = {}
    for split in SPLITS:
        values = np.array([draw_dial(split, (low, high), rng) for _ in range(500)])
        place = (values - low) / (high - low)
        cells[split] = set(np.floor(place * synthetic.NUM_CELLS).astype(int))
        assert place.min() < 0.25 and place.max() > 0.8
    assert not cells["train"] & cells["test"] and not cells["train"] & cells["judge"]
    assert not cells["test"] & cells["judge"]

    drawn = {
        split: {
            (name, value)
            for clip in clips(split, 60, 0.32)
            for event in clip.extra["events"]
            for name, value in event["dials"].items()
        }
        for split in SPLITS
    }
    assert not drawn["train"] & drawn["test"] and not drawn["train"] & drawn["judge"]
    assert not drawn["test"] & drawn["judge"]


def test_single_clips_are_spread_evenly_and_half_are_pairs():
    made = list(clips("test", 48, 0.32))
    singles = [clip.labels[0] for clip in made if len(clip.labels) == 1]
    pairs = [clip.labels for clip in made if len(clip.labels) == 2]
    assert len(singles) == len(pairs) == 24
    assert {name: singles.count(name) for name in CLASSES} == dict.fromkeys(CLASSES, 2)
    assert all(first != second for first, second in pairs)
    for clip in made:
        assert [event["name"] for event in clip.extra["events"]] == clip.labels


def test_captions_are_short_plain_lines_in_many_wordings():
    rng = np.random.default_rng(0)
    for name in CLASSES:
        assert len(NOUNS[name]) + len(CLAUSES[name]) >= 5
        wordings = {caption(events(name), rng) for _ in range(200)}
        wordings |= {caption(events(name, other), rng) for other in CLASSES if other != name}
        assert len(wordings) > 20
        for text in wordings:
            assert re.fullmatch(r"[a-z ,-]{4,120}", text), text
            assert not re.search(r"  |\ba [aeiou]|\{|^ | $", text), text


def test_captions_tell_attributes_and_only_the_true_ones():
    rng = np.random.default_rng(0)
    texts = " ".join(caption(events("bell", pitch="high", tempo="fast"), rng) for _ in range(100))
    assert all(word in texts for word in ("high", "fast", "quickly", "loud", "loudly"))
    assert not re.search(r"\b(low|deep|slow|slowly|soft|softly|quiet|quietly|middle)\b", texts)


def test_pair_captions_tell_the_order():
    """Whatever the wording, the first event is the one that the grammar says comes first."""
    rng = np.random.default_rng(0)
    bell, clock = "bell", "clock"
    seen = set()
    for _ in range(400):
        text = caption(events("bell", "ticking clock"), rng)
        reverse = " after " in text or " preceded by " in text
        assert (text.index(bell) > text.index(clock)) == reverse, text
        for word in ("first", " then ", "followed by", "before", " after ", "after ", "preceded"):
            if word in text and (word != "after " or text.startswith(word)):
                seen.add(word)
    assert len(seen) == 7
    assert len(PAIRS) >= 6


def test_command_line(tmp_path, capsys):
    argv = ["--clips", "6", "--test-clips", "4", "--judge-clips", "2", "--seconds", "0.64"]
    for name, num_workers in (("a", "1"), ("b", "2")):
        assert synthetic.main([str(tmp_path / name), *argv, "--workers", num_workers]) == 0
    for split, num_clips in (("train", 6), ("test", 4), ("judge", 2)):
        assert verify(tmp_path / "a" / split)["num_clips"] == num_clips
        first, second = (tmp_path / name / split / "000000.tar" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
    assert synthetic.main([str(tmp_path / "c"), "--seconds", "0"]) == 2
    assert "error: " in capsys.readouterr().err
    with pytest.raises(UserError):
        next(clips("train", 1, sample_rate=8_000))
