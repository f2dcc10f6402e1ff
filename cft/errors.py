"""Base classes of user errors, as opposed to bugs."""

from __future__ import annotations


class UserError(Exception):
    """An error in input or configuration, printed without a traceback (`cft/cli/exit_status.py`).

    The message says what was found, what was expected and how to fix it.
    """


class BadValue(UserError, ValueError):
    """An invalid value of an option or input; for modules without their own error class."""


class Interrupted(Exception):
    """A run was stopped from outside (signal, time limit) after it saved a checkpoint. The message is the reason."""
