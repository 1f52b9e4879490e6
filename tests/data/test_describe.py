import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from data import describe, histograms
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
    assert contents.sources == {"ESC": [1.0, 2.0], "LJSpeech": [3.0]}
    assert contents.licences == {"CC0": [1.0], "CC BY": [2.0], "unknown": [3.0]}


def test_table_and_picture(folder, tmp_path, capsys):
    path = tmp_path / "pictures/shards.png"
    assert describe.main([str(folder), "--picture", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    train = next(line for line in lines if line and line[0].endswith("train"))
    # clips, hours, lengths, captions, their words, transcripts, left out
    assert train[1:] == ["3", "0.002", *["1", "/", "2", "/", "3"], "3", *["2", "/", "3", "/", "4"], "1", "1"]
    assert [str(folder / "train"), "unknown", "1", "0.001"] in lines
    image = np.asarray(Image.open(path))
    assert image.shape[2] == 3 and (image == histograms.FILL).all(axis=2).sum() > 1000
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
    assert contents.sources == {"['x']": [0.5], "?": [0.5]}


def test_heights_of_bars(tmp_path):
    values = [1] * 10 + [2] * 5 + [3] * 10
    histograms.draw(tmp_path / "a.png", {"values": values}, {})
    filled = (np.asarray(Image.open(tmp_path / "a.png")) == histograms.FILL).all(axis=2).sum(axis=0)  # by column
    heights = filled[filled > 0]
    low, high = np.unique(heights)[[0, -1]]
    assert high == pytest.approx(2 * low, abs=2)
    assert (heights == low).sum() * 2 == pytest.approx((heights == high).sum(), abs=6)


def test_empty_constant_and_many(tmp_path):
    amounts = {f"source {number} with a name that is far too long": float(number) for number in range(20)}
    histograms.draw(tmp_path / "a.png", {"none": [], "same": [2.5, 2.5]}, {"many": amounts, "none": {}})
    width, height = Image.open(tmp_path / "a.png").size
    assert width == 2 * histograms.WIDTH
    assert height == histograms.HEIGHT + 2 * histograms.MARGIN + histograms.MAX_BARS * histograms.BAR_STEP
