"""Commands of this installation in processes of their own: those that the library may not import, `data` and
`evaluation`, and those whose memory should be given back."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from audioldm2_pl.errors import REQUEUE

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# exit code of a command that was interrupted => the signal
STOPPED = {128 + s: s for s in SIGNALS} | {-s: s for s in SIGNALS} | {REQUEUE: signal.SIGUSR1}
PACKAGE = Path(__file__).parent
IS_INSTALLED = (PACKAGE / "data").is_dir()  # as audioldm2_pl.data; in a clone it is data
ROOT = "audioldm2_pl." if IS_INSTALLED else ""
SCRIPTS = {"audioldm2": "audioldm2_pl.cli", "audioldm2-data": f"{ROOT}data", "audioldm2-eval": f"{ROOT}evaluation"}


def module_of(command: Sequence[str]) -> list[str]:
    """A command as a shell would have it => the module of this installation that runs it, and its arguments."""
    if command[0] in SCRIPTS:
        return [SCRIPTS[command[0]], *command[1:]]
    return [f"{ROOT}{command[2]}", *command[3:]]  # of python -m data.esc50


def run_command(command: Sequence[str]) -> int:
    """Its output goes where ours does; a signal is handed on, and waited for. => its exit code"""
    environment = dict(os.environ)
    if not IS_INSTALLED:
        paths = [str(PACKAGE.parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with subprocess.Popen([sys.executable, "-m", *module_of(command)], env=environment) as process, handed_on(process):
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the terminal has told the process, too, which saves what it has
                continue


@contextmanager
def handed_on(process: subprocess.Popen):
    """SIGTERM and SIGUSR1 go to the process; its end is ours."""
    signals = (signal.SIGTERM, signal.SIGUSR1)
    before = {s: signal.signal(s, lambda signum, frame: process.send_signal(signum)) for s in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
