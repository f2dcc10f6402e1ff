"""A command line as the configuration check sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cft.config.build import CONF_DIR
from cft.config.command_line import command_line_errors, read_command_line
from cft.config.stages import STAGES


def mistakes(stage: str, *argv: str, conf: Path = CONF_DIR) -> list[str]:
    line = read_command_line(argv, stage=stage, conf_dir=conf)
    return [str(m) for m in command_line_errors(line, stage=stage)]


def options() -> list[str]:
    """group=option of every file below a group, nested groups such as model/lora included."""
    files = sorted(CONF_DIR.rglob("*.yaml"))
    return [f"{f.parent.relative_to(CONF_DIR).as_posix()}={f.stem}" for f in files if f.parent != CONF_DIR]


def representatives(lines: Iterable[tuple[str, Sequence[str]]]) -> list[tuple[str, Sequence[str]]]:
    """Of command lines (stage, arguments): few that hold every argument of every stage at least once, but for the choice
    of an option, which is checked where all options are (tests/config/test_configs.py)."""
    chosen, known = [], {(stage, option) for stage in STAGES for option in options()}
    for stage, argv in sorted(lines, key=lambda line: -len(line[1])):
        words = {(stage, word) for word in argv if "regularizer@" not in word}
        if not words <= known:
            chosen.append((stage, argv))
            known |= words
    return chosen
