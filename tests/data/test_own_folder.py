"""Folders of recordings in the layouts that people have: what is recognised, what is told, what is refused."""

import gzip
import json
import os

import numpy as np
import pytest
import soundfile
from PIL import Image

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.reader import ShardFolder
from data import folder
from data.folder import Survey
from data.shards import write_shards
from data.verify import verify

WAV = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)


@pytest.fixture
def sounds(tmp_path):
    """Writes noises of these names, and files of these contents, to a folder."""
    root = tmp_path / "sounds"

    def write(*names, **files):
        root.mkdir(exist_ok=True)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / name, WAV, 16_000)
        return root

    return write


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(content) if isinstance(content, dict | list) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def found(root, **options):
    """Split => file => (captions, transcript), and the lines that are printed."""
    survey = Survey(root, **options)
    clips = {
        split: {os.path.relpath(c.path, root): (c.captions or [c.text] * bool(c.text), c.transcript) for c in clips}
        for split, clips in survey.clips.items()
        if clips
    }
    return clips, str(survey)


def captions(root, **options):
    """File => captions of the training clips."""
    return {name: texts for name, (texts, _) in found(root, **options)[0]["train"].items()}


AB = {"a.wav": ["A dog, barking"], "b.wav": ["rain\nfalls"]}


@pytest.mark.parametrize(
    "name, content",
    [
        ("metadata.csv", 'file_name,text\na.wav,"A dog, barking"\nb.wav,"rain\nfalls"\n'),
        ("metadata.csv", '\ufefffile_name,text\r\n"a.wav","A dog, barking"\r\nb.wav,"rain\nfalls"\r\n'),
        ("notes.csv", 'Caption;File Name\nA dog, barking;a.wav\n"rain\nfalls";b.wav;\n'),
        ("my.tsv", 'n\tfilename\tdescription\n1\ta.wav\tA dog, barking\n2\tb.wav\t"rain\nfalls"\n'),
        ("metadata.csv", 'path,text\na.wav,"A dog, barking"\nb.wav,"rain\nfalls"\n'.encode("utf-16")),
        ("metadata.jsonl", '{"file": "a.wav", "text": "A dog, barking"}\n\n{"file": "b", "text": "rain\\nfalls"}'),
        ("x.json", {"data": [{"wav": "/d/a.wav", "caption": AB["a.wav"]}, {"wav": "b", "caption": "rain\nfalls"}]}),
        ("captions.json", {"a.wav": "A dog, barking", "b.wav": ["rain\nfalls"]}),
        ("a.json", {"prompt": "A dog, barking"}),
    ],
)  # fmt: skip
def test_captions_of_each_layout(sounds, name, content):
    root = sounds("a.wav", "b.wav")
    put(root, name, content)
    if name == "a.json":
        put(root, "b.json", {"text": "rain\nfalls", "seconds_total": 1})
    assert captions(root) == AB
    _, said = found(root)
    assert "2 sounds, 2 captions; train 2" in said and "\n" not in said
    assert name == "a.json" or name in said


def test_audiofolder_with_splits_and_several_captions(sounds):
    root = sounds("train/a.wav", "train/b.flac", "valid/a.wav", "test/c.wav")
    put(root, "train/metadata.csv", "file_name,text\na.wav,a dog\nb.flac,rain\na.wav,a dog barks\n")
    put(root, "valid/metadata.csv", "file_name,text\na.wav,wind\n")
    put(root, "test/metadata.jsonl", '{"file_name": "c.wav", "captions": ["a bell", "a bell rings"]}\n')
    assert found(root)[0] == {
        "train": {"train/a.wav": (["a dog", "a dog barks"], None), "train/b.flac": (["rain"], None)},
        "val": {"valid/a.wav": (["wind"], None)},
        "test": {"test/c.wav": (["a bell", "a bell rings"], None)},
    }


def test_json_files_of_splits(sounds):
    root = sounds("audio/Y7fmOlUlwoNg.wav", "audio/b.wav")
    put(root, "audiocaps_train_label.json", {"data": [
        {"wav": "audioset/zip/Y7fmOlUlwoNg.wav", "caption": "a dog", "labels": "/m/0bt9lr,/t/dd00003"}]})  # fmt: skip
    put(root, "audiocaps_test_label.json", {"data": [{"wav": "audioset/zip/b.wav", "caption": "rain"}]})
    clips = Survey(root).clips
    assert [clip.text for split in ("train", "test") for clip in clips[split]] == ["a dog", "rain"]
    assert clips["train"][0].extra["source_id"] == "youtube:7fmOlUlwoNg" and not clips["train"][0].labels


