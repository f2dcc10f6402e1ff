"""The base of all user errors, as opposed to errors of the program."""

from __future__ import annotations


class UserError(Exception):
    """An error in input or configuration; the message is complete, no traceback is shown.

    It says what was found, what was expected and the remedy. The commands print it (`cft/cli/exit_status.py`).
    """


class BadValue(UserError, ValueError):
    """An option or input of a value that cannot be used; for modules without an error class of their own."""


class Interrupted(Exception):
    """A run was told from outside to end, and has saved what it can resume from. The message is the reason."""
