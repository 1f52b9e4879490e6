"""The one error that a user is meant to read."""


class UserError(Exception):
    """Bad input: one plain line that says what is wrong, where, and what to do.

    Command lines print it without a traceback and exit with code 2.
    """
