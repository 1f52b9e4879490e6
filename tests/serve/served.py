"""Servers to ask, and how to ask them."""

import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from audioldm2_pl.generation import Sampling
from audioldm2_pl.serve.app import Service, build_app
from audioldm2_pl.serve.jobs import Jobs, Limits, Work
from audioldm2_pl.serve.server import listen


@contextmanager
def running(folder: Path, work: Work, limits: Limits | None = None, token: str | None = None):
    """A server in a thread => its address."""
    jobs = Jobs(folder, work, limits or Limits())
    listener = listen("127.0.0.1", 0)
    app = build_app(Service(folder, jobs, "a model", Sampling(num_steps=20)), token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        jobs.close()
        server.should_exit = True
        thread.join(20)


def ask(address: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
    """=> status, and the answer's JSON or bytes. A body of bytes is a file, of anything else JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    if data is not None and not isinstance(body, bytes):
        headers["Content-Type"] = "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            content, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        content, status = error.read(), error.code
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content


def until_ended(address: str, job_id: str, seconds: float = 120) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while (job := ask(f"{address}/jobs/{job_id}")[1])["state"] in ("queued", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job