def test_audiocraft_manifest_and_the_files_beside_the_sounds(sounds):
    root = sounds("songs/a.wav", "songs/b.wav", "songs/c.wav")
    rows = [{"path": f"/elsewhere/songs/{name}.wav", "duration": 0.1, "amplitude": None} for name in "ab"]
    put(root, "egs/train/data.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    put(root, "songs/a.json", {"title": "Rise", "description": "a calm song", "keywords": "calm, piano", "bpm": 90})
    put(root, "songs/b.json", {"title": "Fall", "genre": "jazz", "moods": ["blue"], "description": ""})
    clips, said = found(root)
    assert clips["train"] == {"songs/a.wav": (["a calm song"], None), "songs/b.wav": (["Fall, jazz, blue"], None)}
    assert "1 sounds have no row in a table, left out; the first: 'songs/c.wav'" in said


def test_transcripts(sounds):
    root = sounds("wavs/LJ1.wav", "wavs/LJ2.wav")
    put(root, "metadata.csv", 'LJ1|He said "5.|He said "five.\nLJ2|Yes.|\n')
    assert found(root)[0]["train"] == {"wavs/LJ1.wav": ([], 'He said "five.'), "wavs/LJ2.wav": ([], "Yes.")}
    put(root, "metadata.csv", "path,transcription,caption\nLJ1.wav,five,a man\nLJ2.wav,yes,\n")
    assert found(root)[0]["train"] == {"wavs/LJ1.wav": (["a man"], "five"), "wavs/LJ2.wav": ([], "yes")}
    (root / "metadata.csv").unlink()
    put(root, "wavs/LJ1.txt", "five\n")
    put(root, "wavs/LJ2.txt", "\ufeffyes")
    assert found(root, text="transcript")[0]["train"]["wavs/LJ1.wav"] == ([], "five")
    assert captions(root)["wavs/LJ2.wav"] == ["yes"]


def test_labels_names_and_no_captions(sounds):
    root = sounds("train/dog/1.wav", "train/Door Bell/dog_bark-02.wav", "test/dog/1.wav")
    clips, said = found(root)
    assert "captions from 2 labels (Door Bell, dog)" in said and "train 2, test 1" in said
    assert "a dog barks" in clips["train"]["train/dog/1.wav"][0]
    assert "the sound of door bell" in clips["train"]["train/Door Bell/dog_bark-02.wav"][0]
    clips, said = found(root, captions="filename")
    assert clips == {"train": {"train/Door Bell/dog_bark-02.wav": (["dog bark"], None)}}
    assert "2 sounds get no text from filename, left out" in said
    clips, said = found(root, captions="none")
    assert "no captions; 3 sounds" in said and "only stages that read none" in said
    with pytest.raises(UserError, match="no sound gets a caption from metadata"):
        found(root, captions="metadata")
    put(root, "meta.csv", "filename,category,fold\ntrain/dog/1.wav,rooster,1\ntest/dog/1.wav,cow,2\n")
    clips, said = found(root)
    assert "a rooster crows" in captions(root)["train/dog/1.wav"] and "1 sounds have no row" in said


def test_pictures(sounds, tmp_path):
    root = sounds("a.wav", "b.wav")
    for name in ("a.png", "a.1.jpg", "drawn/b.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    put(root, "metadata.csv", "file_name,text,image\na.wav,dog,\nb.wav,rain,drawn/b.png\nb.wav,rain,c.png\n")
    clips = Survey(root).clips["train"]
    assert [[os.path.relpath(p, root) for p in clip.pictures] for clip in clips] == [
        ["a.png", "a.1.jpg"],
        ["drawn/b.png"],
    ]
    assert "a picture whose file is not there; the first: metadata.csv, line 4: 'c.png'" in str(Survey(root))
    assert write_shards(clips, tmp_path / "out", num_workers=1)["num_pictures"] == 3


def test_what_cannot_be_used_is_told(sounds):
    root = sounds("a.wav", "b.wav", "x/c.wav", "y/c.wav", "extra.wav")
    put(root, "metadata.csv", "file_name,text,split\na.wav,dog,train\ngone.wav,rain,\nc.wav,wind,\nb.wav,,\n"
        "../../b2.wav,rain,\na.wav,dog howls,test\nx/c.wav,a bell,holdout\n")  # fmt: skip
    clips, said = found(root)
    assert clips == {"train": {"x/c.wav": (["a bell"], None)}, "test": {"a.wav": (["dog", "dog howls"], None)}}
    for line in (
        "1 rows name a sound whose file is not there, left out; the first: metadata.csv, line 3: 'gone.wav'",
        "1 rows name a sound whose name several folders or files have, left out; the first: metadata.csv, line 4",
        "1 rows name a sound whose file lies outside the folder, left out; the first: metadata.csv, line 6",
        "1 sounds get no text from metadata, left out; the first: 'b.wav'",
        "1 sounds are in rows of several splits; they stay out of train; the first: 'a.wav'",
        "1 rows name a split that is none of train, val and test; the first: metadata.csv, line 8: 'holdout'",
        "2 sounds have no row in a table, left out; the first: 'extra.wav'",
    ):
        assert line in said


def test_test_clips_are_drawn_by_name(sounds):
    root = sounds(*(f"{n}.wav" for n in range(60)))
    first = found(root, captions="none", test_fraction=0.3)[0]
    assert 8 <= len(first["test"]) <= 28
    sounds(*(f"more{n}.wav" for n in range(30)))
    second = found(root, captions="none", test_fraction=0.3)[0]
    assert first["test"].keys() <= second["test"].keys() and first["train"].keys() <= second["train"].keys()
    with pytest.raises(UserError, match="not from 0 to below 1"):
        found(root, test_fraction=1.0)
    sounds("test/a.wav")
    with pytest.raises(UserError, match="gives test clips itself"):
        found(root, test_fraction=0.3)


def test_formats_and_names_of_one_sound(sounds):
    root = sounds(
        "a/x.wav", "a/x.flac", "b/x.wav", "be\u0301.wav", "\u0440\u0435\u043a\u0430.wav", "new\nline.wav", ".hidden.wav"
    )
    put(
        root,
        "metadata.csv",
        "file_name,text\nb\u00e9.wav,bells\n\u0440\u0435\u043a\u0430.wav,river\na\\x.wav,dog\nnew\nline.wav,no\n",
    )
    with pytest.raises(UserError, match="line 5: the row is cut off"):
        found(root)
    put(
        root,
        "metadata.csv",
        'file_name,text\nb\u00e9.wav,bells\n\u0440\u0435\u043a\u0430.wav,river\na\\x.wav,dog\n"new\nline.wav",no\n',
    )
    assert sorted(captions(root).values()) == [["bells"], ["dog"], ["no"], ["river"]]
    clips, said = found(root, captions="none")
    assert len(clips["train"]) == 5 and "a/x.wav" in clips["train"]  # the table names this one of two
    (root / "metadata.csv").unlink()
    clips, said = found(root, captions="none")
    assert {"a/x.flac", "b/x.wav"} <= clips["train"].keys() and "1 sounds are there in several formats" in said
    keys = [clip.key for clip in Survey(root, captions="none").clips["train"]]
    assert len(set(keys)) == 5 and all(key.isascii() for key in keys)


def test_from_the_command_line_and_resumed(sounds, tmp_path, capsys, monkeypatch):
    root = sounds("train/a.wav", "train/b.wav", "train/7fmOlUlwoNg.wav", "test/c.wav")
    put(root, "train/metadata.csv", "file_name,text\na.wav,dog\nb.wav,rain\n7fmOlUlwoNg.wav,wind\n")
    put(root, "test/metadata.csv", "file_name,text\nc.wav,bells\n")
    put(tmp_path, "test.csv", "youtube_id,caption\n7fmOlUlwoNg,wind\n")
    argv = [str(root), str(tmp_path / "out"), "--workers", "1", "--clips-per-shard", "1"]
    publish = folder.CORPUS.write.__globals__["write_split"]
    monkeypatch.setitem(
        folder.CORPUS.write.__globals__, "write_split", lambda clips, *rest: publish(broken(clips), *rest)
    )

    def broken(clips):
        yield next(iter(clips))
        raise OSError(28, "No space left on device")

    assert folder.main([*argv, "--exclude", str(tmp_path / "test.csv")]) == 2
    monkeypatch.undo()
    assert folder.main([*argv, "--exclude", str(tmp_path / "test.csv")]) == 0
    said = capsys.readouterr().out
    assert said.count("4 sounds, 4 captions; train 3, test 1") == 2  # of two runs
    assert "refused 1 clips of evaluation sets" in said
    assert verify(tmp_path / "out/train")["num_clips"] == 2 and verify(tmp_path / "out/test")["num_clips"] == 1
    split = ShardFolder(tmp_path / "out/train")
    assert [split.load(s, 0)["text"] for s in range(2)] == ["dog", "rain"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.csv", "file_name,text\na.wav,do\0g\n", "metadata.csv, line 2: holds a byte that is no text"),
        ("metadata.csv", "file_name,text\na.wav,dog\n".encode("utf-16")[:-1], "is not whole text in UTF-16"),
        ("metadata.csv", 'file_name,text\na.wav,"dog\n', "metadata.csv, line 2: no row of CSV"),
        ("metadata.csv", "file_name,text\na.wav,dogs, barking\n", "line 2: more cells than columns"),
        (
            "metadata.jsonl",
            '{"file_name": "a.wav", "text": "dog"}\n{"file_name":\n',
            "metadata.jsonl, line 2: no whole JSON",
        ),
        ("metadata.jsonl", '{"file_name": "a.wav"}\n[1]\n', "line 2: no JSON object"),
        ("train.json", '{"data": [{"wav": "a.wav", ', "train.json: no whole JSON"),
        ("train.json", "[" * 100_000, "train.json: no whole JSON"),
        ("train.json", '[{"wav": "a.wav"}, 3]', "entry 2 is no JSON object"),
        ("train.jsonl.gz", b"\x1f\x8bnothing", "train.jsonl.gz: cannot be unpacked"),
        ("metadata.csv", "file_name,text\nq.wav,dog\n", "no row of metadata.csv names one of its sounds"),
        ("metadata.csv", "file_name,text\n", "no row of metadata.csv names one of its sounds"),
    ],
)
def test_damaged_tables(sounds, tmp_path, capsys, name, content, message):
    root = sounds("a.wav")
    put(root, name, content)
    assert folder.main([str(root), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_damaged_files_beside_sounds_and_stray_files(sounds):
    root = sounds("a.wav", "b.wav", "c.wav")
    put(root, "a.json", "{")
    put(root, "b.json", "[]")
    put(root, "c.txt", b"caf\xe9")
    put(root, "README.txt", 'an "open quote\nand | bars')
    put(root, "stats.csv", "n,mean\n1,2\n")
    put(root, "videos.csv", "file,text\nv.mp4,a film\n")
    put(root, "info.json", "{")
    clips, said = found(root)
    assert len(clips["train"]) == 3
    assert "3 files beside sounds cannot be read" in said and "1 tables have no column of file names" in said
    assert "1 files cannot be read as tables" in said and "1 tables name none of the sounds" in said


def test_links(sounds, tmp_path):
    root = sounds("a.wav", "in/b.wav")
    put(tmp_path, "secret.txt", "a password")
    soundfile.write(tmp_path / "out.wav", WAV, 16_000)
    (root / "a.txt").symlink_to(tmp_path / "secret.txt")
    (root / "out.wav").symlink_to(tmp_path / "out.wav")
    (root / "broken.wav").symlink_to(tmp_path / "nowhere")
    (root / "in/again").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.wav")
    clips, said = found(root)
    assert list(clips["train"]) == ["a.wav", "in/b.wav"] and "no captions" in said
    assert "4 links lead out of the folder or nowhere, left out (--follow-links reads them); the first: 'a.txt'" in said
    clips, said = found(root, follow_links=True, captions="none")
    assert "out.wav" in clips["train"] and "above/out.wav" in clips["train"] and "1 links" in said


def test_folders_without_sounds(sounds, tmp_path, capsys):
    root = sounds()
    for path, message in (
        (root, "no sounds in this folder; name the folder"),
        (tmp_path / "nowhere", "no such folder"),
    ):
        assert folder.main([str(path), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    put(root, "000.tar", "")
    assert folder.main([str(root), str(tmp_path / "out")]) == 2
    assert "python -m data.index" in capsys.readouterr().err
    sounds("a.wav")
    for name, message in (("a.wav", "a.wav: tables are read as"), ("nowhere.csv", "no such file")):
        assert folder.main([str(root), str(tmp_path / "out"), "--metadata", str(root / name)]) == 2
        assert message in capsys.readouterr().err
    put(root, "n.csv", "a,b\n1,2\n")
    assert folder.main([str(root), str(tmp_path / "out"), "--metadata", str(root / "n.csv")]) == 2
    assert "no column of file names; call it file_name" in capsys.readouterr().err


def test_real_folders(real_data):
    splits, said = found(real_data / "esc10")
    assert "captions from 10 labels" in said and len(splits["train"]) > 100
    splits, said = found(real_data / "ljspeech")
    assert all(transcript for _, transcript in splits["train"].values())
