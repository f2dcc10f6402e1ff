"""Where the files that ship with the code lie."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _conf_dir() -> Path:
    """conf/ inside the package where it was installed from a wheel, beside it in a checkout."""
    inside = _PACKAGE / "conf"
    return inside if inside.is_dir() else _PACKAGE.parent / "conf"


CONF_DIR = _conf_dir()
MODELS = _PACKAGE / "assets"  # a folder per model
