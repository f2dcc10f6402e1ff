"""What a config may set under `hydra`, where Hydra builds objects without consulting the allow-list."""

from __future__ import annotations

import re
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from cft.config.check import ErrorDetail

_LOGGING_CLASS = re.compile(r"(logging|logging\.handlers|colorlog)\.\w+(Handler|Formatter)")
_HYDRA_TARGETS = ("hydra.", "hydra_plugins.", "cft.cli.multirun.")


def hydra_errors(config: DictConfig) -> Iterator[ErrorDetail]:
    """Hydra builds its launcher, sweeper and callbacks itself: targets there must be Hydra's own or a plugin's."""
    tree = OmegaConf.to_container(config.hydra, resolve=False)
    for path, target in _values_of("_target_", tree, "hydra"):
        if not (isinstance(target, str) and target.startswith(_HYDRA_TARGETS)):
            yield ErrorDetail(
                path, f"'{target}' is refused: under hydra, targets must be in {' or '.join(_HYDRA_TARGETS)}"
            )
    for key in ("job_logging", "hydra_logging"):  # logging.config calls whatever these name
        logging = OmegaConf.to_container(config.hydra[key], resolve=False) if config.hydra[key] is not None else {}
        for path, name in [*_values_of("()", logging, f"hydra.{key}"), *_values_of("class", logging, f"hydra.{key}")]:
            if not _LOGGING_CLASS.fullmatch(str(name)):
                yield ErrorDetail(path, f"'{name}' is refused: expected a handler or formatter of logging or colorlog")
    # Hydra adds the command line to this list, so that a yaml could pose as the command line.
    if any("allow_targets" in str(line) for line in config.hydra.overrides.task):
        yield ErrorDetail("hydra.overrides.task", "is Hydra's record of the command line and cannot be set in a yaml")


def _values_of(key: str, tree: object, path: str) -> Iterator[tuple[str, object]]:
    """(path, value) of a key wherever it occurs in a tree."""
    if isinstance(tree, dict):
        if key in tree:
            yield f"{path}.{key}", tree[key]
        for name, inner in tree.items():
            yield from _values_of(key, inner, f"{path}.{name}")
    elif isinstance(tree, list):
        for i, inner in enumerate(tree):
            yield from _values_of(key, inner, f"{path}[{i}]")
