"""A stage as a command: the check of the command line, then Hydra with a job that checks its own config and runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cft.cli.exit_status import reported
from cft.cli.usage import usage
from cft.config.build import check_command_line, checked
from cft.config.check import named
from cft.config.hydra_internals import argument_parser
from cft.config.stages import STAGES
from cft.run_log import recording
from cft.shipped import CONF_DIR


def run(name: str, arguments: Sequence[str]) -> int:
    """`cft <name> <arguments>`: one job, or those of a multirun. Raises SystemExit with the status of a job that failed."""
    before = STAGES[name].arguments
    words = _with_absolute_config_path(named(before)(arguments) if before else list(arguments))
    sys.argv = [f"cft {name}", *words]  # which Hydra reads
    if argument_parser().parse_known_args(words)[0].help:
        print(usage(name, words))
        return 0
    check_command_line(name)
    hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=name)(partial(job, name=name))()
    return 0


def job(cfg: DictConfig, *, name: str) -> Any:
    """One job. Returns what the stage returns, which a sweeper of Hydra may optimize."""
    with reported(), recording():
        cfg = checked(cfg, name)
        from cft.cli.job import stage_inputs  # heavy imports follow the check

        return named(STAGES[name].run)(*stage_inputs(cfg, name, HydraConfig.get()))


def _with_absolute_config_path(words: list[str]) -> list[str]:
    """Hydra would look for a relative --config-path beside this file; it is meant from the current folder, as others are."""
    path = argument_parser().parse_known_args(words)[0].config_path
    relative = path and "://" not in path and not Path(path).is_absolute()
    return [*words, "--config-path", str(Path(path).absolute())] if relative else words
