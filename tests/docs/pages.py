"""Parses README.md and the pages of docs/ for tests: their blocks, files and commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from cft.config.stages import STAGES
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SCRIPTS = [name for name in STAGES if (ROOT / f"{name}.py").is_file()]  # scripts in a checkout
_COMMAND = re.compile(rf"cft ({'|'.join(STAGES)}|report)(?= |$)|python ({'|'.join(_SCRIPTS)})\.py(?= |$)")


@dataclass(frozen=True, slots=True)
class Command:
    """A `cft` command line on a page. stage: its name, or "report"."""

    page: str
    text: str
    stage: str

    @property
    def argv(self) -> list[str]:
        """The arguments as a shell reads them; placeholders (<folder>, ...) are replaced by some text."""
        text = re.sub(r"<[^<>]*>", "placeholder", self.text).replace("=...", "=placeholder")
        return shlex.split(text, comments=True)[2:]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[str]:
    """Contents of a page's fenced blocks."""
    return [content for _, content in _FENCED.findall(text)]


def lines_of_code(text: str) -> list[str]:
    """Lines of fenced and indented blocks, and inline code in the text."""
    outside = _FENCED.sub("", text)
    fenced = [line for block in blocks(text) for line in block.splitlines()]
    indented = [line for line in outside.splitlines() if line.startswith("    ")]
    spans = re.findall(r"`([^`\n]+)`", outside)
    names = re.compile(r"cft \w+")  # alone: a command's name
    return [*fenced, *indented, *(span for span in spans if not names.fullmatch(span))]


def commands() -> list[Command]:
    """Every command of `cft` on any page, each once per page."""
    found = {}
    for page in PAGES:
        for line in lines_of_code(read(page)):
            text = re.sub(r"^\s*(?:\$ )?(?:until )?", "", line).split("; do")[0]
            if match := _COMMAND.match(text):
                found[name_of(page), text] = Command(name_of(page), text, match[1] or match[2])
    return list(found.values())


def files() -> dict[str, str]:
    """Blocks that begin with the path of a file: path -> text. Checks that pages that show the same file agree."""
    found: dict[str, str] = {}
    for page in PAGES:
        for block in blocks(read(page)):
            if match := re.match(r"(?:# @package _global_\n)?# (\S+/\S+\.(?:py|yaml))\n", block):
                assert found.setdefault(match[1], block) == block, f"{name_of(page)} shows another {match[1]}"
    return found
