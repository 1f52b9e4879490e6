import json
import shutil

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import msd
from data.verify import verify

SUN, RAIN, SNOW = "TRIHXPZ128F1466744", "TRJGULQ128F423BCBE", "TRMEIPE128F92DF32A"
SONGS = {
    SUN: {
        "track_id": SUN,
        "title": "In The Sunshine",
        "artist_name": "ARRESTED DEVELOPMENT",
        "release": "Zingalamaduni",
        "year": 1994,
        "tag": ["hip hop", "laid back mellow"],
    },
    RAIN: {"track_id": RAIN, "title": "", "artist_name": "", "tag": ["piano"]},
    SNOW: {"track_id": SNOW, "title": "Snow", "artist_name": "A", "tag": []},
}
SPLIT = {"train_track": [SUN], "extra_track": [RAIN, SNOW], "valid_track": [], "test_track": []}
RECORDING = "8/9/8947470.clip.mp3"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "msd"
    for name in ("ecals_annotation", "lastfm_annotation", "songs/8/9"):
        (folder / name).mkdir(parents=True)
    (folder / "ecals_annotation/annotation.json").write_text(json.dumps(SONGS))
    (folder / "ecals_annotation/ecals_track_split.json").write_text(json.dumps(SPLIT))
    (folder / "lastfm_annotation/MSD_id_to_7D_id.json").write_text(json.dumps({SUN: 8947470}))
    (folder / "lastfm_annotation/7D_id_to_path.json").write_text(json.dumps({"8947470": RECORDING}))
    soundfile.write(folder / "songs" / RECORDING, 0.1 * np.ones(16_000), 16_000, format="MP3")
    return folder


def test_ecals(source, tmp_path, capsys):
    sun, rain = msd.clips(source, "train")  # Snow has neither a tag nor a caption
    tags = "hip hop, laid back mellow"
    assert sun.captions == [tags, f"In The Sunshine by ARRESTED DEVELOPMENT: {tags}"]
    assert (sun.key, sun.labels, sun.path) == (SUN, SONGS[SUN]["tag"], source / "songs" / RECORDING)
    assert rain.captions == ["piano"]
    assert not list(msd.clips(source, "test"))
    assert msd.main([str(source), str(tmp_path / "shards")]) == 0
    assert f"left out {RAIN}" in capsys.readouterr().out
    assert verify(tmp_path / "shards/train")["num_clips"] == 1


def test_tracks_of_other_splits_are_refused_in_training(source):
    split = {**SPLIT, "test_track": [RAIN]}
    (source / "ecals_annotation/ecals_track_split.json").write_text("\ufeff" + json.dumps(split), encoding="utf-8")
    assert [clip.key for clip in msd.clips(source, "train")] == [SUN]
    assert [clip.key for clip in msd.clips(source, "test")] == [RAIN]
    (source / "lastfm_annotation/MSD_id_to_7D_id.json").write_text(json.dumps({SUN: 8947470, RAIN: 8947470}))
    assert not list(msd.clips(source, "train"))  # another track, the same recording


def test_lp_musiccaps(source, tmp_path):
    row = {"track_id": SNOW, "caption_writing": "It snows.", "caption_summary": "", "caption_paraphrase": "Snow."}
    row["caption_attribute_prediction"] = "Not to be used."
    path = tmp_path / "captions.jsonl"
    path.write_text("\ufeff" + json.dumps(row) + "\n", encoding="utf-8")
    assert [clip.captions for clip in msd.clips(source, "train", lp_musiccaps=path)][2] == ["It snows.", "Snow."]
    path.write_text("{}\n{\n")
    with pytest.raises(UserError, match="no 'track_id'"):
        list(msd.clips(source, "train", lp_musiccaps=path))
    path.write_text("{\n")
    with pytest.raises(UserError, match="line 1: not a line of JSON"):
        list(msd.clips(source, "train", lp_musiccaps=path))
    with pytest.raises(UserError, match="no such file"):
        list(msd.clips(source, "train", lp_musiccaps=tmp_path / "none.jsonl"))


def test_recordings_by_name(source):
    shutil.rmtree(source / "lastfm_annotation")
    (source / "songs" / RECORDING).rename(source / "songs/8" / f"{SUN}.mp3")
    sun, rain = msd.clips(source, "train")
    assert (sun.path, rain.path) == (source / f"songs/8/{SUN}.mp3", source / f"songs/{RAIN}.mp3")


def test_pickled_tables_are_not_opened(source):
    table = source / "lastfm_annotation/MSD_id_to_7D_id.json"
    table.rename(table.with_suffix(".pkl"))
    with pytest.raises(UserError, match="convert them to JSON"):
        list(msd.clips(source, "train"))


def test_user_errors(source, tmp_path):
    with pytest.raises(UserError, match="holds neither ecals_annotation"):
        list(msd.clips(tmp_path, "train"))
    path = source / "ecals_annotation/annotation.json"
    path.write_text(json.dumps({SUN: {"track_id": SUN}}))
    with pytest.raises(UserError, match="no 'tag'"):
        list(msd.clips(source, "train"))
    path.write_text("{}")
    with pytest.raises(UserError, match=f"names {SUN}"):
        list(msd.clips(source, "train"))


def test_real_tags(real_data, tmp_path):
    shutil.copy(real_data / "metadata/msd_lpmc/msd_train_tag_to_track.json", tmp_path / "train_tag_to_track.json")
    found = {clip.key: clip for clip in msd.clips(tmp_path, "train")}
    assert len(found) == 1063  # 1,054 tags with two tracks each, and "..."
    assert len({tag for clip in found.values() for tag in clip.labels}) == 1054
    assert "00s" in found["TRJGULQ128F423BCBE"].labels
    assert not list(msd.clips(tmp_path, "valid"))
