"""Hydra composes equal configurations once: a command composes five times, and hundreds of commands run in one process here."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig

from cft.config.stages import STAGES

_compose = ConfigLoaderImpl._load_configuration_impl
_parse = yaml.load
_list = ConfigLoaderImpl.compute_defaults_list
_configs: dict[Hashable, DictConfig] = {}
_lists: dict[Hashable, DefaultsList] = {}
_texts: dict[str, bytes] = {}


def install() -> None:
    """For the rest of this process."""
    ConfigLoaderImpl._load_configuration_impl = _composed  # type: ignore[method-assign,assignment]
    ConfigLoaderImpl.compute_defaults_list = _listed  # type: ignore[method-assign]
    yaml.load = _parsed


def _composed(
    loader: ConfigLoaderImpl, config_name: str | None, overrides: list[str], run_mode: RunMode, **options: bool
) -> DictConfig:
    if config_name not in STAGES or any("searchpath" in text for text in overrides):
        return _compose(loader, config_name, overrides, run_mode, **options)
    key = _key(loader, config_name, overrides, run_mode, **options)
    if key not in _configs:
        _configs[key] = _compose(loader, config_name, overrides, run_mode, **options)
    return copy.deepcopy(_configs[key])


def _listed(loader: ConfigLoaderImpl, config_name: str | None, overrides: list[str], run_mode: RunMode) -> DefaultsList:
    if config_name not in STAGES or any("searchpath" in text for text in overrides):
        return _list(loader, config_name, overrides, run_mode)
    key = _key(loader, config_name, overrides, run_mode)
    if key not in _lists:
        _lists[key] = _list(loader, config_name, overrides, run_mode)
    return _lists[key]


def _key(
    loader: ConfigLoaderImpl, config_name: str, overrides: list[str], run_mode: RunMode, **options: bool
) -> Hashable:
    """All that a composition reads: arguments, yaml files, schemas, and what it writes under `hydra`."""
    schemas = ConfigStore.instance().repo
    return (
        config_name,
        tuple(overrides),
        run_mode,
        tuple(sorted(options.items())),
        tuple((source.provider, source.path, _files(source.path)) for source in loader.config_search_path.get_path()),
        tuple(bool(schemas[f"{stage}_schema.yaml"].node) for stage in STAGES),  # strict ones or none
        os.getcwd(),
        JobRuntime.instance().conf.get("name"),
    )


def _files(source: str | None) -> Hashable:
    """Names, times and sizes of the yaml files of a source."""
    if not source or not source.startswith("file://"):
        return None
    stats = ((str(file), file.stat()) for file in Path(source.removeprefix("file://")).rglob("*.yaml"))
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))


def _parsed(stream: Any, Loader: Any) -> Any:
    """yaml.load of OmegaConf, which is written in Python and slow."""
    if Loader.__name__ != "OmegaConfLoader" or not hasattr(stream, "seek"):
        return _parse(stream, Loader)
    text = stream.read()
    if text not in _texts:
        stream.seek(0)  # its messages name the file
        _texts[text] = pickle.dumps(_parse(stream, Loader))
    return pickle.loads(_texts[text])
