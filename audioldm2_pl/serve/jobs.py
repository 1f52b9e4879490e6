"""Jobs: what clients ask for, one after another, and their sounds on the disk.

A job is a JSON file, written whole at each change of its state, and a WAV file once it is done. A server that is killed
and started again finds all finished sounds, and goes on with the jobs that were not.
"""

import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from audioldm2_pl.atomic import read_json_object, write_text
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.fields import bounded, check_fields

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


@dataclass
class Limits:
    """What a server takes on."""

    max_seconds: float = bounded(60.0, gt=0, le=86_400, unit="seconds", help="longest sound that may be asked for")
    max_steps: int = bounded(200, ge=1, le=100_000, unit="steps", help="most sampling steps")
    max_candidates: int = bounded(8, ge=1, le=1_000, unit="clips", help="most candidates a prompt")
    max_waiting: int = bounded(32, ge=1, le=100_000, unit="jobs", help="jobs that wait; more are refused for now")
    max_job_seconds: float = bounded(600.0, gt=0, le=86_400, unit="seconds", help="time after which a job is stopped")
    max_upload_megabytes: int = bounded(50, ge=1, le=10_000, unit="megabytes", help="largest file that is taken")
    max_kept: int = bounded(1_000, ge=1, le=10_000_000, unit="jobs", help="ended jobs, and uploads, that are kept")


@dataclass
class Job:
    """One request and how far it is."""

    id: str
    request: dict[str, Any]  # fields of Generation
    sampling: dict[str, Any]  # fields of Sampling that are given
    editing: dict[str, Any] | None = None  # fields of Editing; None: not an edit
    source: str | None = None  # id of the recording that is edited
    created: float = field(default_factory=time.time)  # seconds since 1970
    state: State = "queued"
    step: int = 0
    num_steps: int = 0  # 0: not known yet
    seconds: float = 0.0  # that it took
    error: str | None = None


def find_file(folder: Path, name: Any) -> Path:
    """The file of an upload's or a finished job's id. UserError where there is none."""
    if isinstance(name, str) and re.fullmatch(r"[0-9a-f]{16}(\.[a-z0-9]{2,4})?", name):
        for path in (folder / "uploads" / name, folder / "jobs" / f"{name}.wav"):
            if path.is_file():
                return path
    raise UserError(f"{name!r}: no such file here; upload it first, or name a job that is done")


class Stopped(Exception):
    """A job was cancelled, or took too long."""


class Busy(Exception):
    """As many jobs wait as may."""


Work = Callable[[Job, Callable[[int, int], None], Path], None]  # job, progress (step, steps), file to write


class Jobs:
    """The queue, with one thread that works it off."""

    def __init__(self, folder: Path, work: Work, limits: Limits):
        self.folder, self.work, self.limits = folder, work, limits
        self.jobs: dict[str, Job] = {}  # in the order in which they were made
        self.changed = threading.Condition()
        self.closed = False
        for name in ("jobs", "uploads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("jobs/*.json")):
            with suppress(UserError, TypeError):  # a file of another program
                job = Job(**read_json_object(path))
                check_fields(job)
                if path.stem == job.id:
                    self.jobs[job.id] = job
        self.jobs = dict(sorted(self.jobs.items(), key=lambda item: item[1].created))
        for job in self.jobs.values():
            if job.state == "running":
                job.state = "queued"
            if job.state == "done" and not self.sound_of(job.id).is_file():
                job.state, job.error = "failed", "its sound is no longer there"
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def sound_of(self, job_id: str) -> Path:
        return self.folder / "jobs" / f"{job_id}.wav"

    def add(self, **fields: Any) -> Job:
        """A new job at the queue's end. Raises Busy where it is full."""
        job = Job(secrets.token_hex(8), **fields)
        with self.changed:
            if self.num_waiting() >= self.limits.max_waiting:
                raise Busy(f"{self.num_waiting()} jobs wait already; try again later")
            self.write(job)
            self.jobs[job.id] = job
            self.forget_old()
            self.changed.notify_all()
        return job

    def num_waiting(self, before: Job | None = None) -> int:
        """Jobs that wait or run, of all or of those before one."""
        waiting = 0
        for job in list(self.jobs.values()):
            if job is before:
                break
            waiting += job.state not in ENDED
        return waiting

    def cancel(self, job: Job) -> None:
        """A waiting job ends at once, a running one at its next step."""
        with self.changed:
            if job.state not in ENDED:
                job.state = "cancelled"
                self.write(job)

    def write(self, job: Job) -> None:
        write_text(self.folder / "jobs" / f"{job.id}.json", json.dumps(asdict(job), indent=1) + "\n")

    def forget_old(self) -> None:
        """Deletes the oldest ended jobs beyond the limit, with their sounds."""
        ended = [job for job in self.jobs.values() if job.state in ENDED]
        for job in ended[: max(0, len(ended) - self.limits.max_kept)]:
            del self.jobs[job.id]
            for suffix in ("json", "wav"):
                (self.folder / "jobs" / f"{job.id}.{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        """Stops working; a job that runs stays on the disk as one that does, and begins anew with the next server."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.next() is not None)
                if self.closed:
                    return
                job: Any = self.next()
                job.state = "running"
            self.run_one(job)

    def next(self) -> Job | None:
        return next((job for job in self.jobs.values() if job.state == "queued"), None)

    def run_one(self, job: Job) -> None:
        """Never raises: what goes wrong is told by the job."""
        begin = time.monotonic()

        def progress(step: int, num_steps: int) -> None:
            job.step, job.num_steps = step, num_steps
            if self.closed or job.state == "cancelled":
                raise Stopped
            if time.monotonic() - begin > self.limits.max_job_seconds:
                raise Stopped(
                    f"stopped after {self.limits.max_job_seconds:g} s; ask for fewer steps or a shorter sound"
                )

        state: State = "done"
        try:
            self.write(job)
            self.work(job, progress, self.sound_of(job.id))
        except Stopped as stop:
            state, job.error = "failed", str(stop) or None
        except Exception as error:  # a defect of one job is no defect of the server
            state, job.error = "failed", str(error) if isinstance(error, UserError) else reason_of(error)
        if self.closed and state != "done":
            return
        with self.changed:
            job.seconds = time.monotonic() - begin
            job.state = "cancelled" if job.state == "cancelled" else state
            with suppress(UserError):  # the disk is full: the sound is there, or the error is told while it runs
                self.write(job)
