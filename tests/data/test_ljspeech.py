import shutil

import pytest

from audioldm2_pl.errors import UserError
from data import ljspeech
from data.verify import verify

ROWS = 'LJ001-0001|Printing, in 1455|Printing, in fourteen fifty-five\nLJ001-0002|"Well|"Well\nLJ001-0003|a "b" c|\n'


def test_columns(tmp_path):
    (tmp_path / "metadata.csv").write_text(ROWS)
    printing, well, last = ljspeech.clips(tmp_path, "train")
    assert (printing.transcript, printing.extra["printed"]) == ("Printing, in fourteen fifty-five", "Printing, in 1455")
    assert (well.transcript, last.transcript) == ('"Well', 'a "b" c')
    assert printing.text is None and printing.path == tmp_path / "wavs/LJ001-0001.wav"
    assert not list(ljspeech.clips(tmp_path, "test"))


def test_lists(tmp_path):
    (tmp_path / "metadata.csv").write_text(ROWS)
    (tmp_path / "training.txt").write_text("LJ001-0001|a|a\nLJ001-0003|c|c\n")
    (tmp_path / "validation.txt").write_text("LJ001-0002|b|b\n")

    def keys(split):
        return [clip.key for clip in ljspeech.clips(tmp_path, split, filelists=tmp_path)]

    assert [keys(split) for split in ljspeech.SPLITS] == [["LJ001-0001", "LJ001-0003"], ["LJ001-0002"], []]
    (tmp_path / "ljs_audio_text_test_filelist.txt").write_text("DUMMY/LJ001-0003.wav|c\n")
    assert keys("test") == ["LJ001-0003"]


def test_bom_blanks_and_what_other_lists_name(tmp_path, capsys):
    (tmp_path / "metadata.csv").write_text("\ufeff" + ROWS, encoding="utf-8")
    lists = {
        "train": "\ufeffDUMMY/LJ001-0001.wav |a\nLJ001-0002|b\n",
        "val": "LJ001-0002|b\n",
        "test": "LJ001-0003|c\n",
    }
    for split, content in lists.items():
        (tmp_path / f"ljs_audio_text_{split}_filelist.txt").write_text(content, encoding="utf-8")
    assert [clip.key for clip in ljspeech.clips(tmp_path, "train")] == ["LJ001-0001", "LJ001-0002", "LJ001-0003"]
    assert [clip.key for clip in ljspeech.clips(tmp_path, "train", filelists=tmp_path)] == ["LJ001-0001"]
    assert "refused 1 clips" in capsys.readouterr().out


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"metadata\.csv: no such file"):
        list(ljspeech.clips(tmp_path, "train"))
    (tmp_path / "metadata.csv").write_text("LJ001-0001|a\n")
    with pytest.raises(UserError, match="line 1"):
        list(ljspeech.clips(tmp_path, "train"))
    (tmp_path / "metadata.csv").write_bytes("LJ001-0001|a|a\nLJ001-0002|é|é\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 2: holds a byte"):
        list(ljspeech.clips(tmp_path, "train"))
    with pytest.raises(UserError, match="holds neither"):
        list(ljspeech.clips(tmp_path, "train", filelists=tmp_path))


def test_real_clips(real_data, tmp_path):
    assert ljspeech.main([str(real_data / "ljspeech"), str(tmp_path / "shards")]) == 0
    index = verify(tmp_path / "shards/train")
    assert index["num_clips"] == 20 and not index["skipped"]
    assert not (tmp_path / "shards/test").exists()


def test_real_lists(real_data, tmp_path):
    lists = real_data / "metadata/ljspeech"
    shutil.copy(lists / "ljs_audio_text_val_filelist.txt", tmp_path)
    assert len(ljspeech.read_list(tmp_path, "val")) == 100
    # HiFi-GAN's validation list has the corpus's own layout.
    shutil.copy(lists / "hifigan_validation.txt", tmp_path / "validation.txt")
    shutil.copy(lists / "hifigan_validation.txt", tmp_path / "metadata.csv")
    (tmp_path / "training.txt").touch()
    (tmp_path / "ljs_audio_text_val_filelist.txt").unlink()
    found = list(ljspeech.clips(tmp_path, "val", filelists=tmp_path))
    assert len(found) == 150 and all(clip.transcript for clip in found)
