"""Plain configs as yaml: quoted so that OmegaConf reads the same values back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def to_yaml(tree: Mapping[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Values as they are written there."""
    found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
