"""Spoken digits, from the names of their files."""

import numpy as np
import soundfile

from audioldm2_pl.shards.reader import ShardFolder
from data.fsdd import WORDS, clips, main, split_of


def test_takes_are_split_as_their_authors_say():
    assert [split_of(take) for take in (0, 4, 5, 9, 10, 49)] == ["test", "test", "val", "val", "train", "train"]


def test_digits_become_shards(tmp_path, capsys):
    source = tmp_path / "recordings"
    source.mkdir()
    for digit, take in ((3, 0), (3, 7), (3, 20), (0, 21)):
        noise = np.random.default_rng(take).uniform(-0.5, 0.5, 4_000)
        soundfile.write(source / f"{digit}_theo_{take}.wav", noise, 8_000)
    assert main([str(source), str(tmp_path / "shards"), "--workers", "1"]) == 0
    counts = {split: ShardFolder(tmp_path / "shards" / split).index["num_clips"] for split in ("train", "val", "test")}
    assert counts == {"train": 2, "val": 1, "test": 1}
    clip = ShardFolder(tmp_path / "shards" / "train").read(0, 0)
    assert clip["transcript"] in WORDS and clip["labels"] == [clip["transcript"]] and clip["speaker"] == "theo"
    (source / "three.wav").write_bytes(b"")
    assert main([str(source), str(tmp_path / "other"), "--workers", "1"]) == 2
    assert "three.wav: not <digit>_<speaker>_<take>.wav" in capsys.readouterr().err


def test_real_digits(real_data):
    found = {split: list(clips(real_data / "fsdd", split)) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in found.items()} == {"train": 1_800, "val": 300, "test": 300}
    assert {clip.transcript for clip in found["test"]} == set(WORDS)
