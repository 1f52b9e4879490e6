"""Shards of other writers: indexed, read and trained on as they are, beside their index or elsewhere."""

import io
import json
import os
import subprocess
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.datamodule import AudioShards, DataConfig
from audioldm2_pl.shards.reader import ShardFolder
from data import index
from data.shard_patterns import expand
from data.verify import verify

AUDIO = AudioConfig(clip_seconds=2.56)


def sound(suffix="flac", seconds=0.5, rate=16_000):
    file = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate))
    kinds = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None)}
    kind, subtype = kinds.get(suffix, (suffix.upper(), None))
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


FLAC = sound()


def tar(path, members):
    """A tar of (name, content) pairs, also of names that come twice or lead elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def clips(folder):
    split = ShardFolder(folder)
    return {
        clip["key"]: clip for s, count in enumerate(split.counts) for clip in (split.load(s, n) for n in range(count))
    }


def run(*argv):
    return index.main([*map(str, argv), "--workers", "1"])


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Three shards of webdataset's own writer: five sounds of several kinds, captions under "prompt"."""
    folder = tmp_path_factory.mktemp("foreign")
    with webdataset.ShardWriter(str(folder / "part-%03d.tar"), maxcount=2, verbose=0) as writer:
        for number, suffix in enumerate(["flac", "wav", "mp3", "ogg", "opus"]):
            writer.write({
                "__key__": f"v1.0/clip{number}", suffix: sound(suffix),
                "json": {"prompt": f"sound {number}", "description": "", "id": number},
            })  # fmt: skip
    return folder


def test_what_webdataset_has_written(foreign, capsys):
    assert run(foreign) == 0
    said = capsys.readouterr()
    assert "5 clips, 0.001 h, 3 shards" in said.out and "captions: 'prompt' of the JSON" in said.out and not said.err
    read = clips(foreign)
    assert {key: clip["text"] for key, clip in read.items()} == {f"v1.0/clip{n}": f"sound {n}" for n in range(5)}
    made = json.loads((foreign / "index.json").read_text())
    assert made["caption_key"] == "prompt" and "location" not in made and made["longest_seconds"] >= 0.5
    assert verify(foreign)["num_clips"] == 5
    assert run(foreign / "part-{000..002}.tar") == 0 and run(foreign / "part-*.tar") == 0  # its own index is replaced
    assert json.loads((foreign / "index.json").read_text()) == made


def test_webdataset_reads_ours(shards):
    samples = list(webdataset.WebDataset(str(shards / "train/000000.tar"), shardshuffle=False))
    assert len(samples) == 4
    for sample in samples:
        waveform, rate = soundfile.read(io.BytesIO(sample["flac"]))
        clip = clips(shards / "train")[sample["__key__"]]
        assert rate == 16_000 and len(waveform) == len(clip["waveform"])
        assert json.loads(sample["json"])["captions" if "captions" in clip else "text"] == clip.get(
            "captions", clip["text"]
        )


def batches(folder, start=0):
    module = AudioShards(DataConfig(train=[str(folder)]), AUDIO, seed=1, batch_size=1)
    module.start = start
    stream = iter(module.train_dataloader())
    return [batch for batch, _ in zip(stream, range(6 - start))]


def test_training_reads_and_resumes_an_index_that_lies_elsewhere(foreign, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in foreign.iterdir()}
    assert run(*sorted(foreign.glob("*.tar")), "--output", tmp_path / "index") == 0
    assert {path: path.stat().st_mtime_ns for path in foreign.iterdir()} == before
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.json", "members.bin"}
    whole, resumed = batches(tmp_path / "index"), batches(tmp_path / "index", start=3)
    assert sorted(batch["text"][0] for batch in whole[:5]) == [f"sound {n}" for n in range(5)]
    assert [batch["id"] for batch in resumed] == [batch["id"] for batch in whole[3:]]
    assert verify(tmp_path / "index")["num_clips"] == 5


