"""What goes wrong with an engine and is for a person to mend."""

from __future__ import annotations

from cft.errors import UserError


class EngineError(UserError, RuntimeError):
    """The engine cannot decode with this model, or not here; the message names the key to change."""
