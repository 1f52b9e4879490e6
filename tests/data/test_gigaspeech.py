import json
import re

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import gigaspeech
from data.shards import load_sound
from data.verify import verify


def segment(name, start, end, text, *subsets):
    return {"sid": name, "speaker": "N/A", "begin_time": start, "end_time": end, "text_tn": text, "subsets": subsets}


def audio(name, *segments):
    return {
        "title": "A talk",
        "path": f"audio/podcast/P0001/{name}.opus",
        "aid": name,
        "format": "opus",
        "segments": segments,
    }


TRAIN = audio(
    "POD0000000025",
    segment("POD0000000025_S0000103", 1.0, 2.5, "FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>", "{XL}", "{L}"),
    segment("POD0000000025_S0000104", 2.5, 3.0, "REALLY <QUESTIONMARK>", "{XL}"),
    segment("POD0000000025_S0000105", 3.0, 3.5, "<MUSIC>", "{XL}"),
)
DEV = audio(
    "POD0000000026",
    segment("POD0000000026_S0000001", 0.0, 1.0, "YES <EXCLAMATIONPOINT>", "{DEV}"),
    segment("POD0000000026_S0000002", 1.0, 2.0, "NO", "{XL}"),
    segment("POD0000000026_S0000003", 1.0, 2.0, "<SIL>", "{DEV}"),
)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "GigaSpeech"
    (folder / "audio/podcast/P0001").mkdir(parents=True)
    content = {"dataset": "GigaSpeech", "language": "EN", "audios": [TRAIN, DEV], "version": "v1.0.0"}
    (folder / "GigaSpeech.json").write_text(json.dumps(content, indent=2))
    tone = np.repeat([0.0, 0.5, 0.0, 0.5], 16_000) * np.sin(np.arange(64_000))  # silent in seconds 0 and 2
    soundfile.write(folder / TRAIN["path"], tone, 16_000, format="OGG", subtype="OPUS")
    return folder


def test_segments(source, capsys):
    four, really = gigaspeech.clips(source, "train")
    assert (four.key, four.transcript) == ("POD0000000025_S0000103", "four o'clock, said williams.")
    assert (four.start, four.duration, four.text) == (1.0, 1.5, None)
    assert really.transcript == "really?"
    assert capsys.readouterr().out.splitlines() == [
        "refused 1 segments of recordings that are in dev or test",
        "left out 1 segments without speech",
    ]
    assert [clip.key for clip in gigaspeech.clips(source, "train", subset="L")] == [four.key]
    assert [clip.transcript for clip in gigaspeech.clips(source, "dev")] == ["yes!"]
    assert not list(gigaspeech.clips(source, "test"))


def test_segments_are_cut_out_of_long_opus_files(source, tmp_path):
    four, really = gigaspeech.clips(source, "train")
    waveform = load_sound(four, 16_000).waveform  # a second of tone, half a second of silence
    assert len(waveform) == 24_000
    loud, silent = np.abs(waveform[2_000:14_000]).mean(), np.abs(waveform[18_000:]).mean()
    assert loud > 50 * silent
    assert gigaspeech.main([str(source), str(tmp_path / "shards"), "--splits", "train"]) == 0
    assert verify(tmp_path / "shards/train")["seconds"] == 2.0
    assert len(load_sound(really, 16_000).waveform) == 8_000


def test_segments_that_are_not_whole_or_say_nothing_are_listed(source, tmp_path):
    late = segment("POD0000000025_S0000106", 3.5, 9.0, "TOO LATE", "{XL}")
    blank = segment("POD0000000025_S0000107", 1.0, 2.0, "", "{XL}")
    content = {"audios": [audio("POD0000000025", *TRAIN["segments"], late, blank)]}
    (source / "GigaSpeech.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert gigaspeech.main([str(source), str(tmp_path / "shards"), "--splits", "train"]) == 0
    index = verify(tmp_path / "shards/train")
    assert [clip["key"] for clip in index["skipped"]] == ["POD0000000025_S0000106", "POD0000000025_S0000107"]


def test_entries_come_one_by_one(tmp_path, monkeypatch):
    path = tmp_path / "GigaSpeech.json"
    path.write_text(json.dumps({"audios": [TRAIN, DEV, TRAIN], "note": [1]}, indent=1))
    monkeypatch.setattr(gigaspeech, "BLOCK", 97)
    expected = json.loads(json.dumps([TRAIN, DEV, TRAIN]))
    assert list(gigaspeech.read_audios(path)) == expected
    path.write_text(path.read_text()[:-900])
    with pytest.raises(UserError, match="is cut off"):
        list(gigaspeech.read_audios(path))
    path.write_text("{}")
    with pytest.raises(UserError, match="no list 'audios'"):
        list(gigaspeech.read_audios(path))
    with pytest.raises(UserError, match="no such file"):
        list(gigaspeech.read_audios(tmp_path / "none.json"))


def test_real_excerpt(real_data, tmp_path):
    """The README's excerpt, with its marks of omission taken out."""
    text = (real_data / "metadata/gigaspeech/layout_snip.txt").read_text()
    text = re.sub(r",\s*\.\.\. \.\.\.(?=\s*[\]}])", "", text)  # with the comma at the end of a list or an object
    (tmp_path / "GigaSpeech.json").write_text(text.replace("... ...", ""))
    (clip,) = gigaspeech.clips(tmp_path, "train", subset="L")
    assert clip.transcript == "four o'clock tomorrow afternoon, said williams."
    assert clip.path == tmp_path / "audio/podcast/P0001/POD0000000025.opus"
    assert (clip.start, clip.duration) == (780.31, pytest.approx(2.82))
