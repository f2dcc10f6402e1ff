"""Composed configs as plain values, for code that reads conf/ without running a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import cft.config.stages  # noqa: F401  (registers the schemas that conf/*.yaml name)
from cft.shipped import CONF_DIR


@dataclass(frozen=True, slots=True)
class Tree:
    """written: as in yaml, with interpolations such as `${seed}`. resolved: without. "???" marks a missing value."""

    written: dict[str, Any]
    resolved: dict[str, Any]


@contextmanager
def nested() -> Iterator[None]:
    """Wraps a composition that may happen inside a job or another composition; Hydra supports one at a time."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


@contextmanager
def composing() -> Iterator[None]:
    """Wraps calls of `composed_tree`, so that files are read once for all of them."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


def composed_tree(stage: str, overrides: Sequence[str]) -> Tree:
    """The config that `cft <stage> <overrides>` would run with, unchecked. Call it inside `composing`."""
    cfg = compose(stage, overrides=list(overrides))
    return Tree(*(_plain(OmegaConf.to_container(cfg, resolve=resolve)) for resolve in (False, True)))


def _plain(tree: Any) -> dict[str, Any]:
    return {str(key): value for key, value in tree.items()}
