"""Caches Hydra's composition of equal configs: one command composes five times, and tests run hundreds in one process."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobRuntime
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig

from cft.config.stages import STAGES

_compose = ConfigLoaderImpl._load_configuration_impl
_parse = yaml.load
_expand = defaults_list._create_defaults_list
_configs: dict[Hashable, DictConfig] = {}
_expanded: dict[Hashable, tuple[Any, Overrides]] = {}
_texts: dict[str, bytes] = {}


def install() -> None:
    """Enable the cache for the rest of this process."""
    ConfigLoaderImpl._load_configuration_impl = _composed  # type: ignore[method-assign,assignment]
    defaults_list._create_defaults_list = _expanded_once
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


def _expanded_once(repo: IConfigRepository, config_name: str | None, overrides: Overrides, **options: bool) -> Any:
    """Cache the defaults list by the chosen options only, because it does not depend on values."""
    if config_name not in STAGES:
        return _expand(repo, config_name, overrides, **options)
    chosen = (overrides.override_choices, overrides.deletions)
    appended = [(default.group, default.package, default.value) for default in overrides.append_group_defaults]
    key = (config_name, repr(chosen), repr(appended), tuple(sorted(options.items())), _read_by(repo.get_sources()))
    if key not in _expanded:
        _expanded[key] = (_expand(repo, config_name, overrides, **options), overrides)
    found, then = _expanded[key]
    vars(overrides).update({name: value for name, value in vars(then).items() if name != "config_overrides"})
    return found


def _read_by(sources: Iterable[ConfigSource]) -> Hashable:
    """The current contents of the config sources."""
    schemas = ConfigStore.instance().repo
    return (
        tuple((source.provider, source.path, _files(source.full_path())) for source in sources),
        tuple(bool(schemas[f"{stage}_schema.yaml"].node) for stage in STAGES),  # strict ones or none
    )


def _key(
    loader: ConfigLoaderImpl, config_name: str, overrides: list[str], run_mode: RunMode, **options: bool
) -> Hashable:
    """Everything that a composition depends on: arguments, yaml files, schemas, and the values written under `hydra`."""
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
    """Names, modification times and sizes of a source's yaml files."""
    if not source or not source.startswith("file://"):
        return None
    stats = ((str(file), file.stat()) for file in Path(source.removeprefix("file://")).rglob("*.yaml"))
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats))


def _parsed(stream: Any, Loader: Any) -> Any:
    """Cached yaml.load of OmegaConf, which is pure Python and slow."""
    if Loader.__name__ != "OmegaConfLoader" or not hasattr(stream, "seek"):
        return _parse(stream, Loader)
    text = stream.read()
    if text not in _texts:
        stream.seek(0)  # its messages name the file
        _texts[text] = pickle.dumps(_parse(stream, Loader))
    return pickle.loads(_texts[text])
