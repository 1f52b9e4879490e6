"""Hostile files and words: checkpoints, settings, prompts and recordings that somebody has damaged or made to
do harm. Code 0 or 2 with one line, in bounded time and memory, and nothing in them is run."""

import io
import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import torch
from bench import SAMPLING, SMOKE, Bench, Body
from children import Fault, check_plain

from audioldm2_pl.cli import main as audioldm2

NUMBERS = (
    "-1",
    "0",
    "1e400",
    ".nan",
    "-.inf",
    "99999999999999999999",
    "1.5",
    "true",
    "null",
    "[]",
    "{}",
    "''",
    "[[1]]",
)
TEXTS = (
    "", "\0", "a" * 100_000, "\u202e\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\x1b[2J\x07", "\ufeffbell", "\u2028a",
    "🔔" * 500, "${oc.env:HOME}", "!!python/object/apply:os.system [id]", "../../../etc/passwd", "%s%n", "a\tb | c",
    " ", "|", "\ud800",
)  # fmt: skip


class Bomb:
    """Its unpickling leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.path}'",))


def flipped(content: bytes, rng: Random, most: int = 40) -> bytes:
    """With bytes changed, cut, put in or repeated."""
    data = bytearray(content)
    kind = rng.randrange(5)
    if kind == 0 or not data:
        return bytes(data[: rng.randrange(len(data) + 1)])
    if kind == 1:
        start = rng.randrange(len(data))
        data[start:start] = rng.randbytes(rng.randrange(1, 600))
    elif kind == 2:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 2_000)]
    else:
        end = len(data) if kind == 3 else min(len(data), 1_000)  # its head alone
        for _ in range(rng.randint(1, most)):
            data[rng.randrange(end)] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(data)


def check_nothing_ran(canary: Path) -> None:
    if canary.exists():
        canary.unlink()
        raise Fault("code of the file was run")


def checkpoints(bench: Bench, rng: Random, number: int) -> int:
    canary, folder = bench.folder / "canary", bench.fresh()
    kind = ("import", "model", "resume", "import")[number % 4]
    if kind == "import":
        path = folder / rng.choice(("a.ckpt", "a.pth", "a.safetensors"))
        path.write_bytes(hostile_weights(bench, rng, canary))
        body: Body = lambda: audioldm2(["import", str(path), str(folder / "model")])  # noqa: E731
    elif kind == "model":
        model = folder / "model"
        shutil.copytree(bench.model, model)
        damage_model(model, rng, canary)
        prompts = folder / "prompts.txt"
        prompts.write_text("a bell\n")
        body = bench.generation(folder / "sounds", prompts, model=model)
    else:
        runs = folder / "runs"
        body = bench.training(runs, "clap")
        (runs / "smoke/checkpoints").mkdir(parents=True)
        (runs / "smoke/checkpoints/clap.ckpt").write_bytes(hostile_weights(bench, rng, canary, whole_run=True))
    check_plain(bench.run(body, 60))
    check_nothing_ran(canary)
    return 1


def hostile_weights(bench: Bench, rng: Random, canary: Path, whole_run: bool = False) -> bytes:
    """A pickle that runs code, a damaged file of weights, or something else of such a name."""
    file = io.BytesIO()
    kind = rng.randrange(5)
    if kind == 0:
        return pickle.dumps({"state_dict": Bomb(canary)}, protocol=rng.choice((0, 2, 4)))
    if kind == 1:
        torch.save({"state_dict": {"cls_token": Bomb(canary)}, "callbacks": Bomb(canary)}, file)
        return file.getvalue()
    if kind == 2:
        return rng.choice(
            (b"", b"PK\x03\x04" + rng.randbytes(50), struct.pack("<Q", 2**62) + b"{}", b"\x80\x04" * 9, b"[" * 9_999)
        )
    tensors = {"cls_token": torch.zeros(1, 1, 8), "mask_token": torch.full((1,), float("nan"))}
    state = {"state_dict": tensors, "callbacks": {}, "AudioShards": {"batches": 1}, "loops": {}}
    torch.save(state if whole_run else {"model": tensors}, file)
    return flipped(file.getvalue(), rng) if kind == 3 else file.getvalue()


def damage_model(model: Path, rng: Random, canary: Path) -> None:
    path = rng.choice(sorted(path for path in model.rglob("*") if path.is_file()))
    if path.suffix == ".json" and rng.random() < 0.6:
        path.write_text(changed_json(path.read_text(), rng))
    elif path.suffix == ".safetensors" and rng.random() < 0.3:
        path.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
        path.unlink()
    else:
        path.write_bytes(flipped(path.read_bytes(), rng))


def changed_json(text: str, rng: Random) -> str:
    found = json.loads(text)
    if not isinstance(found, dict) or not found:
        return "[" * rng.choice((1, 100_000))
    values: tuple[Any, ...] = (-1, 0, 10**15, 1e300, None, "x", [], {}, [0], "os.system", True, "__import__('os')")
    found[rng.choice(sorted(found))] = rng.choice(values)
    return json.dumps(found)


def settings(bench: Bench, rng: Random, number: int) -> int:
    folder = bench.fresh()
    demo = (SMOKE.parent / "demo.yaml").read_text()
    text = rng.choice((SMOKE.read_text(), demo))
    canary = folder / "touched"
    values = (*NUMBERS, *TEXTS[3:-1], "a" * 5_000, f"!!python/object/apply:os.system ['touch {canary}']")
    if number % 2:
        lines = text.splitlines()
        for _ in range(rng.randint(1, 3)):
            line = rng.randrange(len(lines))
            key, colon, _ = lines[line].partition(":")
            lines[line] = f"{key}{colon} {rng.choice(values)}" if colon and rng.random() < 0.7 else rng.choice(values)
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        content = flipped(content, rng) if rng.random() < 0.3 else content
        words = []
    else:
        content = text.encode()
        keys = paths_of_settings()
        words = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randint(1, 3))]
    (folder / "hostile.yaml").write_bytes(content)
    (folder / "demo.yaml").write_text(demo)
    check_plain(bench.run(lambda: audioldm2(["describe", str(folder / "hostile.yaml"), *words]), 60))
    check_nothing_ran(canary)
    return 1


def paths_of_settings() -> list[str]:
    """Dotted keys of all settings of an experiment."""
    from audioldm2_pl.config import load_experiment, to_plain

    def keys(values: dict[str, Any], before: str) -> list[str]:
        found = []
        for key, value in values.items():
            found += [before + key, *(keys(value, f"{before}{key}.") if isinstance(value, dict) else [])]
        return found

    return keys(to_plain(load_experiment(SMOKE)), "")


def prompts(bench: Bench, rng: Random, number: int) -> int:
    folder = bench.fresh()
    path = folder / "prompts.txt"
    text = (
        rng.choice(TEXTS)
        if rng.random() < 0.6
        else "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(300)))
    )
    if number % 2:
        path.write_bytes(
            rng.choice(
                (text.encode("utf-8", "surrogatepass"), text.encode("utf-16", "surrogatepass"), rng.randbytes(500))
            )
        )
        body = bench.generation(folder / "sounds", path)
    else:
        words = ["generate", str(bench.model), text, "--output", str(folder / "sounds"), *SAMPLING]
        body = lambda: audioldm2(words)  # noqa: E731
    check_plain(bench.run(body, 60))
    if outside := [path.name for path in folder.iterdir() if path.name not in ("prompts.txt", "sounds")]:
        raise Fault(f"written outside of --output: {', '.join(outside)}")
    return 1


def wav(channels: int = 1, rate: int = 16_000, bits: int = 16, data: bytes = b"", length: int | None = None) -> bytes:
    """A WAV file whose header says what it is told."""
    align = channels * bits // 8
    form = struct.pack(
        "<HHIIHH", 1, channels & 0xFFFF, rate & 0xFFFFFFFF, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits
    )
    length = len(data) if length is None else length
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length & 0xFFFFFFFF) + data
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def hostile_sound(rng: Random) -> tuple[str, bytes]:
    """A suffix and the bytes of a recording."""
    kind = rng.randrange(6)
    noise = np.random.default_rng(rng.randrange(9)).uniform(-0.5, 0.5, 16_000)
    if kind == 0:
        return ".wav", wav(rng.choice((0, 1, 2, 65_535)), rng.choice((0, 1, 16_000, 2**31 - 1, 2**32 - 1)),
                           rng.choice((0, 8, 16, 24, 64)), rng.randbytes(rng.choice((0, 7, 64_000))))  # fmt: skip
    if kind == 1:
        return ".wav", wav(data=rng.randbytes(64_000), length=rng.choice((0, 2**31 - 2, 2**32 - 1)))
    form, suffix = rng.choice((("WAV", ".wav"), ("FLAC", ".flac"), ("OGG", ".ogg"), ("MP3", ".mp3")))
    file = io.BytesIO()
    if kind == 2:
        noise[rng.randrange(16_000)] = rng.choice((np.nan, np.inf, -np.inf, 1e30))
        soundfile.write(
            file, noise, rng.choice((16_000, 44_100)), format="WAV", subtype=rng.choice(("FLOAT", "DOUBLE"))
        )
        return ".wav", file.getvalue()
    if kind == 3:
        soundfile.write(file, noise[: rng.choice((0, 1, 2, 100))], rng.choice((8_000, 16_000, 48_000)), format="WAV")
        return ".wav", file.getvalue()
    soundfile.write(file, np.stack([noise] * rng.choice((1, 2)), 1), rng.choice((8_000, 16_000, 48_000)), format=form)
    return suffix, flipped(file.getvalue(), rng)


def audio(bench: Bench, rng: Random, number: int) -> int:
    folder = bench.fresh()
    recordings = folder / "recordings"
    recordings.mkdir()
    suffix, sound = hostile_sound(rng)
    (recordings / f"a{suffix}").write_bytes(sound)
    if number % 4 == 3:
        words = ["edit", str(bench.model), str(recordings / f"a{suffix}"), "rain", "--vary", "0.5", "--steps", "2"]
        body: Body = lambda: audioldm2([*words, "--output", str(folder / "edited.wav")])  # noqa: E731
    else:
        from data.folder import main

        body = lambda: main([str(recordings), str(folder / "shards"), "--captions", "none", "--workers", "1"])  # noqa: E731
    check_plain(bench.run(body, 60))
    return 1
