import numpy as np
import pytest
from PIL import Image

from data import describe, histograms
from data.shards import Clip, write_shards


@pytest.fixture
def folder(tmp_path):
    train = [
        Clip("a", text="a dog barks", waveform=np.zeros(16_000), source="ESC", licence="CC0"),
        Clip("b", captions=["a cat", "a small cat meows"], waveform=np.zeros(32_000), source="ESC", licence="CC BY"),
        Clip("c", transcript="hello", waveform=np.zeros(48_000), source="LJSpeech"),
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
    assert "python -m data.verify" in capsys.readouterr().err


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
