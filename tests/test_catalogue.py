"""The table of methods is what the code says, every row's command is one that train.py accepts, and nothing is missing."""

from __future__ import annotations

import shlex

import pytest

from cft.catalogue import DOCUMENT, GROUPS, Entry, document, entries
from cft.command_line import command_line_mistakes, read_command_line
from cft.config import CONF_DIR

ENTRIES = entries()


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "make it anew: python -m cft.catalogue"


def test_every_option_has_a_row() -> None:
    files = {f"{group}={file.stem}" for group in GROUPS for file in (CONF_DIR / group).glob("*.yaml")}
    assert {entry.name for entry in ENTRIES} == files


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_command_passes_the_check(entry: Entry) -> None:
    argv = [*shlex.split(" ".join(map(shlex.quote, entry.overrides))), *(f"{key}=x" for key in entry.missing)]
    line = read_command_line(argv, stage="train", conf_dir=CONF_DIR)
    assert [str(m) for m in line.mistakes or command_line_mistakes(line, stage="train")] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_method_says_what_it_is(entry: Entry) -> None:
    assert len(entry.what) > 10
    assert "\n" not in entry.what
