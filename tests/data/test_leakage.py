import json

import pytest

from audioldm2_pl.errors import UserError
from data.leakage import excluded_ids, read_ids, without_ids
from data.shards import Clip

IDS = {"youtube:7fmOlUlwoNg", "youtube:6BJ455B1aAs"}


@pytest.mark.parametrize(
    "content",
    [
        "caption, youtube_id \nx, 7fmOlUlwoNg \ny,6BJ455B1aAs\n",
        "youtube_id,caption\n 7fmOlUlwoNg ,x\n6BJ455B1aAs,y\n",
        "youtube_id,caption\nY7fmOlUlwoNg,x\nY6BJ455B1aAs,y\n",
        "youtube_id,caption\n7fmOlUlwoNg.wav,x\nY6BJ455B1aAs.flac,y\n",
        "youtube_id,caption\n7fmOlUlwoNg_20,x\n6BJ455B1aAs_0_10000,y\n",
        "ytid\nhttps://www.youtube.com/watch?v=7fmOlUlwoNg\nhttps://youtu.be/6BJ455B1aAs\n",
        "\ufeffYTID, start_seconds, end_seconds, positive_labels\n7fmOlUlwoNg, 0, 1, /m/1\n6BJ455B1aAs, 0, 1, /m/1\n",
    ],
)
def test_ids_in_other_shapes(tmp_path, content):
    path = tmp_path / "list.csv"
    path.write_text(content, encoding="utf-8")
    assert read_ids(path) == IDS


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "file_name,sound_id\na.wav,123.0\nb.wav,Not found\n"),
        ("a.csv", "filename,fold,src_file\n1-123-A-0.wav,1, 123\n"),
        ("a.json", '{"FreeSound": ["123.flac", 123, 123.0, "https://freesound.org/s/123/"]}'),
    ],
)
def test_numbers_in_other_shapes(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert read_ids(path) == {"freesound:123"}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "youtube_id,x\n7fmOlUlwoNg,1\n#NAME?,2\n", "line 3: '#NAME\\?' is not named by a YouTube id"),
        ("a.csv", "ytid,x\n,1\n", "line 2: '' is not named by"),
        ("a.csv", "sound_id,x\nrain,1\n", "line 2: 'rain' is not a number of FreeSound's"),
        ("a.json", '{"AudioSet": [null]}', "a.json: None is not named by"),
    ],
)
def test_what_is_no_id_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_ids(path)


def test_a_list_that_names_no_clip_is_a_warning(tmp_path, capsys):
    clips = [Clip(key="a", extra={"source_id": "youtube:7fmOlUlwoNg"}), Clip(key="b")]
    met, other = tmp_path / "met.csv", tmp_path / "other.csv"
    met.write_text("ytid\n7fmOlUlwoNg\n")
    other.write_text("ytid\n6BJ455B1aAs\n" + "".join(f"aaaaaaaaaa{number}\n" for number in range(5)))
    assert [clip.key for clip in without_ids(clips, excluded_ids([met, other]), [met, other])] == ["b"]
    assert capsys.readouterr().err == (
        f"warning: {other}: none of its 6 ids is in this corpus "
        "(youtube:6BJ455B1aAs, youtube:aaaaaaaaaa0, youtube:aaaaaaaaaa1, ...)\n"
    )


def test_refused_clips_are_counted(capsys):
    clips = [Clip(key=name, extra={"source_id": f"youtube:{name}"}) for name in ("a", "b", "c")]
    kept = list(without_ids(clips, {"youtube:b", "freesound:a"}))
    assert [clip.key for clip in kept] == ["a", "c"]
    assert capsys.readouterr().out == "refused 1 clips of evaluation sets (2 ids listed)\n"
    assert list(without_ids(clips, set())) == clips
    assert capsys.readouterr().out == ""


LISTS = {
    "test.csv": "audiocap_id,youtube_id,start_time,caption\n1,7fmOlUlwoNg,20,A\n2,6BJ455B1aAs,0,B\n3,6BJ455B1aAs,0,C\n",
    "musiccaps-public.csv": 'ytid,start_s,caption\n7fmOlUlwoNg,30,"x, y"\n6BJ455B1aAs,1,z\n',
    "eval_segments.csv": (
        "# Segments csv created\n# YTID, start_seconds, end_seconds, positive_labels\n"
        '7fmOlUlwoNg, 0.0, 1.0, "/m/1"\n6BJ455B1aAs, 0.0, 1.0, "/m/1,/m/2"\n'
    ),
    "ours.json": json.dumps({"data": [{"wav": f"/x/Y{name}.wav"} for name in ("7fmOlUlwoNg", "6BJ455B1aAs")]}),
}


@pytest.mark.parametrize("name", LISTS)
def test_published_lists(tmp_path, name):
    path = tmp_path / name
    path.write_text(LISTS[name])
    assert read_ids(path) == IDS


def test_lists_of_freesound(tmp_path):
    blacklist, clotho = tmp_path / "blacklist.json", tmp_path / "clotho_metadata_evaluation.csv"
    blacklist.write_text(json.dumps({"AudioSet": ["Y7fmOlUlwoNg.wav"], "FreeSound": ["156"]}))
    clotho.write_text("file_name,keywords,sound_id\na.wav,x;y,201\nb.wav,z,Not found\n")
    assert excluded_ids([blacklist, clotho]) == {"youtube:7fmOlUlwoNg", "freesound:156", "freesound:201"}


def test_what_is_no_list(tmp_path):
    path = tmp_path / "list.csv"
    for content, message in (("a,b\n1,2\n", "no list of evaluation"), ("ytid,b\n", "lists no clips")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_ids(path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="no list of evaluation"):
        read_ids(tmp_path / "list.json")
    with pytest.raises(UserError, match="no such list"):
        read_ids(tmp_path / "none.csv")
    with pytest.raises(UserError, match="--exclude"):
        excluded_ids(None)
    assert excluded_ids([]) == set()


def test_real_lists(real_data):
    metadata = real_data / "metadata"
    test = read_ids(metadata / "audiocaps/test.csv")
    assert len(test) == 975
    authors = read_ids(metadata / "audioldm/audiocaps_test_nonrepeat_subset_2.json")
    assert len(authors) == 964 and authors < test
    assert len(read_ids(metadata / "musiccaps/musiccaps-public_0_1500.csv")) == 1500
    assert len(read_ids(metadata / "audioset/eval_segments_head.csv")) == 1000
    blacklist = read_ids(metadata / "wavcaps/blacklist_exclude_test_ac_excerpt.json")
    assert len(blacklist) == 100 and "freesound:31946" in blacklist and "youtube:vfY_TJq7n_U" in blacklist
