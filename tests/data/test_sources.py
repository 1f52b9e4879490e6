from pathlib import Path

import pytest

from audioldm2_pl.errors import UserError
from data.sources import audio_files, fields, number, read_json, read_table, video_id, youtube_file

VIDEO = "-0jeONf82dE"


@pytest.mark.parametrize(
    "name",
    [
        f"Y{VIDEO}.wav",
        f"{VIDEO}.flac",
        f"{VIDEO}_000021.mp4",
        f"{VIDEO}_21.wav",
        f"{VIDEO}_21_31.wav",
        f"{VIDEO}_21-31.wav",
        f"{VIDEO}_21.0-31.0.wav",
        f"{VIDEO}_21000_31000.flac",
        f"[{VIDEO}]-[21-31].wav",
    ],
)
def test_youtube_clips_by_any_name(tmp_path, name):
    path = tmp_path / "part3" / name
    path.parent.mkdir()
    path.touch()
    files = audio_files(tmp_path)
    assert youtube_file(files, tmp_path, VIDEO, 21.0, 31.0) == path
    assert youtube_file(files, tmp_path, "Y0jeONf82dE", 21.0, 31.0) == tmp_path / "YY0jeONf82dE.wav"


def test_real_names_of_lp_musiccaps(real_data):
    annotation = read_json(real_data / "metadata/msd_lpmc/musiccaps_annotation.json")
    files = {name: f"{name}.wav" for name in annotation}
    for name, row in annotation.items():
        video, start, end = fields(row, ("ytid", "start_s", "end_s"), real_data)
        assert youtube_file(files, real_data, video, start, end).stem == name


def test_the_clip_at_the_right_second_comes_before_the_video(tmp_path):
    for name in (f"{VIDEO}_000021.wav", f"{VIDEO}_000099.wav", f"{VIDEO}.wav", "notes.txt"):
        (tmp_path / name).touch()
    files = audio_files(tmp_path)
    assert len(files) == 3
    assert youtube_file(files, tmp_path, VIDEO, 99, 109).name == f"{VIDEO}_000099.wav"
    assert youtube_file(files, tmp_path, VIDEO, 5, 15).name == f"{VIDEO}.wav"


def test_of_equal_stems_the_first_folder_counts(tmp_path):
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.FLAC").touch()
    assert audio_files(tmp_path) == {"1": str(tmp_path / "a" / "1.FLAC")}


def test_video_id():
    assert video_id("YvfY_TJq7n_U.wav") == "vfY_TJq7n_U"
    assert video_id("/data/part9/Y7fmOlUlwoNg.wav") == video_id("7fmOlUlwoNg") == "7fmOlUlwoNg"
    assert video_id("YYQSuFyFm3Lc.wav") == video_id("YQSuFyFm3Lc") == "YQSuFyFm3Lc"
    with pytest.raises(UserError, match="not named by a YouTube id"):
        video_id("bird.wav")


def test_tables_and_json(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('\ufeffid,caption\n1,"a, b"\n', encoding="utf-8")
    assert list(read_table(table, ("id", "caption"))) == [{"id": "1", "caption": "a, b"}]
    with pytest.raises(UserError, match="no column start"):
        list(read_table(table, ("start",)))
    table.write_text("id,caption\n1\n")
    with pytest.raises(UserError, match=r"line 2: the row is cut off"):
        list(read_table(table, ("id", "caption")))
    with pytest.raises(UserError, match="no such file"):
        list(read_table(tmp_path / "none.csv", ()))
    (tmp_path / "half.json").write_text('{"data": [')
    with pytest.raises(UserError, match="not whole JSON"):
        read_json(tmp_path / "half.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "none.json")
    assert fields({"a": 1, "b": 2}, ("b", "a"), table) == [2, 1]
    with pytest.raises(UserError, match="no 'c'"):
        fields({"a": 1}, ("a", "c"), table)
    assert number("21.000", table) == 21.0
    with pytest.raises(UserError, match="'soon' stands where a number"):
        number("soon", Path("t.csv"))
