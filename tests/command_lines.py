"""Command lines for tests of the config check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cft.config.build import CONF_DIR
from cft.config.command_line import command_line_errors, read_command_line
from cft.config.stages import STAGES


def mistakes(stage: str, *argv: str, conf: Path = CONF_DIR) -> list[str]:
    line = read_command_line(argv, stage=stage, conf_dir=conf)
    return [str(m) for m in command_line_errors(line, stage=stage)]


def options() -> list[str]:
    """group=option for every file of a group, including nested groups such as model/lora."""
    files = sorted(CONF_DIR.rglob("*.yaml"))
    return [f"{f.parent.relative_to(CONF_DIR).as_posix()}={f.stem}" for f in files if f.parent != CONF_DIR]


def representatives(lines: Iterable[tuple[str, Sequence[str]]]) -> list[tuple[str, Sequence[str]]]:
    """A small subset of command lines (stage, arguments) that contains every argument of every stage at least once.

    Choices of options are excluded; tests/config/test_configs.py checks all of them.
    """
    chosen, known = [], {(stage, option) for stage in STAGES for option in options()}
    for stage, argv in sorted(lines, key=lambda line: -len(line[1])):
        words = {(stage, word) for word in argv if "regularizer@" not in word}
        if not words <= known:
            chosen.append((stage, argv))
            known |= words
    return chosen


Line = tuple[str, tuple[str, ...]]


def mistakes_together(cases: Iterable[Sequence[Any]], wanted: Sequence[Any]) -> tuple[str, ...]:
    """The errors found for a command line that combines the case `wanted` with other cases that set other keys.

    A check of ten errors costs as much as a check of one. cases: (stage, arguments), each with one error.
    """
    return _together(tuple((stage, tuple(argv)) for stage, argv in cases))[wanted[0], tuple(wanted[1])]


@cache
def _together(cases: tuple[Line, ...]) -> dict[Line, tuple[str, ...]]:
    lines: list[list[Line]] = []
    for case in cases:
        line = next(
            (line for line in lines if line[0][0] == case[0] and not any(_clash(case[1], c[1]) for c in line)), []
        )
        if not line:
            lines.append(line)
        line.append(case)
    found = {}
    for line in lines:
        reported = mistakes(line[0][0], *(word for _, argv in line for word in argv))
        assert len(reported) == len(line), (line, reported)
        found |= dict.fromkeys(line, tuple(reported))
    return found


def _clash(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two command lines set the same key, or a key and one of its parents. Flags overlap with everything."""
    if "-m" in (*one, *other):
        return True
    places = [{word.lstrip("+~-").partition("=")[0].rpartition("@")[2] for word in argv} for argv in (one, other)]
    return any(f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.") for a in places[0] for b in places[1])
