"""Every private name of Hydra that the package uses, to check and compose a command line without running it.

No other file of the package uses them; tests/config/test_hydra_internals.py tries each one.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from omegaconf import DictConfig


def argument_parser() -> ArgumentParser:
    """The parser of Hydra's own flags; overrides end up in `overrides`."""
    return get_args_parser()


def apply_override(config: DictConfig, override: Override) -> None:
    """Apply one command-line override to `config`. Raises HydraException and omegaconf's exceptions."""
    ConfigLoaderImpl._apply_overrides_to_config([override], config)


def config_loader(sources: Iterable[tuple[str, str]]) -> ConfigLoader:
    """sources: (provider, path) in search order. `hydra.compose` supports one folder and needs a global state."""
    Plugins.instance()  # registers file://; a further process of a distributed run has no Hydra job that started it
    path = ConfigSearchPathImpl()
    for provider, source in sources:
        path.append(provider=provider, path=source)
    return ConfigLoaderImpl(path)
