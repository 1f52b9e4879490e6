import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.quarantine import Quarantine
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.stream import ClipStream
from data import verify as command
from data.shards import Clip, write_shards
from data.verify import check, verify


def flac(waveform, rate=16_000, kind="FLAC"):
    content = io.BytesIO()
    soundfile.write(content, waveform, rate, format=kind)
    return content.getvalue()


def array(values):
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    clips = [Clip(f"clip-{number}", waveform=rng.uniform(-1, 1, 1600)) for number in range(5)]
    write_shards(clips, tmp_path / "out/train", clips_per_shard=2, num_workers=1)
    return tmp_path / "out/train"


def rewrite(split, members):
    """A shard of other members, whose sha256 the index knows."""
    path = split / "000002.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    index = json.loads((split / "index.json").read_text())
    index["shards"][2]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    index["shards"][2].pop("members", None)  # whose places are others now
    (split / "index.json").write_text(json.dumps(index))


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)
GOOD = {"a.flac": flac(NOISE), "a.json": b"{}"}


def test_pictures_are_decoded_and_counted(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    clip = Clip("a", waveform=NOISE, pictures=[tmp_path / "a.png"] * 2)
    write_shards([clip], tmp_path / "out", num_workers=1)
    assert verify(tmp_path / "out")["num_pictures"] == 2
    index = json.loads((tmp_path / "out/index.json").read_text())
    index["shards"][0]["num_pictures"] = index["num_pictures"] = 3
    (tmp_path / "out/index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="holds 2 pictures"):
        verify(tmp_path / "out")


def test_names_every_bad_shard(split, capsys):
    assert verify(split)["num_clips"] == 5
    assert command.main([str(split.parent), "--workers", "1"]) == 0
    assert "5 clips" in capsys.readouterr().out

    content = bytearray((split / "000001.tar").read_bytes())
    content[700] ^= 1
    (split / "000001.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"000001\.tar is not what"):
        verify(split)
    (split / "000000.tar").unlink()
    (split / "000007.tar").touch()
    assert command.main([str(split), "--workers", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 4
    assert "000000.tar is missing" in lines[0] and "000001.tar is not what" in lines[1]
    assert "000007.tar is not in index.json" in lines[2] and "3 faults" in lines[3]
    with pytest.raises(UserError, match=r"index\.json"):
        verify(split.parent)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.flac": flac(NOISE)[:-200]}, "clip a cannot be read: damaged flac"),
        ({"a.flac": flac(NOISE[:800], 8000)}, "8000 Hz where index.json says 16000"),
        ({"a.json": b'{"text": '}, "clip a cannot be read: damaged json"),
        ({"a.json": b"[]"}, "no fields of a clip"),
        ({"a.pickle": b"cos\nsystem\n."}, "carries a.pickle"),
        ({"run.pyd": b""}, "carries run.pyd"),
        ({"a.latent.npy": array(np.array([1.0, np.nan]))}, "no finite numbers"),
        ({"a.latent.npy": array(np.array([{}], dtype=object))}, "allow_pickle"),
        ({"a.txt": b"\xff"}, "damaged txt"),
        ({"b.flac": flac(NOISE), "b.json": b"{}"}, "2 clips where index.json says 1"),
        ({"a.flac": flac(NOISE[:1000])}, "holds 0.062 s, index.json says 0.1"),
    ],
)
def test_every_member_is_looked_into(split, members, message):
    rewrite(split, {**GOOD, "a.latent.npy": array(np.zeros(3))})
    assert not list(check(split)[1])
    rewrite(split, {**GOOD, **members})
    (fault,) = check(split)[1]
    assert "000002.tar" in fault and message in fault


@pytest.mark.parametrize(
    ("members", "good"),
    [
        ({"./a.flac": flac(NOISE), "./a.json": b"{}"}, True),
        ({"v1.0/a.FLAC": flac(NOISE), "v1.0/a.JSON": b'{"text": ["one", "two"]}'}, True),
        ({"a.wav": flac(NOISE, kind="WAV"), "a.txt": b"a hiss"}, True),
        ({**GOOD, "a.cls": b"3", "._a.flac": b"x"}, True),
        ({**GOOD, "a.json": b'{"text": "  "}'}, False),
        ({**GOOD, "a.json": b'{"text": "\\ud800"}'}, False),
        ({**GOOD, "a.json": b'{"text": 3}'}, False),
        ({**GOOD, "a.json": b"[" * 100_000}, False),
        ({**GOOD, "A.flac": b"", "a.FLAC": flac(NOISE)}, False),
        ({**GOOD, "a.flac": flac(np.zeros(1600))}, False),
        ({"a.flac": flac(NOISE)}, False),
        ({**GOOD, "a.latent.npy": array(np.array([np.inf]))}, False),
    ],
)
def test_builder_verify_and_reader_agree_on_what_a_clip_is(members, good, split):
    assert not list(check(split)[1])  # the builder's own
    rewrite(split, members)
    faults = list(check(split)[1])
    folders = [ShardFolder(split)]
    stream = ClipStream(folders, AudioConfig(), 1600, 0, 2, None, quarantine=Quarantine(folders, 1.0))
    assert len(list(stream)) == 4 + good
    assert bool(faults) != good


def test_what_is_no_file_in_a_tar(split):
    rewrite(split, GOOD)
    with tarfile.open(split / "000002.tar", "a") as archive:
        link = tarfile.TarInfo("b.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    index = json.loads((split / "index.json").read_text())
    index["shards"][2]["sha256"] = hashlib.sha256((split / "000002.tar").read_bytes()).hexdigest()
    index["num_clips"] = 6
    (split / "index.json").write_text(json.dumps(index))
    faults = list(check(split)[1])
    assert len(faults) == 1 and "num_clips 6, its shards have 5" in faults[0]  # a link is no member
