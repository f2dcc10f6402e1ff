"""A command line as the configuration check sees it."""

from __future__ import annotations

from pathlib import Path

from cft.config.build import CONF_DIR
from cft.config.command_line import command_line_errors, read_command_line


def mistakes(stage: str, *argv: str, conf: Path = CONF_DIR) -> list[str]:
    line = read_command_line(argv, stage=stage, conf_dir=conf)
    return [str(m) for m in command_line_errors(line, stage=stage)]
