import pytest

from audioldm2_pl.errors import UserError
from audioldm2_pl.tables import read_json
from data.sources import audio_files, fields, number, site_id, source_id, youtube_files

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
    assert youtube_files(files, tmp_path, VIDEO, 21.0, 31.0) == [path]
    assert youtube_files(files, tmp_path, "Y0jeONf82dE", 21.0, 31.0) == [tmp_path / "YY0jeONf82dE.wav"]


def test_real_names_of_lp_musiccaps(real_data):
    annotation = read_json(real_data / "metadata/msd_lpmc/musiccaps_annotation.json")
    files = {name: [f"{name}.wav"] for name in annotation}
    for name, row in annotation.items():
        video, start, end = fields(row, ("ytid", "start_s", "end_s"), real_data)
        assert youtube_files(files, real_data, video, start, end)[0].stem == name


def test_the_clip_at_the_right_second_comes_before_the_video(tmp_path):
    for name in (f"{VIDEO}_000021.wav", f"{VIDEO}_000099.wav", f"{VIDEO}.wav", "notes.txt"):
        (tmp_path / name).touch()
    files = audio_files(tmp_path)
    assert len(files) == 3
    assert [path.name for path in youtube_files(files, tmp_path, VIDEO, 99, 109)] == [
        f"{VIDEO}_000099.wav",
        f"{VIDEO}.wav",
    ]
    assert youtube_files(files, tmp_path, VIDEO, 5, 15) == [tmp_path / f"{VIDEO}.wav"]


def test_equal_stems_stay_together_in_the_order_of_path(tmp_path):
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.FLAC").touch()
    assert audio_files(tmp_path) == {"1": [str(tmp_path / folder / "1.FLAC") for folder in "ab"]}


def test_video_id():
    assert site_id("youtube", "YvfY_TJq7n_U.wav") == "vfY_TJq7n_U"
    assert site_id("youtube", "/data/part9/Y7fmOlUlwoNg.wav") == site_id("youtube", "7fmOlUlwoNg") == "7fmOlUlwoNg"
    assert site_id("youtube", "YYQSuFyFm3Lc.wav") == site_id("youtube", "YQSuFyFm3Lc") == "YQSuFyFm3Lc"
    with pytest.raises(UserError, match="not named by a YouTube id"):
        site_id("youtube", "bird.wav")


@pytest.mark.parametrize(
    "name",
    [
        f" {VIDEO} ",
        f"Y{VIDEO}",
        f"{VIDEO}_30",
        f"Y{VIDEO}_30.000.wav",
        f"{VIDEO}_30000_40000.flac",
        f"[{VIDEO}]-[30-40]",
        f"youtube:{VIDEO}",
        f"clips\\{VIDEO}.MP3",
        f"https://www.youtube.com/watch?v={VIDEO}&t=30s",
        f"https://youtu.be/{VIDEO}?t=30",
        f"www.youtube.com/embed/{VIDEO}",
    ],
)
def test_ids_of_youtube_in_all_their_shapes(name):
    assert source_id("youtube", name) == f"youtube:{VIDEO}"


@pytest.mark.parametrize(
    "name", ["YQSuFyFm3Lc", "Yabcdefg_12", "abcdefgh_30", "Y__________", "-0jeONf82dE", "Y_30_40_50_"]
)
def test_whole_ids_of_youtube_stay_as_they_are(name):
    assert (
        site_id("youtube", name) == site_id("youtube", f"Y{name}.wav") == site_id("youtube", f"{name}_30.wav") == name
    )


@pytest.mark.parametrize(
    "name",
    [
        123,
        123.0,
        " 123",
        "123.0",
        "00123",
        "123.flac",
        "FreeSound/123.MP3",
        "123__me__rain.wav",
        "freesound:123",
        "https://freesound.org/people/me/sounds/123/",
        "freesound.org/s/123",
    ],
)
def test_numbers_of_freesound_in_all_their_shapes(name):
    assert source_id("freesound", name) == "freesound:123"


def test_what_is_no_id():
    for name in ("Not found", "123.5", "1e5", "rain-123", None, float("nan")):
        with pytest.raises(UserError, match="not a number of FreeSound's"):
            site_id("freesound", name)
    assert source_id("youtube", "#NAME?") == "youtube:#NAME?"
    assert source_id("ljspeech", " LJ001-0001") == "ljspeech:LJ001-0001"


def test_fields_and_numbers(tmp_path):
    assert fields({"a": 1, "b": 2}, ("b", "a"), "t.csv") == [2, 1]
    with pytest.raises(UserError, match="no 'c'"):
        fields({"a": 1}, ("a", "c"), "t.csv")
    assert number("21.000", "t.csv") == 21.0
    for text in ("soon", "nan", "inf", "-1", "", None):
        with pytest.raises(UserError, match="stands where a number"):
            number(text, "t.csv, line 2")
