"""Applies the value of one override to the composed config as Hydra would, and suggests what to write if that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cft.config.check import ErrorDetail, is_runtime, suggestion
from cft.config.hydra_internals import apply_override
from cft.config.overrides import reason, shown
from cft.config.redaction import is_secret_key
from cft.config.source import TargetError, resolve, signature


def set_value(override: Override, config: DictConfig, *, stage: str) -> ErrorDetail | None:
    """Apply one override as Hydra does; returns the error if that fails."""
    key, value = override.key_or_group, override.value()
    if is_secret_key(key.rpartition(".")[2]) and isinstance(value, str) and value:
        variable = "WANDB_API_KEY" if "wandb" in key else "HF_TOKEN" if "hf" in key or "model" in key else ""
        text = f"a secret must not be on the command line, which is saved: use the environment variable {variable}"
        return ErrorDetail(key, text.rstrip())
    try:
        apply_override(config, override)
    except HydraException as error:
        changes = not (override.is_delete() or override.is_add() or override.package is not None)
        if changes and not has_path(config, key.split(".")):
            return ErrorDetail(key, _unknown_key(key, config, stage=stage))
        return ErrorDetail(shown(override), reason(error))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        return ErrorDetail(shown(override), reason(error))
    return None


def _unknown_key(key: str, config: DictConfig, *, stage: str) -> str:
    """Suggestion for a key that is not in the config."""
    parts = key.split(".")
    depth = next(n for n in range(len(parts) - 1, -1, -1) if has_path(config, parts[:n]))
    parent, leaf = ".".join(parts[:depth]), parts[depth]
    node = OmegaConf.select(config, parent) if parent else config
    names = [str(n) for n in node if n != "hydra"] if isinstance(node, DictConfig) else []
    where = parent or f"cft {stage}"
    if isinstance(node, DictConfig) and isinstance(target := node.get("_target_"), str):
        where = target
        try:
            found = signature(resolve(target))
        except TargetError:
            found = None
        parameters = [p.name for p in found.parameters] if found else []
        runtime = [p.name for p in found.parameters if is_runtime(p, found, node)] if found else []
        if leaf in runtime:
            return f"{target} gets it from the program, not from the config"
        if leaf in parameters and depth == len(parts) - 1:
            return f"is a parameter of {target} that no yaml sets yet: add it with +{key}=..."
        names += parameters
    near = suggestion(leaf, [n for n in dict.fromkeys(names) if not n.startswith("_")])
    if near and parent:
        near = near.replace("did you mean ", f"did you mean {parent}.")
    if not near:
        paths = list(_paths(config))
        same = [p for p in paths if p.rpartition(".")[2] == parts[-1]]
        near = f", did you mean {' or '.join(same)}?" if same else suggestion(key, paths)
    return f"{where} has no '{leaf}'{near}"


def _paths(config: DictConfig) -> Iterator[str]:
    """Dotted paths of all leaves except Hydra's own."""

    def walk(tree: object, path: str) -> Iterator[str]:
        if isinstance(tree, dict):
            for name, inner in tree.items():
                if not str(name).startswith("_") and (path or name != "hydra"):
                    yield from walk(inner, f"{path}.{name}" if path else str(name))
        if path:
            yield path

    return walk(OmegaConf.to_container(config, resolve=False), "")


def has_path(config: object, parts: Sequence[str]) -> bool:
    tree = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    for part in parts:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True
