import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder
from data import esc50
from data.describe import read_contents
from data.verify import verify


def write_tone(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(4410)), 44_100)


@pytest.fixture
def esc50_folder(tmp_path):
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category, esc10 in ((0, "dog", True), (34, "can_opening", False)):
            name = f"{fold}-100-A-{target}.wav"
            rows.append(f"{name},{fold},{target},{category},{esc10},{fold}00,A")
            write_tone(tmp_path / "ESC-50/audio" / name)
    (tmp_path / "ESC-50/meta").mkdir()
    (tmp_path / "ESC-50/meta/esc50.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "ESC-50"


@pytest.fixture
def esc10_folder(tmp_path):
    header = "file,class_id,class,fold,freesound_id,take,freesound_title,freesound_url,author,licence"
    rows = [
        "audio/dog_bark/1-30226-A.ogg,001,Dog bark,1,30226,A,dogs.aiff,http://x,me,CC0",
        'audio/baby_cry/2-11-A.ogg,004,Baby cry,2,11,A,"a, b",http://x,me,somebody',
    ]
    for row in rows:
        write_tone(tmp_path / "esc10" / row.split(",")[0])
    (tmp_path / "esc10/meta.csv").write_bytes("\r\n".join([header, *rows, ""]).encode())
    return tmp_path / "esc10"


def test_esc50_layout(esc50_folder):
    train = list(esc50.clips(esc50_folder, "train", test_fold=5))
    test = list(esc50.clips(esc50_folder, "test", test_fold=5))
    assert (len(train), len(test)) == (8, 2)
    assert {clip.extra["fold"] for clip in test} == {5}
    assert {clip.labels[0]: clip.licence for clip in test} == {
        "dog": "CC BY 3.0",
        "can_opening": "CC BY-NC 3.0",
    }
    assert test[0].key == "dog__5-100-A-0"
    assert len(list(esc50.clips(esc50_folder, "train"))) == 10
    assert not list(esc50.clips(esc50_folder, "test"))


def test_what_shares_a_recording_with_the_test_fold_is_refused(esc50_folder, capsys):
    meta = esc50_folder / "meta/esc50.csv"
    meta.write_text("\ufeff" + meta.read_text().replace(",400,A", ",500,A", 1), encoding="utf-8")
    train = list(esc50.clips(esc50_folder, "train", test_fold=5))
    assert [clip.key for clip in train if clip.extra["fold"] == 4] == ["can_opening__4-100-A-34"]
    assert "refused 1 clips" in capsys.readouterr().out


def test_esc10_layout(esc10_folder):
    dog, baby = esc50.clips(esc10_folder, "train")
    assert (dog.key, dog.labels, dog.licence) == ("dog__1-30226-A", ["dog"], "CC0")
    assert (baby.labels, baby.licence, baby.source) == (["crying_baby"], "CC BY 3.0", "ESC-10")
    assert "a baby cries" in baby.captions


def test_shards_without_a_missing_file(esc50_folder, tmp_path, capsys):
    (esc50_folder / "audio/3-100-A-0.wav").unlink()
    output = tmp_path / "shards"
    assert esc50.main([str(esc50_folder), str(output), "--test-fold", "1"]) == 0
    assert "left out dog__3-100-A-0" in capsys.readouterr().out
    index = verify(output / "train")
    assert (index["num_clips"], len(index["skipped"])) == (7, 1)
    assert verify(output / "test")["num_clips"] == 2
    # Without a test fold the old test split would hold training clips.
    assert esc50.main([str(esc50_folder), str(output)]) == 2


@pytest.fixture
def pictures(tmp_path):
    """Drawings of dogs in two training styles and the test style, and of a class that the corpus has not."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = ["file,class,icon,set,set_version,licence"]
    for name, category, style in (
        ("a", "dog_bark", "noto"), ("b", "dog_bark", "openmoji"), ("c", "dog_bark", esc50.TEST_STYLE),
        ("d", "siren", "noto"),
    ):  # fmt: skip
        Image.new("RGB", (8, 8), "blue" if name == "c" else "red").save(folder / f"{name}.png")
        rows.append(f"{name}.png,{category},x,{style},1,{'MIT' if name == 'c' else 'CC BY'}")
    (folder / "pictures.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_pictures_of_the_test_style_are_never_trained_on(esc50_folder, pictures, tmp_path, capsys):
    output = tmp_path / "shards"
    arguments = [str(esc50_folder), str(output), "--test-fold", "5", "--pictures", str(pictures), "--workers", "1"]
    assert esc50.main(arguments) == 0
    for split, num_clips, num_pictures, colour in (("train", 8, 8, (255, 0, 0)), ("test", 2, 1, (0, 0, 255))):
        index = verify(output / split)
        assert (index["num_clips"], index["num_pictures"]) == (num_clips, num_pictures)
        folder = ShardFolder(output / split)
        found = [folder.load(0, number, with_images=True) for number in range(num_clips)]
        images = [image for clip in found for image in clip.get("images", ())]
        assert len(images) == num_pictures and all((image == colour).all() for image in images)
        assert {("images" in clip, tuple(clip.get("picture_licences", ()))) for clip in found} == {
            (False, ()), (True, ("CC BY",) if split == "train" else ("MIT",)),
        }  # fmt: skip
        assert {clip["labels"][0] for clip in found if "images" in clip} == {"dog"}
    assert "8 pictures" in capsys.readouterr().out
    contents = read_contents(output / "train")
    assert contents.pictures == 8 and len(contents.seconds) == 8


def test_pictures_that_are_none(esc50_folder, pictures, tmp_path, capsys):
    (pictures / "a.png").write_bytes(b"no picture")
    arguments = [str(esc50_folder), str(tmp_path / "out"), "--pictures", str(pictures), "--workers", "1"]
    assert esc50.main(arguments) == 0
    said = capsys.readouterr().out
    assert "left out dog__1-100-A-0" in said and "a.png: cannot be read as a picture" in said
    (pictures / "pictures.csv").unlink()
    assert esc50.main(arguments) == 2 and "pictures.csv" in capsys.readouterr().err


def test_user_errors(esc50_folder, tmp_path, capsys):
    with pytest.raises(UserError, match="no fold 9"):
        list(esc50.clips(esc50_folder, "train", test_fold=9))
    (tmp_path / "empty").mkdir()
    assert esc50.main([str(tmp_path / "empty"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    (esc50_folder / "meta/esc50.csv").write_text("filename,category\na.wav,dog\n")
    with pytest.raises(UserError, match="no column fold"):
        list(esc50.clips(esc50_folder, "train"))


def test_captions():
    assert len(esc50.PHRASES) == 50
    for category in esc50.PHRASES:
        captions = esc50.captions_for(category)
        assert len(captions) == len(set(captions)) >= 4
        assert all("_" not in text for text in captions)
    assert "the sound of a dog barking" in esc50.captions_for("dog")
    assert "the sound of tea kettle" in esc50.captions_for("tea_kettle")


@pytest.mark.skipif("AUDIOLDM2_TEST_DATA" not in os.environ, reason="needs the corpus")
def test_real_esc10(tmp_path):
    source = Path(os.environ["AUDIOLDM2_TEST_DATA"]) / "esc10"
    if not source.is_dir():
        pytest.skip("no esc10 in AUDIOLDM2_TEST_DATA")
    assert esc50.main([str(source), str(tmp_path), "--splits", "test", "--test-fold", "1"]) == 0
    index = verify(tmp_path / "test")
    assert index["num_clips"] == 80 and not index["skipped"]
    found = list(esc50.clips(source, "train"))
    assert len({clip.labels[0] for clip in found}) == 10
    assert {clip.labels[0] for clip in found} <= set(esc50.PHRASES)
    assert 5.0 * index["num_clips"] == pytest.approx(index["seconds"], rel=0.02)
