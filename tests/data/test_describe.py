import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from data import describe
from data.shards import Clip, write_shards


@pytest.fixture
def folder(tmp_path):
    train = [
        Clip("a", text="a dog barks", waveform=np.tile([0.1, -0.1], 16_000 // 2), source="ESC", licence="CC0"),
        Clip(
            "b",
            captions=["a cat", "a small cat meows"],
            waveform=np.tile([0.1, -0.1], 32_000 // 2),
            source="ESC",
            licence="CC BY",
        ),
        Clip("c", transcript="hello", waveform=np.tile([0.1, -0.1], 48_000 // 2), source="LJSpeech"),
        Clip("d", path=tmp_path / "missing.wav"),
    ]
    write_shards(train, tmp_path / "out/train", clips_per_shard=2, num_workers=1)
    write_shards(train[:1], tmp_path / "out/test", num_workers=1)
    return tmp_path / "out"


def test_contents(folder):
    contents = describe.read_contents(folder / "train")
    assert (contents.seconds, contents.words) == ([1.0, 2.0, 3.0], [3, 2, 4])
    assert (contents.transcripts, contents.left_out) == (1, 1)
    assert contents.grouped(contents.sources) == {"ESC": [1.0, 2.0], "LJSpeech": [3.0]}
    assert contents.licences == ["CC0", "CC BY", "unknown"]


def test_table_and_picture(folder, tmp_path, capsys):
    path = tmp_path / "pictures/shards.png"
    assert describe.main([str(folder), "--picture", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    train = next(line for line in lines if line and line[0].endswith("train"))
    # clips, hours, lengths, captions, their words, transcripts, pictures, left out
    assert train[1:] == ["3", "0.002", *["1", "/", "2", "/", "3"], "3", *["2", "/", "3", "/", "4"], "1", "0", "1"]
    assert [str(folder / "train"), "unknown", "1", "0.001"] in lines
    image = np.asarray(Image.open(path).convert("RGB"))
    assert (image == (129, 37, 129)).all(axis=2).sum() > 1000
    assert describe.main([str(tmp_path)]) == 2
    assert "no shards here" in capsys.readouterr().err


def test_shards_by_other_writers(tmp_path):
    """Without durations, with lists under "text", sources that are no words, and a clip that is none."""
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(8000), 16_000, format="WAV")
    texts = {"a": {"text": ["one", "two three"], "source": ["x"]}, "b": {"source": "\ud800"}, "c": {"text": 3}}
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for key, fields in texts.items():
            for suffix, content in (("WAV", sound.getvalue()), ("json", json.dumps(fields).encode())):
                member = tarfile.TarInfo(f"./{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    (tmp_path / "index.json").write_text(json.dumps({"format": 1, "shards": [{"name": "0.tar", "num_clips": 3}]}))
    contents = describe.read_contents(tmp_path)
    assert (contents.seconds, contents.words, contents.left_out) == ([0.5, 0.5], [1, 2], 1)
    assert contents.sources == ["['x']", "?"]


def test_whole_numbers_have_bins_of_their_own():
    counts, edges = np.histogram([1] * 10 + [2] * 5 + [3] * 10, describe.bin_edges(np.array([1.0, 2.0, 3.0])))
    assert counts.tolist() == [10, 5, 10] and edges.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert len(describe.bin_edges(np.array([1.5, 2.0]))) == describe.NUM_BINS + 1
    assert describe.bin_edges(np.array([2.5, 2.5])).tolist() == [2.0, 3.0]


def test_empty_constant_and_many(tmp_path):
    amounts = {f"$source {number} with a name that is far too long": float(number) for number in range(20)}
    rows = describe.largest(amounts)
    assert len(rows) == describe.MAX_BARS and rows[-1] == ("13 others", sum(range(13)))
    many = describe.Contents(seconds=[2.5] * 20, sources=list(amounts), licences=["CC0"] * 20)
    for contents in (describe.Contents(), many):
        describe.draw(contents, tmp_path / "a.png")
        assert Image.open(tmp_path / "a.png").size == (1500, 900)
