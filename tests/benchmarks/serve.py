"""A server under load: so many clients for so many seconds, each asking for a sound, waiting and fetching it.

    python tests/benchmarks/serve.py runs/demo/model

Latencies in the queue, the server's own time for a sound, errors, and its memory at the start and the end; to
docs/results/bench_serve.json: `make bench-serve`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from served import ask

PROMPTS = ("a bell rings", "rain", "a siren wails", "an engine runs", "a bird sings, then a drum loop")
MIB = 1 << 20


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / MIB


class Client(threading.Thread):
    """Asks for one sound after another."""

    def __init__(self, number: int, address: str, stop_at: float, num_steps: int):
        super().__init__()
        self.number, self.address, self.stop_at, self.num_steps = number, address, stop_at, num_steps
        self.latencies: list[float] = []  # seconds from asking to the whole sound
        self.times: list[float] = []  # seconds that the server took for it
        self.refused, self.errors = 0, []

    def run(self) -> None:
        count = 0
        while time.monotonic() < self.stop_at:
            begin = time.monotonic()
            prompt = PROMPTS[(self.number + count) % len(PROMPTS)]
            body = {"prompt": prompt, "seed": self.number * 10_000 + count, "num_steps": self.num_steps}
            status, job = ask(f"{self.address}/generate", body)
            if status == 429:
                self.refused += 1
                time.sleep(1)
                continue
            count += 1
            if status != 202 or not self.wait(job["id"], begin):
                self.errors.append(f"{status}: {job}")

    def wait(self, job_id: str, begin: float) -> bool:
        told = ask(f"{self.address}/jobs/{job_id}/events")[1].decode().strip().split("\n\n")[-1]
        last: dict[str, Any] = json.loads(told.removeprefix("data: "))
        if last["state"] != "done" or not ask(f"{self.address}/jobs/{job_id}/sound")[1].startswith(b"RIFF"):
            return False
        self.latencies.append(time.monotonic() - begin)
        self.times.append(last["seconds"])
        return True


def load(model: str, num_clients: int, seconds: float, num_steps: int) -> dict[str, Any]:
    """The figures of one run."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "audioldm2_pl.cli", "serve", model, "--port", "0", "--output", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = server.stdout.readline().split()[1].rstrip("/")
        first = Client(999, address, time.monotonic() + 0.1, num_steps)  # what is loaded lazily is there after it
        first.run()
        begin, before = time.monotonic(), memory(server.pid)
        clients = [Client(number, address, begin + seconds, num_steps) for number in range(num_clients)]
        for client in clients:
            client.start()
        during = []
        while any(client.is_alive() for client in clients):
            time.sleep(1)
            during.append(memory(server.pid))
        elapsed = time.monotonic() - begin
        server.terminate()
        server.wait(30)
    latencies = sorted(second for client in clients for second in client.latencies)
    half = len(during) // 2
    return {
        "clients": num_clients,
        "seconds": elapsed,
        "steps": num_steps,
        "sounds": len(latencies),
        "errors": [error for client in clients for error in client.errors],
        "refused": sum(client.refused for client in clients),
        "latency_seconds": {"median": statistics.median(latencies), "p95": latencies[int(0.95 * len(latencies))]},
        "server_seconds_per_sound": statistics.median(second for client in clients for second in client.times),
        "memory_mib": {"before": before, "middle": during[half], "most": max(during), "end": during[-1]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("docs/results/bench_serve.json"))
    options = parser.parse_args()
    result = load(options.model, options.clients, options.seconds, options.steps)
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    options.output.write_text(json.dumps({**result, **machine}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
