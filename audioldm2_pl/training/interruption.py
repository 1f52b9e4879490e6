"""SIGTERM and Ctrl-C: a stage that trains saves its checkpoint first; elsewhere there is nothing to save."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from audioldm2_pl.errors import Interrupted


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
        return {signum: signal.signal(signum, self.receive) for signum in (signal.SIGTERM, signal.SIGINT)}

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
