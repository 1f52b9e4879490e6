import json
import shutil
import tarfile

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data import audioset
from data.verify import verify

CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n74,/m/0bt9lr,"Dog"\n'
HEADER = (
    "# Segments csv created Sun Mar  5 10:54:25 2017\n"
    "# num_ytids=2, num_segs=2\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "AudioSet"
    (folder / "audio/balanced").mkdir(parents=True)
    (folder / "class_labels_indices.csv").write_text(CLASSES)
    rows = '--PJHxphWEs, 30.000, 40.000, "/m/0bt9lr,/m/09x0r"\n7fmOlUlwoNg, 20.000, 26.000, "/m/05zppz"\n'
    (folder / "balanced_train_segments.csv").write_text(HEADER + rows)
    (folder / "eval_segments.csv").write_text(HEADER + '-0jeONf82dE, 21.000, 31.000, "/m/09x0r"\n')
    soundfile.write(folder / "audio/balanced/Y--PJHxphWEs.wav", 0.1 * np.ones(12 * 8000), 8000)
    return folder


def test_segments(source):
    dog, man = audioset.clips(source, "train", exclude=[])
    assert (dog.key, dog.text, dog.labels) == ("--PJHxphWEs__30", "Speech, Dog", ["Speech", "Dog"])
    assert dog.path == source / "audio/balanced/Y--PJHxphWEs.wav"
    assert (man.text, man.duration, man.extra["source_id"]) == (
        "Male speech, man speaking",
        6.0,
        "youtube:7fmOlUlwoNg",
    )
    assert [clip.key for clip in audioset.clips(source, "test")] == ["-0jeONf82dE__21"]


def test_shards_list_what_is_missing_and_count_what_is_refused(source, tmp_path, capsys):
    output = tmp_path / "shards"
    command = [str(source), str(output), "--splits", "train"]
    assert audioset.main(command) == 2  # nobody said which clips are for evaluation
    assert "--exclude" in capsys.readouterr().err
    assert audioset.main([*command, "--exclude"]) == 0
    assert "left out 7fmOlUlwoNg__20" in capsys.readouterr().out
    index = verify(output / "train")
    assert (index["num_clips"], index["seconds"], len(index["skipped"])) == (1, 10.0, 1)
    with tarfile.open(output / "train/000000.tar") as archive:
        fields = json.load(archive.extractfile("--PJHxphWEs__30.json"))
    assert fields["source_start"] == 30.0 and fields["text"] == "Speech, Dog"

    captions = tmp_path / "test.csv"
    captions.write_text("audiocap_id,youtube_id,start_time,caption\n1,7fmOlUlwoNg,20,A man talks\n")
    assert audioset.main([*command, "--exclude", str(captions)]) == 0
    assert "refused 1 clips" in capsys.readouterr().out
    assert not verify(output / "train")["skipped"]


def test_videos_of_the_evaluation_split_are_refused_in_training(source):
    rows = '7fmOlUlwoNg, 90.000, 96.000, "/m/05zppz"\n'
    (source / "eval_segments.csv").write_text("\ufeff" + HEADER + rows, encoding="utf-8")
    assert [clip.key for clip in audioset.clips(source, "train", [])] == ["--PJHxphWEs__30"]


def test_user_errors(source, tmp_path):
    with pytest.raises(UserError, match=r"holds no balanced_train_segments\.csv"):
        list(audioset.clips(tmp_path, "train", exclude=[]))
    (source / "eval_segments.csv").write_text(HEADER + 'a, 1.0, 2.0, "/m/none"\n')
    with pytest.raises(UserError, match="no class /m/none"):
        list(audioset.clips(source, "test"))
    (source / "eval_segments.csv").write_text(HEADER + "a, 1.0\n")
    with pytest.raises(UserError, match="not a row"):
        list(audioset.clips(source, "test"))


def test_real_segments(real_data, tmp_path, capsys):
    metadata = real_data / "metadata"
    shutil.copy(metadata / "audioset/eval_segments_head.csv", tmp_path / "eval_segments.csv")
    shutil.copy(metadata / "audioset/class_labels_indices.csv", tmp_path)
    test = list(audioset.clips(tmp_path, "test"))
    assert len(test) == len({clip.key for clip in test}) == 1000
    assert test[0].text == "Animal, Domestic animals, pets, Dog, Squeak"
    assert sum(clip.duration == 10 for clip in test) == 980
    # Read as a training split, the music among them is MusicCaps'.
    (tmp_path / "eval_segments.csv").rename(tmp_path / "balanced_train_segments.csv")
    kept = list(audioset.clips(tmp_path, "train", [metadata / "musiccaps/musiccaps-public_0_1500.csv"]))
    assert len(kept) == 857 and "refused 143 clips" in capsys.readouterr().out
    assert len(audioset.read_classes(tmp_path / "class_labels_indices.csv")) == 527
