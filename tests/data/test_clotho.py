import shutil

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import clotho
from data.verify import verify

HEADER = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
NAMES = ("Radio Garble.wav", "Radio-Garble.wav", "caf\xe9.wav")


@pytest.fixture(params=["zenodo", "aac-datasets"])
def source(request, tmp_path):
    tables, recordings = tmp_path, tmp_path
    if request.param == "aac-datasets":
        tables, recordings = tmp_path / "clotho_csv_files", tmp_path / "clotho_audio_files"
        tables.mkdir()
    (recordings / "evaluation").mkdir(parents=True)
    rows = "".join(f'{name},a,"b, b",c,d,e\n' for name in NAMES)
    (tables / "clotho_captions_evaluation.csv").write_text(HEADER + rows, encoding="utf-8")
    about = [
        "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license",
        'Radio Garble.wav,radio,80399,https://freesound.org/people/x/sounds/80399,"[0, 9]",x,CC BY',
        "caf\xe9.wav,noise,Not found,NA,,y,CC0",
    ]
    (tables / "clotho_metadata_evaluation.csv").write_text("\n".join(about), encoding="latin-1")
    for name in NAMES[:2]:
        soundfile.write(recordings / "evaluation" / name, 0.1 * np.ones(8000), 8000)
    return tmp_path


def test_five_captions(source, tmp_path):
    radio, other, cafe = clotho.clips(source, "test")
    assert radio.captions == ["a", "b, b", "c", "d", "e"]
    assert (radio.licence, radio.extra) == ("CC BY", {"source_id": "freesound:80399"})
    assert (other.licence, other.extra) == (clotho.LICENCE, {"source_id": "clotho:Radio-Garble.wav"})
    assert (cafe.licence, cafe.extra) == ("CC0", {"source_id": "clotho:caf\xe9.wav"})
    assert clotho.main([str(source), str(tmp_path / "shards"), "--splits", "test"]) == 0
    index = verify(tmp_path / "shards/test")
    assert (index["num_clips"], len(index["skipped"])) == (2, 1)
    with pytest.raises(UserError, match=r"clotho_captions_development\.csv: no such file"):
        list(clotho.clips(source, "train"))


@pytest.mark.parametrize("number", ["137692", "137692.0", "Not found"])
def test_recordings_of_the_other_splits_are_refused_in_training(tmp_path, number, capsys):
    about = "file_name,keywords,sound_id,license\n"
    for split, names in (
        ("development", "FREEZER.wav,rain.wav"),
        ("validation", "hum.wav"),
        ("evaluation", "FREEZER.wav"),
    ):
        rows = [f"{name},a,b,c,d,e\n" for name in names.split(",")]
        (tmp_path / f"clotho_captions_{split}.csv").write_text(HEADER + "".join(rows))
        numbers = {"FREEZER.wav": number if split == "development" else "137692", "rain.wav": 1, "hum.wav": 1}
        rows = [f"{name},x,{numbers[name]},CC0\n" for name in names.split(",")]
        (tmp_path / f"clotho_metadata_{split}.csv").write_text("\ufeff" + about + "".join(rows), encoding="utf-8")
    assert not list(clotho.clips(tmp_path, "train"))  # rain.wav is hum.wav's recording
    assert "refused 2 clips" in capsys.readouterr().out
    assert [clip.extra["source_id"] for clip in clotho.clips(tmp_path, "test")] == ["freesound:137692"]
    (tmp_path / "clotho_captions_validation.csv").unlink()
    assert [clip.extra["source_id"] for clip in clotho.clips(tmp_path, "train")] == ["freesound:1"]


def test_real_captions(real_data, tmp_path):
    shutil.copy(real_data / "metadata/clotho/val_head.csv", tmp_path / "clotho_captions_validation.csv")
    found = list(clotho.clips(tmp_path, "val"))
    assert len(found) == len({clip.key for clip in found}) == 50
    assert all(len(set(clip.captions)) == 5 for clip in found)
    assert found[1].path == tmp_path / "validation/FR.CTC.08.CoyuyoS.001.wav"
