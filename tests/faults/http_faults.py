"""HTTP bodies, headers, paths and uploads of all kinds at `audioldm2 serve`: a 4xx or a job; the server stays."""

import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from bench import ROOT, Bench
from children import MAX_MIB, MIB, Child, Fault

from audioldm2_pl.cli import main as audioldm2

sys.path.insert(0, str(ROOT / "tests/serve"))

from served import ask

HOSTILE = (
    None, "", "\0", "a" * 20_000, "\u202e\u200f", [], {}, [[]], -1, 0, 2**63, 10**400, 1e308, True, [None], {"a": 1},
    "../../etc/passwd", "0123456789abcdef", [[0, 1], [2]], [["a", "b"]], {"__class__": "x"}, [[1e308, -1e308]],
)  # fmt: skip
FIELDS = (
    "prompt", "negative_prompt", "seconds", "seed", "transcript", "image", "video", "audio", "prompt_at", "num_steps",
    "guidance_scale", "eta", "sampler", "candidates", "window_seconds", "source", "between", "extend", "vary", "x",
)  # fmt: skip


def start(bench: Bench, folder: Path) -> tuple[Child, str]:
    """A server of the smoke model in a child, and its address."""
    bench.model  # noqa: B018 # is trained before the fork
    words = ["serve", str(bench.model), "--port", "0", "--output", str(folder), "--max-waiting", "1000"]
    child = Child(lambda: audioldm2([*words, "--max-steps", "4"]), bench.log)
    deadline = time.monotonic() + 60
    while not (lines := [line for line in bench.log.read_text().splitlines() if line.startswith("page: ")]):
        if child.poll() or time.monotonic() > deadline:
            raise Fault(f"the server does not start: {bench.log.read_text()[-1500:]}")
        time.sleep(0.01)
    return child, lines[0].split()[1].rstrip("/")


def accepted(address: str, body: Any) -> str:
    status, job = ask(f"{address}/generate", body)
    if status != 202:
        raise Fault(f"{status}: {job}")
    return job["id"]


def finished(address: str, job: str) -> bytes | None:
    """A job's sound; None while there is none. Raises Fault where the job failed or is not known."""
    status, told = ask(f"{address}/jobs/{job}")
    if status != 200 or told["state"] not in ("queued", "running", "done"):
        raise Fault(f"job {job}: {status} {told}")
    return ask(f"{address}/jobs/{job}/sound")[1] if told["state"] == "done" else None


def raw(address: str, content: bytes) -> int:
    """Bytes to the server's socket => the status of its answer, 0 where it only closes."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(content)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while block := connection.recv(4096):
                answer += block
                if b"\r\n" in answer:
                    break
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0


def send(address: str, rng: Random) -> tuple[int, Any]:
    """One hostile request => (status, answer)."""
    kind = rng.choice(("fields", "fields", "fields", "json", "bytes", "path", "upload", "headers", "edit", "nested"))
    target = rng.choice(("generate", "edit"))
    if kind == "fields":
        values = {name: rng.choice(HOSTILE) for name in rng.sample(FIELDS, rng.randint(1, 5))}
        return ask(f"{address}/{target}", {"prompt": "a", "num_steps": 1} | values)
    if kind == "json":
        text = bytearray(json.dumps({"prompt": "a bell", "num_steps": 2, "seconds": 1.0, "seed": 3}).encode())
        for _ in range(rng.randint(1, 6)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        return ask(f"{address}/{target}", bytes(text), Content_Type="application/json")
    if kind == "bytes":
        return ask(f"{address}/{target}", rng.randbytes(rng.randrange(5_000)), Content_Type="application/json")
    if kind == "nested":
        depth = rng.choice((50, 1_000, 60_000))
        return ask(
            f"{address}/{target}", b'{"prompt":' + b"[" * depth + b"]" * depth + b"}", Content_Type="application/json"
        )
    if kind == "path":
        name = rng.choice(("..%2f..%2fetc%2fpasswd", "%00", "a" * 5_000, "0123456789abcdef", "%ff%fe", "."))
        return ask(f"{address}/jobs/{name}{rng.choice(('', '/sound', '/events', '/log_mel.png'))}")
    if kind == "headers":
        head = f"POST /{rng.choice(('generate', 'files'))} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
        more = rng.choice((b"Content-Length: -1", b"Content-Length: 99999999999999", b"Transfer-Encoding: chunked",
                           b"Content-Length: 9e9", b"X: " + b"a" * 100_000, b"\0: \0"))  # fmt: skip
        return raw(address, head + more + b"\r\n\r\n" + rng.randbytes(rng.randrange(50))), {"error": ""}
    body = rng.randbytes(rng.randrange(1, 3_000))
    body = rng.choice((b"RIFF", b"fLaC", b"\x89PNG\r\n\x1a\n", b"ID3", b"OggS", b"")) + body
    names = ("a.wav", "a.flac", "a.png", "a.mp3", "../../a.wav", "a.exe", "a.mp4", "a\xff.wav", "")
    status, told = ask(f"{address}/files", body, X_File_Name=rng.choice(names))
    if status != 200 or kind == "upload":
        return status, told
    edit = rng.choice(({"vary": 0.5}, {"extend": 1.0}, {"between": [[0, 1]]}))
    return ask(f"{address}/edit", {"source": told["id"], "num_steps": 1, **edit})


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / MIB


class Server:
    """One for all cases of a process; it has to live on."""

    running: tuple[Child, str] | None = None


def http(bench: Bench, rng: Random, number: int) -> int:
    if Server.running is None:
        Server.running = start(bench, bench.fresh() / "served")
    child, address = Server.running
    status, answer = send(address, rng)
    said = bench.log.read_text(errors="replace")
    bench.log.write_text("")  # the server appends
    if child.poll():
        Server.running = None
        raise Fault(f"the server has ended: {said[-1500:]}")
    if "Traceback" in said:
        raise Fault(f"a traceback: {said[-1500:]}")
    if status and not (200 <= status < 300 or 400 <= status < 500):
        raise Fault(f"answered {status}: {str(answer)[:300]}")
    if status >= 400 and not (isinstance(answer, dict) and "error" in answer):
        raise Fault(f"{status} without a reason: {str(answer)[:300]}")
    if memory(child.pid) > MAX_MIB:
        raise Fault(f"{memory(child.pid):.0f} MiB of memory")
    return 1


def close() -> None:
    if Server.running is not None:
        Server.running[0].kill()
        Server.running = None
