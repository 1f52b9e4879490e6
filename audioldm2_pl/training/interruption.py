"""SIGTERM, SIGUSR1 and Ctrl-C: a stage that trains saves its checkpoint first; elsewhere there is nothing to save.

SIGUSR1 is what SLURM sends ahead of a time limit (`--signal=USR1@120`); the exit code then asks for the job once more.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from audioldm2_pl.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interruption:
    """What signals ask of this process.

    While `deferred` they are noted, and `Resumable` ends the stage after its next step; else, and at a second Ctrl-C,
    they raise Interrupted at once.
    """

    def __init__(self):
        self.deferred = False
        self.signum: int | None = None  # the first that came while it was deferred

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if not self.deferred or (self.signum is not None and signum == signal.SIGINT):
            raise Interrupted(signum)
        self.signum = self.signum or signum

    def install(self) -> dict[int, Any]:
        """Takes the signals over; the handlers that were there before."""
        return {signum: signal.signal(signum, self.receive) for signum in SIGNALS}

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Signals are handled; where this is not the main thread they cannot be, and stay as they were."""
        self.deferred, self.signum = False, None
        try:
            before = self.install()
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


INTERRUPTION = Interruption()  # a process has one set of signal handlers
