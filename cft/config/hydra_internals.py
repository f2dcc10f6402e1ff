"""All of Hydra that is private and that the package uses: checking a command line and composing one, without running it.

Nothing else in the package names them; tests/config/test_hydra_internals.py tries each one.
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
    """Of Hydra's own flags; overrides are `overrides`."""
    return get_args_parser()


def apply_override(config: DictConfig, override: Override) -> None:
    """Change `config` as one override of the command line says. Raises HydraException and omegaconf's exceptions."""
    ConfigLoaderImpl._apply_overrides_to_config([override], config)


def config_loader(sources: Iterable[tuple[str, str]]) -> ConfigLoader:
    """sources: (provider, path), the first one searched first. `hydra.compose` knows one folder, and needs a global state."""
    Plugins.instance()  # knows what file:// is; a further process of a distributed run has no Hydra job that started it
    path = ConfigSearchPathImpl()
    for provider, source in sources:
        path.append(provider=provider, path=source)
    return ConfigLoaderImpl(path)
