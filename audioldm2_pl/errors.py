"""What ends a command early, and what its command line makes of it."""

import os
import re
import select
import signal
import sys
import textwrap
from collections.abc import Callable

REQUEUE = 75  # exit code of a run that SIGUSR1 has ended: EX_TEMPFAIL of sysexits.h, "try again"
MAX_REASON = 240  # characters of another library's message


class UserError(Exception):
    """Bad input: one plain line that says what is wrong, where, and what to do.

    Command lines print it without a traceback and exit with code 2.
    """


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C asked the run to end. No Exception: it may be raised between any two lines of any library."""

    def __init__(self, signum: int, state: str = ""):
        super().__init__(signum, state)  # its arguments, so that it can be pickled
        self.signum = signum
        self.state = state  # what is saved

    def __str__(self) -> str:
        name = "interrupted" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
        return f"{name}; {self.state}" if self.state else name


def reason_of(error: BaseException) -> str:
    """An exception's text in one line that is the same in every run."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "it", str(error))  # an address differs from run to run
    return textwrap.shorten(text, MAX_REASON, placeholder=" …") or type(error).__name__


def run_tool(body: Callable[[], None]) -> int:
    """Runs a command line's body => its exit code, 0 if all went well.

    A UserError becomes one line on stderr and code 2, and so does a disk that is full, read-only or gone; Ctrl-C gives
    130, SIGTERM 143, SIGUSR1 75; a reader of stdout that has gone away, as `| head` does, gives 141.
    """
    try:
        body()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return REQUEUE if stop.signum == signal.SIGUSR1 else 128 + stop.signum
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if stdout_is_read():  # another pipe broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # exit flushes what is left
        return 141
    except OSError as error:
        prefix = f"{error.filename}: " if error.filename else ""
        print(f"error: {prefix}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def stdout_is_read() -> bool:
    """Whether the other end of stdout, where it is a pipe, is still open."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not poll.poll(0)
