"""The one place where a composed config becomes values: the stage's own dataclass, and the facts about the job.

Nothing below it uses Hydra or OmegaConf.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from cft.cli.method import method_choices
from cft.config.build import checked, config_hash, own_prefixes, redacted
from cft.config.compose import nested
from cft.config.hydra_internals import apply_override
from cft.config.stages import STAGES
from cft.config.typed import typed
from cft.runs.job import Job
from cft.runs.run import flat, follows_seed
from cft.shipped import CONF_DIR


def stage_inputs(cfg: DictConfig, stage: str, hydra: HydraConf) -> tuple[Any, Job]:
    """(config of the stage, job): the arguments of a stage. cfg: the config of the stage alone, already checked."""
    tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(tree, dict)
    schema = STAGES[stage].schema
    return typed(schema, {str(key): value for key, value in tree.items()}, allowed=own_prefixes()), job_of(
        cfg, stage, hydra
    )


def job_of(cfg: DictConfig, stage: str, hydra: HydraConf) -> Job:
    multirun = hydra.mode == RunMode.MULTIRUN
    folder = Path(hydra.runtime.output_dir)
    choices = {str(group): str(option) for group, option in hydra.runtime.choices.items()}
    sources = [f"{source.schema}://{source.path}" for source in hydra.runtime.config_sources]
    written = flat(OmegaConf.to_container(cfg, resolve=False))
    return Job(
        stage=stage,
        folder=folder,
        group=Path(hydra.sweep.dir).name if multirun else folder.name,
        multirun=multirun,
        config=redacted(cfg),
        digest=config_hash(cfg),
        of_seed=frozenset(name for name, value in written.items() if follows_seed(value)),
        choices=choices,
        method=method_choices(cfg, choices=choices, sources=sources) if stage == "train" else {},
        overrides=tuple(hydra.overrides.task),
        flags=command_flags(hydra),
    )


def command_flags(hydra: HydraConf) -> tuple[str, ...]:
    """Folders of further yaml files, as typed."""
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return tuple(word for folder in folders for word in ("--config-dir", folder))


@contextmanager
def hydra_job(
    stage: str,
    overrides: Sequence[str],
    *,
    folder: Path | None = None,
    conf_dirs: Sequence[str] = (),
    check: bool = True,
) -> Iterator[tuple[Any, Job]]:
    """The arguments that `cft <stage> <overrides>` calls the stage with, for programs; Hydra's job context is set as there.

    folder: of the job, None = where the command would put it. conf_dirs: folders of further yaml files, as for --config-dir.
    check: whether to refuse a config that the stage would refuse.

    Raises ConfigError.
    """
    before = HydraConfig.instance().cfg
    try:
        with nested(), initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name=stage):
            cfg = compose(stage, [*_search_path(conf_dirs), *overrides], return_hydra_config=True)
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            cfg.hydra.mode = RunMode.RUN
            cfg.hydra.runtime.output_dir = "" if folder is None else str(folder)
            HydraConfig.instance().set_config(cfg)
            if folder is None:
                OmegaConf.set_readonly(cfg.hydra, False)
                cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.run.dir).absolute())
                HydraConfig.instance().set_config(cfg)
            hydra = cfg.hydra
            del cfg["hydra"]
        inputs, job = stage_inputs(checked(cfg, stage) if check else cfg, stage, hydra)
        yield inputs, replace(job, flags=tuple(word for each in conf_dirs for word in ("--config-dir", each)))
    finally:
        HydraConfig.instance().cfg = before


def composed(
    stage: str,
    overrides: Sequence[str],
    *,
    folder: Path = Path("run"),
    conf_dirs: Sequence[str] = (),
    check: bool = True,
) -> tuple[Any, Job]:
    """The inputs of `hydra_job`, without its context."""
    with hydra_job(stage, overrides, folder=folder, conf_dirs=conf_dirs, check=check) as inputs:
        return inputs


def composed_config(stage: str, overrides: Sequence[str], *, conf_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """The composed config, resolved and redacted, unchecked; configs that differ in values only are composed once."""
    values = [word for word in overrides if _is_value(word, conf_dirs=conf_dirs)]
    options = tuple(word for word in overrides if word not in values)
    cfg = copy.deepcopy(_with_options(stage, options, tuple(conf_dirs)))
    parser, before = OverridesParser.create(), HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)
        with flag_override(cfg, ["struct", "readonly"], [False, False]):
            del cfg["hydra"]
        for override in parser.parse_overrides(values):
            apply_override(cfg, override)
        return redacted(cfg)
    finally:
        HydraConfig.instance().cfg = before


@cache
def _with_options(stage: str, options: tuple[str, ...], conf_dirs: tuple[str, ...]) -> DictConfig:
    with nested(), initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name=stage):
        return compose(stage, [*_search_path(conf_dirs), *options], return_hydra_config=True)


def _is_value(word: str, *, conf_dirs: Sequence[str]) -> bool:
    """Whether an override sets an existing key and chooses no option."""
    key, equals, _ = word.partition("=")
    if not equals or key[0] in "+~" or "@" in key or "/" in key:
        return False
    return "." in key or not any((Path(folder) / key).is_dir() for folder in (CONF_DIR, *conf_dirs))


def _search_path(conf_dirs: Sequence[str]) -> list[str]:
    return [f"hydra.searchpath=[{','.join(f'file://{each}' for each in conf_dirs)}]"] if conf_dirs else []
