"""Tars of other writers are read as `tarfile` and webdataset read them, and hostile numbers in them do no harm."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import time

import numpy as np
import pytest
import soundfile
from webdataset.tariterators import tar_file_expander

from audioldm2_pl.shards.format import BadClip
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.tar import BLOCK, SparseSpan, read_entries, unpack_sparse

JSON = b'{"text": "a hiss"}'


def wav(num_silent: int = 0) -> bytes:
    """A hiss, silence, a hiss."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 1600)
    file = io.BytesIO()
    soundfile.write(file, np.concatenate([noise, np.zeros(num_silent), noise]), 16_000, format="WAV")
    return file.getvalue()


def entry(name: str, content: bytes, size: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A member's header and blocks. `size` and `fields`, by their first byte, are what the header says instead."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for at, value in {124: size, **{int(at[1:]): value for at, value in fields.items()}}.items():
        header[at : at + len(value)] = value
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return bytes(header) + content + bytes(-len(content) % BLOCK)


def pax(**records: str) -> bytes:
    """A header of records for the next member; `__` in a name is a dot."""
    content = b""
    for name, value in records.items():
        text = f" {name.replace('__', '.')}={value}\n"
        length = len(text) + len(str(len(text) + len(str(len(text)))))
        content += f"{length}{text}".encode()
    return entry("pax", content, kind=b"x")


def make_folder(folder, tar: bytes, num_clips: int) -> ShardFolder:
    folder.mkdir(exist_ok=True)
    (folder / "000000.tar").write_bytes(tar + bytes(2 * BLOCK))
    index = {"format": 1, "shards": [{"name": "000000.tar", "num_clips": num_clips}]}
    (folder / "index.json").write_text(json.dumps(index))
    return ShardFolder(folder)


def our_members(path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {
            name: (unpack_sparse if isinstance(span, SparseSpan) else bytes)(os.pread(file.fileno(), span[1], span[0]))
            for name, kind, span in read_entries(file.fileno())
            if kind in tarfile.REGULAR_TYPES
        }


def webdataset_members(path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {
            member["fname"]: member["data"]
            for member in tar_file_expander([{"stream": file, "url": ""}], eof_value=None)
        }


SIZES = {
    "in octal digits": lambda content: entry("a.wav", content),
    "in a pax record alone": lambda content: pax(size=str(len(content))) + entry("a.wav", content, b"0" * 11 + b"\0"),
    "beside a path": lambda content: (
        pax(mtime="1.5", path="a.wav", size=str(len(content))) + entry("x", content, b"7" * 11 + b"\0")
    ),
    "in base 256": lambda content: entry("a.wav", content, b"\x80" + len(content).to_bytes(11, "big")),
    "and a link of a size of its own": lambda content: (
        entry("b", b"", b"%011o\0" % 5000, tarfile.LNKTYPE)
        + entry("c", b"", b"%011o\0" % 512, b"5")
        + entry("a.wav", content)
    ),
    "none, of an empty member before": lambda content: entry("b.txt", b"", bytes(12)) + entry("a.wav", content),
    "and a comment that looks like a record": lambda content: pax(comment="9\n12 size=1") + entry("a.wav", content),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_are_read_as_webdataset_reads_them(kind, tmp_path):
    tar = SIZES[kind](wav()) + entry("a.json", JSON) + entry("last.wav", wav()) + entry("last.json", JSON)
    folder = make_folder(tmp_path / "x", tar, 2)
    path = folder.path / "000000.tar"  # type: ignore[operator]
    assert our_members(path) == webdataset_members(path)
    assert [len(folder.read(0, clip)["waveform"]) for clip in (0, 1)] == [3200, 3200]


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_members_with_holes_have_their_zeros(version, tmp_path):
    tool = shutil.which("gtar") or shutil.which("tar")
    if tool is None or b"GNU tar" not in subprocess.run([tool, "--version"], capture_output=True).stdout:
        pytest.skip("no GNU tar")
    names = ["a.wav", "b.wav", "c.wav"]
    for name, num_silent in zip(names, (50_000, 20_000, 0)):
        content = wav(num_silent)
        with (tmp_path / name).open("wb") as file:
            file.write(content[:3244])
            file.seek(len(content) - 3200)  # leaves a hole
            file.write(content[-3200:])
        (tmp_path / name).with_suffix(".json").write_bytes(JSON)
    names = sorted([*names, *(name.replace("wav", "json") for name in names)])
    kind = ["--format=gnu"] if version == "gnu" else ["--format=pax", f"--sparse-version={version}"]
    holes = ["--sparse", "--hole-detection=raw", "--mtime=@0"]
    subprocess.run([tool, "-cf", "all.tar", *kind, *holes, *names], cwd=tmp_path, check=True)
    folder = make_folder(tmp_path / "x", (tmp_path / "all.tar").read_bytes(), 3)
    path = folder.path / "000000.tar"  # type: ignore[operator]
    assert path.stat().st_size < 100_000
    assert our_members(path) == webdataset_members(path) == {name: (tmp_path / name).read_bytes() for name in names}
    assert sorted(len(folder.read(0, clip)["waveform"]) for clip in range(3)) == [3200, 23_200, 53_200]


def sparse(name: str, real_size: bytes, *pairs: bytes) -> bytes:
    """A member of GNU's own kind, whose map of holes says what it is given."""
    numbers = {f"_{386 + 12 * i}": number for i, number in enumerate(pairs)}
    return entry(
        name, bytes(BLOCK), kind=tarfile.GNUTYPE_SPARSE, _257=b"ustar  \0", _345=bytes(155), _483=real_size, **numbers
    )


ENDLESS = b"\x80" + bytes(3) + b"\x7f" * 8
HOSTILE = {
    "a size above all disks": entry("a.wav", b"", ENDLESS),
    "a negative size": entry("a.wav", wav(), b"\xff" * 12),
    "another negative size": entry("a.wav", wav(), b"-0000001000\0"),
    "a negative size in a record": pax(size="-512") + entry("a.wav", wav()),
    "no number in a record": pax(size="1_0") + entry("a.wav", wav()),
    "a number without end in a record": pax(size="9" * 90) + entry("a.wav", wav()),
    "records of no length": entry("pax", b"0 size=5\n" * 3, kind=b"x") + entry("a.wav", b""),
    "a terabyte in a record": pax(size=str(2**40)) + entry("a.wav", wav()),
    "a terabyte of names": entry("L", b"", ENDLESS, tarfile.GNUTYPE_LONGNAME) + entry("a.wav", wav()),
    "a hole without end": sparse("a.wav", ENDLESS, b"%011o\0" % 0, b"%011o\0" % 512),
    "a negative hole": sparse("a.wav", b"%011o\0" % 9999, b"\xff" * 12, b"%011o\0" % 512),
    "data over data": sparse("a.wav", b"%011o\0" % 9999, *[b"%011o\0" % n for n in (600, 512, 0, 512)]),
    "more data than there is": sparse("a.wav", b"%011o\0" % 9999, b"%011o\0" % 0, b"%011o\0" % 9999),
    "a map of no numbers": pax(GNU__sparse__map="x", GNU__sparse__size="9") + entry("a.wav", wav()),
    "a number that tarfile reads for hours": (
        pax(GNU__sparse__map="0,1", GNU__sparse__size="9", comment="9" * 60_000) + entry("a.wav", wav())
    ),
    "a map that does not end": (
        pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="9") + entry("a.wav", b"9" * 512)
    ),
    "headers of headers": pax(path="a.wav") * 60 + pax(GNU__sparse__map="0,1") * 60 + entry("a.wav", wav()),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_numbers_end_at_once_and_hide_no_other_clip(kind, tmp_path):
    tar = entry("b.wav", wav()) + entry("b.json", JSON) + HOSTILE[kind] + entry("a.json", JSON)
    started = time.monotonic()
    folder = make_folder(tmp_path / "x", tar, 2)
    assert len(folder.read(0, 0)["waveform"]) == 3200
    if kind != "headers of headers":
        with pytest.raises(BadClip):
            folder.load(0, 1)
    assert time.monotonic() - started < 5


def test_what_follows_a_damaged_map_of_holes_is_found(tmp_path):
    tar = HOSTILE["data over data"] + entry("a.json", JSON) + entry("b.wav", wav()) + entry("b.json", JSON)
    folder = make_folder(tmp_path / "x", tar, 2)
    assert len(folder.read(0, 1)["waveform"]) == 3200
    with pytest.raises(BadClip, match="damaged sparse member"):
        folder.load(0, 0)
