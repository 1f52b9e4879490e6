import shutil

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import fma
from data.verify import verify

# The first three rows of tracks.csv, of its 53 columns those that are read and a few of the others.
TRACKS = """\
,album,album,artist,artist,set,set,track,track,track,track,track,track
,comments,title,name,tags,split,subset,duration,genre_top,genres,license,tags,title
track_id,,,,,,,,,,,,
2,0,AWOL - A Way Of Life,AWOL,"['awol']",training,small,168,Hip-Hop,[21],CC BY-NC-SA 3.0,[],Food
10,0,Constant Hitmaker,Kurt Vile,"[]",validation,large,161,Pop,"[10, 21]",CC BY-NC-ND 3.0,"['lo-fi', 'guitar']",Freeway
137,0,"Live, at LACE",Airway,"[]",test,full,1233,,[],CC BY,[],Side A
"""
GENRES = "genre_id,#tracks,parent,title,top_level\n21,12552,0,Hip-Hop,21\n10,13845,0,Pop,10\n"
RAW = """\
track_id,artist_name,license_title,tags,track_genres,track_title
2,AWOL,CC BY-NC-SA,[],"[{'genre_id': '21', 'genre_title': 'Hip-Hop', 'genre_url': 'http://x'}]",Food
3,AWOL,CC BY-NC-SA,['beats'],"{21, 10}",Electric
5,AWOL,CC BY-NC-SA,[],,This World
"""


@pytest.fixture
def source(tmp_path):
    for folder in ("fma_metadata", "fma_large/000", "fma_small/000"):
        (tmp_path / "fma" / folder).mkdir(parents=True)
    (tmp_path / "fma/fma_metadata/tracks.csv").write_text(TRACKS)
    (tmp_path / "fma/fma_metadata/genres.csv").write_text(GENRES)
    for name in ("fma_large/000/000002.mp3", "fma_small/000/000002.mp3"):
        soundfile.write(tmp_path / "fma" / name, 0.1 * np.ones(3 * 16_000), 16_000, format="MP3")
    return tmp_path / "fma"


def test_tracks(source):
    (food,) = fma.clips(source, "train")
    assert (food.key, food.labels, food.text) == ("fma__000002", ["Hip-Hop"], None)
    assert food.path == source / "fma_large/000/000002.mp3"
    assert (food.extra["title"], food.extra["artist"], food.licence) == ("Food", "AWOL", "CC BY-NC-SA 3.0")
    (freeway,) = fma.clips(source, "val", genre_captions=True)
    assert freeway.text == "Pop, Hip-Hop, lo-fi, guitar"
    assert not list(fma.clips(source, "val", subset="small"))
    assert not list(fma.clips(source, "test"))  # whole tracks only
    (source / "fma_full").mkdir()
    assert [clip.text for clip in fma.clips(source, "test", genre_captions=True)] == [None]


def test_tracks_of_other_splits_are_refused_in_training(source):
    row = '2,0,AWOL,AWOL,"[]",test,small,168,Hip-Hop,[21],CC BY,[],Food\n'
    path = source / "fma_metadata/tracks.csv"
    path.write_text("\ufeff" + TRACKS + row, encoding="utf-8")
    assert not list(fma.clips(source, "train"))


def test_raw_tracks(source):
    (source / "fma_metadata/tracks.csv").unlink()
    (source / "fma_metadata/raw_tracks.csv").write_text(RAW)
    found = list(fma.clips(source, "train"))
    assert [clip.labels for clip in found] == [["Hip-Hop"], ["Pop", "Hip-Hop"], []]
    assert found[1].extra["tags"] == ["beats"]
    assert not list(fma.clips(source, "test"))


def test_shards(source, tmp_path, capsys):
    assert fma.main([str(source), str(tmp_path / "shards"), "--splits", "train", "--max-seconds", "2"]) == 0
    assert verify(tmp_path / "shards/train")["seconds"] == 2.0
    assert fma.main([str(source), str(tmp_path / "shards"), "--subset", "medium"]) == 2
    assert "does not hold fma_medium" in capsys.readouterr().err


def test_user_errors(source):
    (source / "fma_metadata/genres.csv").unlink()
    with pytest.raises(UserError, match=r"genre 21 is not in .*genres\.csv"):
        list(fma.clips(source, "train"))
    path = source / "fma_metadata/tracks.csv"
    for old, new, message in (
        ("set,set", "get,set", r"set\.split is missing"),
        ("track_id", "2", "the row of track_id is missing"),
        ("\n137,0", "\n137", "line 6: not a row"),
        ("validation", "valid", "line 5: split 'valid'"),
        ("Freeway", '"Freeway', "line 5: no row of CSV"),
    ):
        path.write_text(TRACKS.replace("[21]", "[]").replace("[10, 21]", "[]").replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            list(fma.clips(source, "train"))


def test_real_raw_tracks(real_data, tmp_path):
    folder = tmp_path / "fma_metadata"
    for path in (folder, tmp_path / "fma_full"):
        path.mkdir()
    shutil.copy(real_data / "metadata/fma/fma_pop_tracks_head.csv", folder / "raw_tracks.csv")
    (folder / "genres.csv").write_text("genre_id,title\n" + "".join(f"{i},genre {i}\n" for i in range(1300)))
    found = list(fma.clips(tmp_path, "train"))
    assert len(found) == len({clip.key for clip in found}) == 50
    assert found[0].path == tmp_path / "fma_full/089/089433.mp3"
    assert found[0].labels == ["genre 1", "genre 76", "genre 236"] and "hip-hop" in found[0].extra["tags"]
    assert found[0].licence == "Attribution-NonCommercial-ShareAlike 3.0 International"
