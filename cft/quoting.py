"""One override as Hydra's grammar reads it back."""

from __future__ import annotations

import re


def setting(key: str, value: str) -> str:
    """`key=value`; a value that the grammar would take apart is quoted."""
    if re.fullmatch(r"[\w./:+-]+", value):
        return f"{key}={value}"
    # Hydra takes a backslash as one, but for those before a quote.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"
