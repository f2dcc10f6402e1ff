"""Composed configs as plain values, for what reads conf/ without running a stage."""

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
    """written: as the yaml says it, `${seed}` among it. resolved: what that means. "???" is a value still to be given."""

    written: dict[str, Any]
    resolved: dict[str, Any]


@contextmanager
def nested() -> Iterator[None]:
    """Around a composition that may happen inside of a job, or of another composition: Hydra knows one at a time."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


@contextmanager
def composing() -> Iterator[None]:
    """Around calls of `composed_tree`, which share what is read once."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


def composed_tree(stage: str, overrides: Sequence[str]) -> Tree:
    """What `cft <stage> <overrides>` runs with, unchecked. Inside of `composing`."""
    cfg = compose(stage, overrides=list(overrides))
    return Tree(*(_plain(OmegaConf.to_container(cfg, resolve=resolve)) for resolve in (False, True)))


def _plain(tree: Any) -> dict[str, Any]:
    return {str(key): value for key, value in tree.items()}