@pytest.fixture
def server(foreign):
    handler = partial(SimpleHTTPRequestHandler, directory=str(foreign))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_shards_on_a_server(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("audioldm2_pl.shards.remote.default_cache", lambda: tmp_path / "cache")
    assert run(f"{server}/part-{{000..002}}.tar") == 2
    assert "name a folder of this machine with --output" in capsys.readouterr().err
    assert run(f"{server}/part-{{000..002}}.tar", "--output", tmp_path / "index") == 0
    assert {clip["text"] for clip in clips(tmp_path / "index").values()} == {f"sound {n}" for n in range(5)}
    data = DataConfig(train=[str(tmp_path / "index")], cache=str(tmp_path / "own"))
    assert data.open(data.train[0]).load(0, 0)["text"] == "sound 0" and len(list((tmp_path / "own").glob("*.tar"))) == 1
    assert verify(tmp_path / "index")["num_clips"] == 5
    assert run(f"{server}/part-{{000..003}}.tar", "--output", tmp_path / "index") == 2
    assert "part-003.tar: cannot be read at byte 0 (no such file)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "members, options, texts, said",
    [
        ({"a.json": {"caption": "x", "description": "y"}}, [], ["x"], "(--caption-key takes another: description)"),
        ({"a.json": {"caption": "x", "about": "y"}}, ["--caption-key", "about"], ["y"], "'about' of the JSON"),
        ({"a.json": {"text": "x", "tags": "y"}}, ["--caption-key", "tags"], ["y"], "captions: 'tags' of the JSON"),
        ({"a.json": {"text": ["x"], "prompt": "y"}}, [], [["x"]], "'text' of the JSON (--caption-key"),
        ({"a.json": {"caption": ["x", "y"]}}, [], [["x", "y"]], "'caption' of the JSON"),
        ({"a.json": {"caption": "y"}, "a.txt": b"x\n"}, [], ["x"], "captions: txt"),
        ({"a.cls": b"dog_bark"}, [], ["dog bark"], "captions: cls"),
        ({"a.cls": b"17"}, [], [None], "captions: cls"),
        ({"a.json": {"transcript": "hello"}}, [], [None], "transcripts"),
        ({}, [], [None], "no captions"),
    ],
)  # fmt: skip
def test_where_captions_stand(tmp_path, capsys, members, options, texts, said):
    tar(tmp_path / "x/0.tar", [("a.flac", FLAC), *members.items()])
    assert run(tmp_path / "x", *options) == 0
    assert [clip.get("text") for clip in clips(tmp_path / "x").values()] == texts
    assert said in capsys.readouterr().out


def test_names_with_dots_and_folders_by_tar(tmp_path, capsys):
    for name in ("St. John.wav", "a.b.wav", "sub.dir/c.d.WAV"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound("wav"))
        path.with_suffix(".txt").write_text(f"caption of {name}")
    (tmp_path / "x").mkdir()
    subprocess.run(["tar", "-cf", tmp_path / "x/0.tar", "-C", tmp_path / "files", "."], check=True)
    assert run(tmp_path / "x") == 0
    assert "names end at their last dot" in capsys.readouterr().out
    assert {clip["text"] for clip in clips(tmp_path / "x").values()} == {
        f"caption of {name}" for name in ("St. John.wav", "a.b.wav", "sub.dir/c.d.WAV")
    }
    assert all("." not in os.path.basename(key) for key in clips(tmp_path / "x"))


