import json
import shutil
import tarfile

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import audiocaps
from data.verify import verify

HEADER = "audiocap_id,youtube_id,start_time,caption\n"
TRAIN = HEADER + '1,r1nicOVtvkQ,130,A woman talks\n2,UDGBjjwyaqE,20,"Clanging, clanking"\n3,7fmOlUlwoNg,20,Rattling\n'
TEST = HEADER + "4,7fmOlUlwoNg,20,Constant rattling\n5,6BJ455B1aAs,0,A rocket\n6,7fmOlUlwoNg,20,A machine clicks\n"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "AudioCaps"
    (folder / "audio").mkdir(parents=True)
    (folder / "train.csv").write_text(TRAIN)
    (folder / "test.csv").write_text(TEST)
    for name in ("Y7fmOlUlwoNg", "Yr1nicOVtvkQ"):
        soundfile.write(folder / "audio" / f"{name}.wav", 0.1 * np.ones(8000), 8000)
    return folder


def test_captions_are_grouped(source):
    rattling, rocket = audiocaps.clips(source, "test")
    assert rattling.captions == ["Constant rattling", "A machine clicks"] and rattling.text is None
    assert (rocket.key, rocket.text, rocket.captions) == ("6BJ455B1aAs__0", "A rocket", None)
    assert rattling.path == source / "audio/Y7fmOlUlwoNg.wav"


def test_no_test_clip_is_trained_on(source, tmp_path, capsys):
    assert [clip.text for clip in audiocaps.clips(source, "train")] == ["A woman talks", "Clanging, clanking"]
    assert "refused 1 clips" in capsys.readouterr().out
    other = tmp_path / "musiccaps-public.csv"
    other.write_text("ytid,start_s\nUDGBjjwyaqE,20\n")
    assert [clip.text for clip in audiocaps.clips(source, "train", [other])] == ["A woman talks"]


def test_ids_of_other_shapes_are_refused_and_lists_that_name_nothing_told(source, tmp_path, capsys):
    (source / "test.csv").write_text(TEST.replace("7fmOlUlwoNg", "Y7fmOlUlwoNg.wav "))
    other = tmp_path / "list.csv"
    other.write_text("youtube_id\naaaaaaaaaaa\n")
    command = [str(source), str(tmp_path / "shards"), "--splits", "train", "--exclude", str(other)]
    assert audiocaps.main(command) == 0
    told = capsys.readouterr()
    assert "refused 1 clips of evaluation sets (3 ids listed)" in told.out
    assert told.err.count("none of its 1 ids is in this corpus (youtube:aaaaaaaaaaa, ...)") == 1
    assert told.err.count("val.csv is not there") == 1


def test_whole_videos_damaged_files_and_blank_captions(source, tmp_path, capsys):
    whole = np.concatenate([0.1 * np.ones(130 * 100), np.sin(np.arange(10 * 100))])
    soundfile.write(source / "audio/Yr1nicOVtvkQ.wav", whole.repeat(80), 8000)
    (source / "audio/Y7fmOlUlwoNg.mp4").write_bytes(b"half a video")
    soundfile.write(source / "audio/YUDGBjjwyaqE.wav", 0.1 * np.ones(400), 8000)
    (source / "train.csv").write_text(TRAIN + "4,6BJ455B1aAs,5, \n")
    (source / "test.csv").unlink()
    assert audiocaps.main([str(source), str(tmp_path / "shards"), "--splits", "train"]) == 0
    index = verify(tmp_path / "shards/train")
    assert [clip["key"] for clip in index["skipped"]] == ["UDGBjjwyaqE__20", "6BJ455B1aAs__5"]
    with tarfile.open(tmp_path / "shards/train/000000.tar") as archive:
        fields = json.load(archive.extractfile("r1nicOVtvkQ__130.json"))
    assert (fields["start"], fields["duration"]) == (130.0, 10.0)


def test_a_broken_table_is_refused(source):
    for row in ('4,6BJ455B1aAs,0,"a bell', "4,6BJ455B1aAs,0,a bell rings, then rain", "4,6BJ455B1aAs"):
        (source / "train.csv").write_text(TRAIN + row + "\n5,6BJ455B1aAs,9,rain\n")
        with pytest.raises(UserError, match=r"train\.csv, line 5"):
            list(audiocaps.clips(source, "train"))


def test_the_authors_list(source, tmp_path, capsys):
    path = tmp_path / "list.json"
    item = {"wav": "/far/away/Y7fmOlUlwoNg.wav", "labels": "/m/09x0r", "caption": "A machine clicks"}
    path.write_text(json.dumps({"data": [item]}))
    (clip,) = audiocaps.clips(source, "test", evaluation_list=path)
    assert (clip.text, clip.captions, clip.extra["source_start"]) == ("A machine clicks", None, 20.0)
    assert "7fmOlUlwoNg__20" not in {clip.key for clip in audiocaps.clips(source, "train", evaluation_list=path)}
    command = [str(source), str(tmp_path / "shards"), "--splits", "train", "test", "--evaluation-list", str(path)]
    assert audiocaps.main(command) == 0
    assert "left out UDGBjjwyaqE__20" in capsys.readouterr().out
    assert [verify(tmp_path / "shards" / split)["num_clips"] for split in ("train", "test")] == [1, 1]
    path.write_text(json.dumps({"data": [item | {"wav": "Yabcdefghijk.wav"}]}))
    with pytest.raises(UserError, match="no clip of abcdefghijk"):
        list(audiocaps.clips(source, "test", evaluation_list=path))
    path.write_text("{}")
    with pytest.raises(UserError, match="not the authors' list"):
        list(audiocaps.clips(source, "test", evaluation_list=path))


def test_real_lists(real_data, tmp_path, capsys):
    metadata = real_data / "metadata"
    (tmp_path / "dataset").mkdir()
    shutil.copy(metadata / "audiocaps/test.csv", tmp_path / "dataset/test.csv")
    shutil.copy(metadata / "audiocaps/train_head.csv", tmp_path / "dataset/train.csv")
    test = list(audiocaps.clips(tmp_path, "test"))
    assert len(test) == 975 and all(len(clip.captions) == 5 for clip in test)
    assert len(list(audiocaps.clips(tmp_path, "train"))) == 300
    assert "refused 0 clips of evaluation sets (975 ids listed)" in capsys.readouterr().out
    path = metadata / "audioldm/audiocaps_test_nonrepeat_subset_2.json"
    authors = list(audiocaps.clips(tmp_path, "test", evaluation_list=path))
    assert len(authors) == 964
    captions = {clip.key: clip.captions for clip in test}
    assert all(clip.text in captions[clip.key] for clip in authors)
