"""`audioldm2 serve`: one model, its jobs and its API in one process."""

import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation
from audioldm2_pl.provenance import Provenance
from audioldm2_pl.serve.app import LOCAL_HOSTS, Service, build_app
from audioldm2_pl.serve.jobs import Job, Jobs, Limits, Work, find_file
from audioldm2_pl.transcripts import as_long_as_spoken

MIN_TOKEN = 16  # characters


def build_work(model: Any, origin: Provenance, folder: Path) -> Work:
    """What makes a job's sound with an AudioLDM2; `folder` holds uploads and earlier sounds."""

    def work(job: Job, progress: Callable[[int, int], None], path: Path) -> None:
        request, sampling = Generation(**job.request), replace(model.sampling, **job.sampling)
        made_by, source = replace(origin, sampling=asdict(sampling)), None
        if job.editing is None:
            made = model.generate(request, sampling=sampling, progress=progress)[0]  # (T,)
            made, sample_rate = as_long_as_spoken(made, request), model.sample_rate
        else:
            source = find_file(folder, job.source)
            made, sample_rate = model.edit(source, request, sampling=sampling, progress=progress, **job.editing)
            made = made.T  # (T, channels)
        save_waveform(path, made, sample_rate, made_by.with_request(request, job.editing, source).comment())

    return work


def read_token(path: Path) -> str:
    """The first line of a file that only its owner should read."""
    try:
        token = path.read_text(encoding="utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path}: cannot be read ({error})") from None
    if len(token) < MIN_TOKEN or not token.isascii():
        raise UserError(f"--token-file {path}: its first line is the token, at least {MIN_TOKEN} ASCII characters")
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. UserError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot listen there ({error}); choose another --port") from None


def serve(model: Any, origin: Provenance, folder: Path, address: tuple[str, int], token: str | None,
          limits: Limits) -> None:  # fmt: skip
    """Until interrupted. Raises UserError for an address that others reach, without a token."""
    import uvicorn

    host, port = address
    if token is None and host not in LOCAL_HOSTS:
        raise UserError(f"--host {host}: others may reach it; give --token-file FILE, which every call then needs")
    listener = listen(host, port)
    jobs = Jobs(folder, build_work(model, origin, folder), limits)
    app = build_app(Service(folder, jobs, origin.model, model.sampling), token)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    shown = f"[{host}]" if ":" in host else host
    print(f"page: http://{shown}:{listener.getsockname()[1]}/  API: /docs  sounds: {folder}", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        jobs.close()