def test_pictures_and_rates_are_counted(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    tar(tmp_path / "x/0.tar", [("a.flac", FLAC), ("a.png", png.getvalue()), ("a.txt", b"x"),
        ("b.flac", sound(rate=8_000)), ("b.txt", b"y")])  # fmt: skip
    assert run(tmp_path / "x") == 0
    made = json.loads((tmp_path / "x/index.json").read_text())
    assert made["shards"][0]["num_pictures"] == 1 and "sample_rate" not in made
    assert verify(tmp_path / "x")["num_clips"] == 2


HOSTILE = {
    "cut.tar": "1 clips cannot be read; the first: b: cut off",
    "text.tar": "no tar, or none with sounds in it",
    "empty.tar": "no tar, or none with sounds in it",
    "packed.tar": "is compressed; unpack it with gunzip",
    "silent.tar": "holds no sounds (flac, wav, mp3, ogg, opus)",
    "pickled.tar": "could run code when read; leave this shard out",
    "broken.tar": "none of its clips can be read; the first: a: damaged",
    "twice.tar": "1 clips cannot be read; the first: b: a member comes twice",
    "bare.tar": "1 clips have no json, txt or cls, left out; the first: z of bare.tar",
}


def test_damaged_shards_are_told(tmp_path, capsys):
    folder, text = tmp_path / "x", {"text": "x"}
    good = [("a.flac", FLAC), ("a.json", text)]
    b = [("b.json", text), ("b.flac", FLAC)]
    cut = tar(folder / "cut.tar", [*good, *b]).read_bytes()
    (folder / "cut.tar").write_bytes(cut[: cut.rindex(b"fLaC") + 1000])
    (folder / "text.tar").write_text("<html>not found</html>" * 100)
    (folder / "empty.tar").write_bytes(b"")
    (folder / "packed.tar").write_bytes(b"\x1f\x8b\x08" + b"0" * 2000)
    tar(folder / "silent.tar", [("a.json", text), ("b.py", b"")])
    tar(folder / "pickled.tar", [*good, ("c.pkl", b"")])
    tar(folder / "broken.tar", [("a.flac", b"nothing"), ("a.json", text)])
    tar(folder / "twice.tar", [("../../c.flac", FLAC), ("/c.json", text), *b, *b])
    tar(folder / "bare.tar", [("/d/e.flac", FLAC), ("/d/e.json", text), ("z.flac", FLAC)])
    tar(folder / "again.tar", good)
    assert run(folder) == 0
    told = capsys.readouterr()
    for name, message in HOSTILE.items():
        assert sum(name in line and message in line for line in told.err.splitlines()) == 1, (name, told.err)
    assert "1 keys come in several shards; the first: a, in again.tar and cut.tar" in told.err
    assert "5 clips" in told.out and len(told.err.splitlines()) == 10
    split = ShardFolder(folder)
    assert [shard["name"] for shard in split.index["shards"]] == ["again.tar", "bare.tar", "cut.tar", "twice.tar"]
    assert [split.load(s, 0)["key"] for s in range(4)] == ["a", "d/e", "a", "c"]


def test_what_is_refused(tmp_path, shards, capsys):
    def says(*argv):
        assert run(*argv) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return told

    assert "is not of python -m data.index" in says(shards / "train")
    assert "no tar here" in says(tmp_path / "nowhere.tar")
    assert "no tar here" in says(tmp_path)
    one, two = tar(tmp_path / "1/a.tar", [("a.flac", FLAC)]), tar(tmp_path / "2/b c.tar", [("a.flac", FLAC)])
    assert "shards of 2 folders" in says(one, two, "--output", tmp_path / "o")
    assert "'b c.tar' is no file of this folder; rename it" in says(two)
    assert "no clip's JSON has a text 'prompt'" in says(one, "--caption-key", "prompt")
    assert not (tmp_path / "1/index.json").exists()
    assert "commands are not indexed" in says("pipe:cat {name}")
    (tmp_path / "1/index.json").write_text('{"shardlist": []}')  # of wids
    assert "is not of python -m data.index" in says(one)
    for pattern in ("a{9..0}.tar", "a{0..99999999999}.tar", "a{x}.tar", "{0..9999}{0..9999}"):
        with pytest.raises(UserError):
            expand(pattern)
    assert expand("{a,b}-{08..10}.tar")[:4] == ["a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar"]


@pytest.mark.parametrize("location", ["pipe:cat {name}", "../elsewhere", 3])
def test_locations_that_an_index_cannot_name(tmp_path, location):
    (tmp_path / "index.json").write_text(json.dumps({"format": 1, "shards": [], "location": location}))
    with pytest.raises(UserError, match="not the index of a folder of shards"):
        ShardFolder(tmp_path)
