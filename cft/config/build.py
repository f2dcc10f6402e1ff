"""Configuration of the stages: check it, build objects from it, fingerprint it, keep secrets out of it.

    check_command_line("train")     before Hydra: all errors at once, on stderr, with exit status 2
    checked(cfg, "train")           in each job: the same check of the composed config
    build(cfg.mask)                 the object that a part's `_target_` names, once its name has passed the allow-list

The keys are in `cft/config/schema.py` and conf/, the rules between them in `cft/config/rules.py`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from cft.config.allow_list import bad_prefix, import_target
from cft.config.check import (
    RESERVED,
    ErrorDetail,
    check_node,
    find_errors,
    find_missing,
    find_unused,
)
from cft.config.part import Part
from cft.config.redaction import redacted as _redacted
from cft.console import console
from cft.errors import UserError
from cft.ranges import show
from cft.shipped import CONF_DIR

_HASH_LENGTH = 12


class ConfigError(UserError, ValueError):
    """The errors of a config, one per line."""

    def __init__(self, *errors: ErrorDetail | str) -> None:
        self.errors = errors
        super().__init__("\n".join(map(str, errors)))


def check_command_line(stage: str, argv: Sequence[str] | None = None, conf_dir: Path = CONF_DIR) -> None:
    """Report every error of a command line (this process's by default) on stderr and exit with status 2.

    Does nothing if the command line has no error or only asks for --help, --cfg and the like.
    """
    errors = errors_of(stage, sys.argv[1:] if argv is None else argv, conf_dir=conf_dir)
    if errors:
        count = "1 configuration error" if len(errors) == 1 else f"{len(errors)} configuration errors"
        report = "\n".join(f"  {m}" for m in errors)
        print(f"cft {stage}: {count}, nothing was started\n{report}", file=sys.stderr)
        raise SystemExit(2)


def errors_of(stage: str, argv: Sequence[str], *, conf_dir: Path = CONF_DIR) -> list[ErrorDetail]:
    """Every error of a command line; empty if it only asks for --help and the like."""
    from cft.config.command_line import (  # a job in a launcher never needs it
        command_line_errors,
        read_command_line,
    )

    line = read_command_line(argv, stage=stage, conf_dir=conf_dir)
    return [] if line.shows_only else command_line_errors(line, stage=stage)


def checked(cfg: DictConfig, stage: str) -> DictConfig:
    """The composed config of one job. Raises ConfigError with all of its errors.

    Prints a note for each choice that has no effect.
    """
    errors = find_errors(cfg, stage=stage, extra=own_prefixes())
    if not errors:
        errors = find_missing(cfg)
    if errors:
        raise ConfigError(*errors)
    for note in find_unused(cfg):
        console.print(f"Note: {note}", markup=False)
    return cfg


def build(node: Part | DictConfig | ListConfig | dict[str, Any], *runtime: Any) -> Any:
    """The object that a part describes; nested parts are built first. A part without `_target_` gives a dict of objects.

    runtime: arguments from the program, passed first and by position. `_partial_: true` gives a functools.partial.
    Raises ConfigError if a target is not allowed or an argument does not fit; nothing is imported before that.
    """
    plain: Any = (
        OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
    )
    prefixes = node.allowed if isinstance(node, Part) else own_prefixes()
    plain = node.node if isinstance(node, Part) else plain
    errors = check_node(plain, path="", extra=prefixes, incomplete=bool(runtime))
    if runtime and not (isinstance(plain, dict) and "_target_" in plain):
        errors.append(ErrorDetail("_target_", "only a node with a _target_ takes arguments"))
    if errors:
        raise ConfigError(*errors)
    return _build(plain, runtime, prefixes)


@contextmanager
def trying(key: str, node: Mapping[Any, Any]) -> Iterator[None]:
    """Wraps the construction of a library's object: arguments that it refuses are raised as ConfigError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        given = ", ".join(f"{name}={show(value)}" for name, value in node.items() if name not in RESERVED)
        text = str(error).strip().splitlines()
        said = text[0] if text else type(error).__name__
        raise ConfigError(ErrorDetail(key, f"{node.get('_target_')} refuses its settings ({given}): {said}")) from error


def config_hash(cfg: DictConfig) -> str:
    """Twelve hexadecimal digits of the resolved config, independent of the order of its keys."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]


def redacted(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config as a plain dict with every secret replaced: what may be logged and saved."""
    tree = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    result = _redacted(tree)
    assert isinstance(result, dict)
    return result


def _build(node: object, runtime: tuple[Any, ...], prefixes: tuple[str, ...]) -> Any:
    if isinstance(node, list):
        return [_build(inner, (), prefixes) for inner in node]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {name: _build(inner, (), prefixes) for name, inner in node.items()}
    try:
        target = import_target(node["_target_"], extra=prefixes)
    except PermissionError as error:
        raise ConfigError(ErrorDetail("_target_", str(error))) from error
    args = [_build(inner, (), prefixes) for inner in node.get("_args_", [])]
    named = {name: _build(inner, (), prefixes) for name, inner in node.items() if name not in RESERVED}
    if node.get("_partial_", False):
        return partial(target, *runtime, *args, **named)
    return target(*runtime, *args, **named)


def own_prefixes() -> tuple[str, ...]:
    """The user's target prefixes, from this job's command line as Hydra recorded it: a yaml cannot give them."""
    if not HydraConfig.initialized():
        return ()
    parser = OverridesParser.create()
    found = []
    for line in HydraConfig.get().overrides.task:
        override = parser.parse_overrides([line])[0]
        if override.key_or_group == "allow_targets":
            value = override.value()
            found += [p for p in (value if isinstance(value, list) else [value]) if bad_prefix(p) is None]
    return tuple(map(str, found))
