import json
import shutil

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import wavcaps
from data.verify import verify

ITEMS = {
    "AudioSet_SL": [{"id": "Y7fmOlUlwoNg.wav", "caption": "A machine rattles.", "duration": 10.0}],
    "FreeSound": [{"id": "156", "caption": "Bees buzz.", "duration": 20.0, "tags": ["bees"]}],
    "SoundBible": [{"id": "156", "caption": "A door slams.", "duration": 2.0, "title": "Door"}],
}


@pytest.fixture
def source(tmp_path):
    for part, items in ITEMS.items():
        path = tmp_path / "WavCaps/json_files" / part / wavcaps.PARTS[part]
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"num_captions_per_audio": 1, "data": items}))
    for name in ("Audio/FreeSound/156", "Zip_files/SoundBible/mnt/SoundBible_flac/156"):
        path = tmp_path / "WavCaps" / f"{name}.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, 0.1 * np.ones(3 * 8000), 8000)
    return tmp_path / "WavCaps"


def test_parts(source):
    machine, bees, door = wavcaps.clips(source, "train", exclude=[])
    assert (machine.key, machine.extra["source_id"]) == ("AudioSet_SL__Y7fmOlUlwoNg", "youtube:7fmOlUlwoNg")
    assert machine.path == source / "Audio/AudioSet_SL/Y7fmOlUlwoNg.flac"
    assert (bees.text, bees.extra["source_id"]) == ("Bees buzz.", "freesound:156")
    assert door.path == source / "Zip_files/SoundBible/mnt/SoundBible_flac/156.flac"


def test_shards(source, tmp_path, capsys):
    blacklist = tmp_path / "blacklist.json"
    blacklist.write_text(json.dumps({"AudioSet": ["YvfY_TJq7n_U.wav"], "FreeSound": ["156"]}))
    command = [str(source), str(tmp_path / "shards"), "--max-seconds", "2", "--exclude", str(blacklist)]
    assert wavcaps.main(command) == 0
    printed = capsys.readouterr().out
    assert "refused 1 clips" in printed and "left out AudioSet_SL__Y7fmOlUlwoNg" in printed
    index = verify(tmp_path / "shards/train")
    assert (index["num_clips"], index["seconds"]) == (1, 2.0)


def test_odd_entries_are_listed(source, tmp_path, capsys):
    items = [
        {"id": 156, "caption": "a number"},
        {"id": 156.0, "caption": "the same number"},
        {"id": "156.flac", "caption": "a file"},
        {"id": "1 2", "caption": "a blank"},
        {"id": "1-2", "caption": "a dash"},
        *({"id": "156", "caption": caption} for caption in (None, float("nan"), ["a", "b"], "", "caf\ufffd")),
        *({"id": identity, "caption": "no id"} for identity in (None, [], "")),
    ]
    for path in source.glob("json_files/*/*.json"):
        path.unlink()
    table = source / "json_files/FreeSound/fsd_final.json"
    table.write_text("\ufeff" + json.dumps({"data": items}), encoding="utf-8")
    for name in ("1 2", "1-2"):
        soundfile.write(source / f"Audio/FreeSound/{name}.wav", 0.1 * np.ones(8000), 8000)
    assert [clip.extra["source_id"] for clip in wavcaps.clips(source, "train", [])][:3] == ["freesound:156"] * 3
    assert wavcaps.main([str(source), str(tmp_path / "shards"), "--shuffle", "0", "--exclude"]) == 0
    index = verify(tmp_path / "shards/train")
    assert (index["num_clips"], len(index["skipped"])) == (5, 8)
    numbered = ["FreeSound__156__2", "FreeSound__156__3", "FreeSound__1-2__2"]
    assert [clip["key"] for clip in index["changed"]] == numbered
    assert "changed FreeSound__156__2: numbered" in capsys.readouterr().out


def test_user_errors(source, tmp_path):
    with pytest.raises(UserError, match="none of WavCaps' four"):
        list(wavcaps.clips(tmp_path, "train", exclude=[]))
    with pytest.raises(UserError, match="--exclude"):
        list(wavcaps.clips(source, "train"))
    table = source / "json_files/SoundBible/sb_final.json"
    table.write_text(json.dumps({"data": [{"id": "1"}]}))
    with pytest.raises(UserError, match="no 'caption'"):
        list(wavcaps.clips(source, "train", exclude=[]))
    table.write_text("[]")
    with pytest.raises(UserError, match="no list 'data'"):
        list(wavcaps.clips(source, "train", exclude=[]))


def test_real_soundbible(real_data, tmp_path):
    metadata = real_data / "metadata/wavcaps"
    (tmp_path / "json_files/SoundBible").mkdir(parents=True)
    shutil.copy(metadata / "sb_final_0_100.json", tmp_path / "json_files/SoundBible/sb_final.json")
    found = list(wavcaps.clips(tmp_path, "train", [metadata / "blacklist_exclude_test_ac_excerpt.json"]))
    assert len(found) == len({clip.key for clip in found}) == 100
    assert (found[0].key, found[0].text) == ("SoundBible__2219", "An airplane is landing.")
