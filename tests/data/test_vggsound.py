import shutil

import pytest

from audioldm2_pl.errors import UserError
from data import vggsound

ROWS = '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"waterfall, burbling",train\n7fmOlUlwoNg,20,typing,train\n'


def test_the_whole_list(tmp_path, capsys):
    (tmp_path / "vggsound.csv").write_text(ROWS)
    (tmp_path / "video").mkdir()
    (tmp_path / "video/--0PQM4-hqg_000030.mp4").touch()
    waterfall, typing = vggsound.clips(tmp_path, "train", exclude=[])
    assert (waterfall.text, waterfall.labels) == ("waterfall, burbling", ["waterfall, burbling"])
    assert waterfall.path == tmp_path / "video/--0PQM4-hqg_000030.mp4"
    assert (typing.key, typing.duration) == ("7fmOlUlwoNg__20", 10.0)
    assert [clip.text for clip in vggsound.clips(tmp_path, "test")] == ["people marching"]
    listed = tmp_path / "test.csv"
    listed.write_text("audiocap_id,youtube_id,start_time,caption\n1,7fmOlUlwoNg,20,Rattling\n")
    assert [clip.text for clip in vggsound.clips(tmp_path, "train", [listed])] == ["waterfall, burbling"]
    assert "refused 1 clips" in capsys.readouterr().out


def test_videos_of_the_test_split_are_refused_in_training(tmp_path):
    (tmp_path / "vggsound.csv").write_text("\ufeff" + ROWS + "---g-f_I2yQ,50,people marching,train\n", encoding="utf-8")
    assert [clip.text for clip in vggsound.clips(tmp_path, "train", [])] == ["waterfall, burbling", "typing"]
    (tmp_path / "vggsound.csv").unlink()
    (tmp_path / "train.csv").write_text("---g-f_I2yQ_000050.mp4,marching\n7fmOlUlwoNg_000020.mp4,typing\n")
    assert [clip.text for clip in vggsound.clips(tmp_path, "train", [])] == ["marching", "typing"]
    (tmp_path / "test.csv").write_text("---g-f_I2yQ_000001.mp4,marching\n")
    assert [clip.text for clip in vggsound.clips(tmp_path, "train", [])] == ["typing"]


def test_user_errors(tmp_path, capsys):
    assert vggsound.main([str(tmp_path), str(tmp_path / "out"), "--exclude"]) == 2
    assert r"holds neither vggsound.csv" in capsys.readouterr().err
    with pytest.raises(UserError, match="--exclude"):
        list(vggsound.clips(tmp_path, "train"))
    for row in ("a.mp4,typing", "7fmOlUlwoNg,20,typing,trian", '7fmOlUlwoNg,20,"typing'):
        (tmp_path / "vggsound.csv").write_text(ROWS + row + "\n")
        with pytest.raises(UserError, match=r"line 4: (.* not a row of VGGSound|no row of CSV)"):
            list(vggsound.clips(tmp_path, "test"))


def test_real_list(real_data, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(real_data / "metadata/vggsound/test_head.csv", tmp_path / "data/test.csv")
    found = list(vggsound.clips(tmp_path, "test"))
    assert len(found) == len({clip.key for clip in found}) == 200
    assert (found[0].key, found[0].text) == ("glLQrEijrKg__300", "playing hammond organ")
