"""Commands in forks of one process that has imported everything: started in milliseconds, killed at any moment."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
HANG_SECONDS, MAX_MIB = 60.0, 4_096.0  # what any hostile input may take
HUNG = -1000  # in the place of an exit code


class Fault(AssertionError):
    """The product did what it must not."""


@dataclass
class Outcome:
    """How a command ended."""

    code: int  # a signal's number, negative, where one ended it; HUNG where it did not end
    said: str  # stdout and stderr
    seconds: float
    mib: float  # most memory that it held, what it shares with its parent included


class Child:
    """A body that runs in a fork of this process, in a process group of its own; `log` takes what it prints."""

    def __init__(self, body: Callable[[], int | None], log: Path):
        self.log, self.started, self.ended = log, time.monotonic(), None
        log.write_bytes(b"")  # before the fork: what an earlier child has said is not read as this one's
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            run_and_exit(body, log)

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""
        if self.ended is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                said = self.log.read_text(encoding="utf-8", errors="replace")
                self.ended = Outcome(code, said, time.monotonic() - self.started, usage.ru_maxrss * 1024 / MIB)
        return self.ended

    def wait(self, seconds: float = HANG_SECONDS) -> Outcome:
        """How it ended; after so many seconds it is killed, and has hung."""
        deadline = time.monotonic() + seconds
        while (outcome := self.poll()) is None:
            if time.monotonic() > deadline:
                outcome = self.kill()
                outcome.code = HUNG
                return outcome
            time.sleep(0.005)
        return outcome

    def kill(self, signum: int = signal.SIGKILL) -> Outcome:
        """Ends its whole process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signum)
        with suppress(ProcessLookupError):  # it has no group of its own yet
            os.kill(self.pid, signum)
        while (outcome := self.poll()) is None:
            time.sleep(0.002)
        return outcome


def run_and_exit(body: Callable[[], int | None], log: Path) -> None:
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)  # pytest has others in their place
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = body() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def check_plain(outcome: Outcome, codes: tuple[int, ...] = (0, 2), many_lines: bool = False) -> None:
    """Raises Fault unless the command ended in time and memory, with one of the codes and a plain line for code 2."""
    tail = outcome.said[-1500:]
    if outcome.code == HUNG:
        raise Fault(f"hung: {tail}")
    if "Traceback (most recent call last)" in outcome.said:
        raise Fault(f"a traceback, code {outcome.code}: {tail}")
    if outcome.code not in codes:
        raise Fault(f"code {outcome.code}: {tail}")
    if outcome.mib > MAX_MIB:
        raise Fault(f"{outcome.mib:.0f} MiB of memory: {tail}")
    errors = [line for line in outcome.said.splitlines() if line.startswith("error: ") or ": error: " in line]
    if outcome.code == 2 and not errors:
        raise Fault(f"code 2 without a line that says why: {tail}")
    if len(errors) > 1 and not many_lines:
        raise Fault(f"{len(errors)} lines of errors: {tail}")
