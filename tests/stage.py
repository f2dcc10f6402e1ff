"""Stages run in this process from overrides, as the entry points run them but without a Hydra job around."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cft.config.build import checked

CONF = Path(__file__).resolve().parent.parent / "conf"


def composed(stage: str, *overrides: str) -> DictConfig:
    """The checked configuration that `python <stage>.py <overrides>` would run with."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose(stage, overrides=list(overrides)), stage)


def annotate(*overrides: str) -> Path:
    """The store's folder."""
    from cft.stages.annotate import annotate as run

    return run(composed("annotate", *overrides))
