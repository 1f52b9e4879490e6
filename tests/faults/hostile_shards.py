"""Shards that somebody has damaged, or made to do harm: headers, names, members, pickles and indices."""

import io
import json
import pickle
import shutil
import struct
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from bench import Bench, Body
from children import check_plain
from hostile import Bomb, check_nothing_ran, flipped

from audioldm2_pl.errors import run_tool


def member(tar: tarfile.TarFile, name: str, content: bytes, **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content) if info.isreg() else None)


def rebuilt(path: Path, rng: Random, canary: Path) -> bytes:
    """A shard with a member that is foreign, out of place, a link, or its JSON or sound damaged."""
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
    position = rng.randrange(len(members))
    name, content = members[position]
    stem = name.partition(".")[0]
    texts = (
        b"[" * 50_000,
        b'{"text": "\\ud800"}',
        b'{"text": 1e999}',
        b"null",
        b'{"text": {}}',
        b"\xff\xfe",
        b"{}" * 9,
    )
    extra = rng.choice(
        (
            (f"../../{canary.name}", b"out"), (str(canary), b"out"), (f"{stem}.pkl", pickle.dumps(Bomb(canary))),
            (f"{stem}.pth", pickle.dumps(Bomb(canary))), (f"{stem}.npy", array_of_pickles(canary)),
            (f"{stem}.pyd", b"x"), (f"{stem}.json", rng.choice(texts)), (f"{stem}.flac", content),
            ("a" * 5_000 + ".flac", b""), ("\n\0.json", b"{}"),
            (f"{stem}.0.png", b"\x89PNG\r\n\x1a\n" + rng.randbytes(90)), (f"{stem}.npy", np_header(10**12)),
        )
    )  # fmt: skip
    kind = rng.randrange(4)
    if kind == 0:
        members[position] = (name, flipped(content, rng))
    elif kind == 1:
        members[position] = (name, rng.choice(texts))
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))) as tar:
        for name, content in members:
            member(tar, name, content)
        if kind >= 2:
            linked = {
                "type": rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)),
                "linkname": "/etc/passwd",
            }
            try:
                member(tar, *extra, **(linked if rng.random() < 0.2 else {}))
            except ValueError:  # too long a name for ustar
                member(tar, "x.json", b"{}")
    return output.getvalue()


def np_header(count: int) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def array_of_pickles(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def changed_index(text: str, rng: Random) -> str:
    index = json.loads(text)
    values: tuple[Any, ...] = (-1, 0, 10**12, 1e300, None, "../../x.tar", "/etc/passwd", [], {}, "pipe:touch x", True)
    where = rng.choice((index, *index["shards"]))
    where[rng.choice(sorted(where))] = rng.choice(values)
    return json.dumps(index)


def shards(bench: Bench, rng: Random, number: int) -> int:
    folder, canary = bench.fresh() / "hostile", bench.folder / "canary"
    shutil.copytree(bench.shards / "train", folder)
    tar = rng.choice(sorted(folder.glob("*.tar")))
    kind = rng.randrange(4)
    if kind == 0:
        tar.write_bytes(flipped(tar.read_bytes(), rng))
    elif kind == 1:
        index = folder / "index.json"
        text = index.read_text()
        index.write_bytes(flipped(text.encode(), rng) if rng.random() < 0.4 else changed_index(text, rng).encode())
    else:
        tar.write_bytes(rebuilt(tar, rng, canary))
    if number % 10 == 9:
        body = bench.training(bench.cases / "runs", "clap", f"data.train=[{folder}]", "data.max_bad_fraction=0.5")
    elif number % 2:
        body = reading(folder)
    else:
        body = verifying(folder)
    check_plain(bench.run(body, 60), many_lines=number % 2 == 0)
    check_nothing_ran(canary)
    return 1


def verifying(folder: Path) -> Body:
    from data.verify import main

    return lambda: main([str(folder), "--workers", "1"])


def reading(folder: Path) -> Body:
    """Each clip once, as training reads it, where the bad ones are left out."""
    from audioldm2_pl.shards.format import BadClip
    from audioldm2_pl.shards.reader import ShardFolder

    def read() -> None:
        split = ShardFolder(folder)
        for shard, count in enumerate(split.counts):
            for clip in range(min(count, 20)):
                try:
                    split.load(shard, clip, with_images=True)
                except BadClip as bad:
                    print(bad)

    return lambda: run_tool(read)
