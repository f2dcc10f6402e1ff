"""Cards: the README.md of an annotation or an exported model, in the format of the Hugging Face hub. Here: what they share.

A card is computed from the files (manifest, rows, results.json); the same files give the same text. It states no license that
was not recorded, and contains no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, RepoCard

from cft.config.redaction import hidden
from cft.files import write_bytes
from cft.runs.lineage import CARD

PAPER = "[arXiv 2510.10974](https://arxiv.org/abs/2510.10974)"

TAGS = ["critical-token-fine-tuning", "arxiv:2510.10974"]

_TEMPLATE = "---\n{{ card_data }}\n---\n\n{{ text }}"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def write_card(folder: Path, text: str) -> Path:
    path = folder / CARD
    write_bytes(path, text.encode("utf-8", "replace"))
    return path


def digests(conditions: str, contents: str, *, of: str = "") -> list[tuple[str, str]]:
    """The two fingerprints of an annotation under distinct names; unknown ones are omitted."""
    named = ((f"{of}conditions, SHA-256", conditions), (f"{of}contents, SHA-256", contents))
    return [(name, digest) for name, digest in named if digest]


def size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>1M")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cell contents are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines)


def code(language: str, text: str) -> str:
    """A fenced block with a fence that the text does not contain."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def card(header: CardData, parts: Iterable[str]) -> str:
    """header: the hub's metadata. parts: Markdown; empty ones are omitted."""
    text = "\n\n".join(part for part in parts if part)
    return hidden(RepoCard.from_template(header, template_str=_TEMPLATE, text=text).content + "\n")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def commands(lineage: dict[str, Any]) -> str:
    """The commands that made this, in order; "" if none was recorded."""
    found: list[str] = []
    while lineage:
        found.insert(0, lineage.get("command", ""))
        lineage = next((one["came_from"] for one in lineage.get("inputs", ())), {})
    known = [command for command in found if command]
    return code("bash", "\n".join(known)) if known else ""
