"""The one error that a user is meant to read, and what a command line makes of it."""

import os
import select
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: one plain line that says what is wrong, where, and what to do.

    Command lines print it without a traceback and exit with code 2.
    """


def run_tool(body: Callable[[], None]) -> int:
    """Runs a command line's body => its exit code, 0 if all went well.

    A UserError becomes one line on stderr and code 2; Ctrl-C gives 130; a reader of stdout that has gone away, as
    `| head` does, gives 141.
    """
    try:
        body()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if stdout_is_read():  # another pipe broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # exit flushes what is left
        return 141
    return 0


def stdout_is_read() -> bool:
    """Whether the other end of stdout, where it is a pipe, is still open."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not poll.poll(0)
