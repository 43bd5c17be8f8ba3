"""Exceptions; `UserError` is the one that a user is meant to read.

Raise it for anything that a user can mend: a wrong flag, a missing data set, a
malformed image. Its message is one line that says what is wrong, where, and what to do.
Command-line tools print it without a traceback and exit with status 2; in Python it is an
ordinary exception.
"""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input that the user can mend; the message is one clear line."""


class Interrupted(Exception):  # noqa: N818 (asked for, not an error)
    """Training was asked to stop and has saved a checkpoint."""


def choose(kind: str, value: str, valid: Iterable[str]) -> str:
    """Returns `value` if it is one of `valid`; otherwise raises a `UserError` listing them."""
    valid = list(valid)
    if value not in valid:
        raise UserError(f"unknown {kind} '{value}'; valid: {', '.join(valid)}")
    return value
