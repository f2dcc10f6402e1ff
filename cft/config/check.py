"""Every error in a composed config, found without importing what its `_target_`s name.

Keys are compared with `cft/config/schema.py`, every node with its constructor's signature, then the rules of
`cft/config/rules.py` apply. Constructors follow one convention: parameters set in yaml are keyword-only; parameters that the
program passes at run time are positional and have no default, so a `_partial_` node may omit those, and only those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, OmegaConfBaseException

from cft.config.allow_list import LIBRARIES, refusal
from cft.config.annotations import type_of
from cft.config.combinations import conflicts
from cft.config.library_rules import library_errors
from cft.config.needs import lacking_evidence, missing_scores, unmet, unused
from cft.config.parameter_groups import group_errors
from cft.config.preflight import missing_inputs
from cft.config.redaction import holds_secret, is_secret_key
from cft.config.rules import broken_rules
from cft.config.schema import GROUPS, ParameterGroupConfig, keys_of
from cft.config.source import Parameter, Signature, resolve, signature
from cft.config.stages import STAGES
from cft.ranges import mismatch

RESERVED = ("_target_", "_partial_", "_args_")
_DEEPEST = 30


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """key: the dotted path it is about, or the override as typed, "" if the text names it. text: what is wrong and expected."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def named(target: str) -> Callable[..., Any]:
    """What module:function names."""
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)


class Unknown:
    """A value that is only known when a job runs, such as ${hydra:job.num}; it is not checked."""


def find_errors(config: DictConfig, *, stage: str, extra: Sequence[str] = ()) -> list[ErrorDetail]:
    """extra: the user's own target prefixes, from the command line."""
    errors: list[ErrorDetail] = []
    tree = _resolved(config, "", errors)
    assert isinstance(tree, dict)
    _check_record(tree, STAGES[stage].schema, "", extra, errors)
    _check_secrets(tree, "", errors)
    known = {m.key for m in errors}
    errors += [
        ErrorDetail(key, text) for key, text in broken_rules(tree, rules=STAGES[stage].rules) if key not in known
    ]
    errors += [ErrorDetail(key, text) for key, text in library_errors(tree, stage=stage) if key not in known]
    needs = (*unmet(tree), *lacking_evidence(tree), *conflicts(tree))
    errors += [ErrorDetail(key, text) for key, text in needs if key not in known]
    if STAGES[stage].errors and not errors:  # the values that it reads have the right types
        errors += named(STAGES[stage].errors)({**tree, "allow_targets": list(extra)})
    return list(dict.fromkeys(errors))


def find_missing(config: DictConfig) -> list[ErrorDetail]:
    """Inputs that a valid configuration refers to and this machine or annotation lacks; reads the file system."""
    tree = _resolved(config, "", [])
    assert isinstance(tree, dict)
    return [ErrorDetail(key, text) for key, text in (*missing_inputs(tree), *missing_scores(tree))]


def find_unused(config: DictConfig) -> list[ErrorDetail]:
    """Choices in a valid configuration that have no effect: worth a note, no errors."""
    tree = _resolved(config, "", [])
    assert isinstance(tree, dict)
    return [ErrorDetail(key, text) for key, text in unused(tree)]


def check_node(node: object, *, path: str, extra: Sequence[str] = (), incomplete: bool = False) -> list[ErrorDetail]:
    """Errors in one plain node and in the nodes inside it. path: its name in messages, "" at the root.

    incomplete: whether the program adds positional arguments to it, as to a `_partial_` node.
    """
    errors: list[ErrorDetail] = []
    _check_tree({**node, "_partial_": True} if incomplete and isinstance(node, dict) else node, path, extra, errors)
    return errors


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """ ", did you mean ...?" for the nearest candidate, else "" (a prefix or a part counts as near)."""
    options = list(dict.fromkeys(candidates))
    near = get_close_matches(name, options, n=1, cutoff=0.6)
    if not near and len(name) > 2:
        near = [o for o in options if o.startswith(name) or name.startswith(o) or name in o.split("_")][:1]
    return f", did you mean {near[0]}?" if near else ""


def _check_record(tree: dict, schema: type, path: str, extra: Sequence[str], errors: list[ErrorDetail]) -> None:
    keys = keys_of(schema)
    for name in tree:
        if name not in keys:
            text = f"no such key{suggestion(str(name), keys) or ' here, known are ' + ', '.join(keys)}"
            errors.append(ErrorDetail(_join(path, name), text))
    for name, key in keys.items():
        if name not in tree and not key.required and key.record is None:
            continue
        here = _join(path, name)
        value = tree.get(name, "???" if key.required or key.record else {})
        if key.record is not None:
            if isinstance(value, dict):
                _check_record(value, key.record, here, extra, errors)
            elif value == "???":
                _check_record({}, key.record, here, extra, errors)
            else:
                errors.append(ErrorDetail(here, f"expected the keys {', '.join(keys_of(key.record))}, found {value!r}"))
        elif value == "???":
            kind = f"choose one with {name}=..." if key.node else f"give it with {here}=..."
            errors.append(ErrorDetail(here, f"has no value; {kind}"))
        elif key.many:
            _check_named_nodes(value, here, extra, errors)
        elif key.node:
            _check_object(value, here, extra, errors)
        else:
            _check_value(value, key.hint, here, errors)


def _check_named_nodes(value: object, path: str, extra: Sequence[str], errors: list[ErrorDetail]) -> None:
    if not isinstance(value, dict):
        errors.append(
            ErrorDetail(path, f"expected objects by name, found {value!r}; choose a group option with {path}=...")
        )
        return
    complete = [name for name, node in value.items() if isinstance(node, dict) and "_target_" in node]
    for name, node in value.items():
        here = _join(path, name)
        if node is None:
            errors.append(ErrorDetail(here, f"expected an object with a _target_, found null; ~{here} leaves it out"))
        else:
            _check_object(node, here, extra, errors, siblings=complete)


def _check_object(
    value: object, path: str, extra: Sequence[str], errors: list[ErrorDetail], *, siblings: Sequence[str] = ()
) -> None:
    if isinstance(value, dict) and "_target_" in value:
        _check_tree(value, path, extra, errors)
    elif isinstance(value, Unknown):
        return
    else:
        found = f"keys {', '.join(map(str, value))}" if isinstance(value, dict) and value else repr(value)
        near = suggestion(path.rpartition(".")[2], siblings)
        errors.append(ErrorDetail(path, f"expected an object with a _target_, found {found}{near}"))


def _check_tree(value: object, path: str, extra: Sequence[str], errors: list[ErrorDetail]) -> None:
    if isinstance(value, dict):
        if "_target_" in value:
            _check_call(value, path, extra, errors)
        for name, inner in value.items():
            if name != "_target_":
                _check_tree(inner, _join(path, name), extra, errors)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_tree(inner, f"{path}[{i}]", extra, errors)
    elif value == "???":
        errors.append(ErrorDetail(path, f"has no value; give it with {path}=..."))


def _check_call(node: dict, path: str, extra: Sequence[str], errors: list[ErrorDetail]) -> None:
    """A node with a `_target_` against the target's signature."""
    target, partial, args = node["_target_"], node.get("_partial_", False), node.get("_args_", [])
    here = _join(path, "_target_")
    reason = refusal(target, extra=extra)
    if reason is not None:
        errors.append(ErrorDetail(here, reason))
        return
    if not isinstance(partial, bool):
        errors.append(ErrorDetail(_join(path, "_partial_"), f"expected true or false, found {partial!r}"))
    if not isinstance(args, list):
        errors.append(ErrorDetail(_join(path, "_args_"), f"expected a list, found {args!r}"))
        return
    found = signature(resolve(target))
    if found is None:
        errors.append(ErrorDetail(here, f"the parameters of '{target}' cannot be read; give it an __init__ of its own"))
    elif found.takes_any_keyword:
        errors.append(ErrorDetail(here, f"'{target}' takes **kwargs, so no key can be checked; wrap it in a function"))
    else:
        _check_arguments(node, found, args, path, errors)


def _check_arguments(node: dict, found: Signature, args: list, path: str, errors: list[ErrorDetail]) -> None:
    target = node["_target_"]
    parameters = {p.name: p for p in found.parameters}
    positional = [p for p in found.parameters if not p.keyword_only]
    for name, value in node.items():
        if name in RESERVED:
            continue
        if _join(path, name) == f"optimizer.{GROUPS}":
            _check_groups(value, _join(path, name), errors)
        elif name not in parameters:
            known = [p.name for p in found.parameters if not is_runtime(p, found, node)]
            listing = f"; it takes {', '.join(known)}" if len(known) <= 12 else ""
            text = f"{target} has no parameter '{name}'{suggestion(str(name), known) or listing or ''}"
            errors.append(ErrorDetail(_join(path, name), text if known else f"{target} takes no parameters"))
        elif is_runtime(parameters[name], found, node):
            errors.append(ErrorDetail(_join(path, name), f"{target} gets it from the program, not from the config"))
        else:
            _check_value(value, type_of(parameters[name].annotation), _join(path, name), errors)
    if len(args) > len(positional) and not found.takes_any_positional:
        text = f"{target} takes at most {len(positional)} positional arguments, found {len(args)}"
        errors.append(ErrorDetail(_join(path, "_args_"), text))
    by_position = {p.name for p in positional[: len(args)]}
    for name in by_position & node.keys():
        errors.append(ErrorDetail(_join(path, name), "given twice, by name and in _args_"))
    for p in found.parameters:
        missing = p.required and p.name not in node and p.name not in by_position
        if missing and (p.keyword_only or node.get("_partial_", False) is not True):
            errors.append(
                ErrorDetail(_join(path, p.name), f"{target} needs it; give it with +{_join(path, p.name)}=...")
            )


def _check_groups(value: object, path: str, errors: list[ErrorDetail]) -> None:
    """What the program takes out of an optimizer's node before it builds it."""
    for name, group in value.items() if isinstance(value, dict) else ():
        if isinstance(group, dict):
            _check_record(group, ParameterGroupConfig, _join(path, name), (), errors)
    known = {error.key for error in errors}
    errors += [ErrorDetail(key, text) for key, text in group_errors(value, path) if key not in known]


def is_runtime(parameter: Parameter, found: Signature, node: Mapping) -> bool:
    """Whether the program passes it. In a library's signature only the first parameter is (an optimizer's params)."""
    if node.get("_partial_", False) is not True or parameter.keyword_only or not parameter.required:
        return False
    return parameter is found.parameters[0] or not str(node["_target_"]).startswith(LIBRARIES)


def _check_value(value: object, hint: Any, path: str, errors: list[ErrorDetail]) -> None:
    if value == "???" and not any(m.key == path for m in errors):
        errors.append(ErrorDetail(path, f"has no value; give it with {path}=..."))
    if value == "???" or _holds_unknown(value):
        return
    text = mismatch(value, hint)
    if text is None:
        return
    entries = next((get_args(part)[1] for part in (hint, *get_args(hint)) if get_origin(part) is dict), Any)
    inner = [
        ErrorDetail(_join(path, name), reason)
        for name, entry in (value.items() if isinstance(value, dict) else ())
        if (reason := mismatch(entry, entries)) is not None
    ]
    errors += inner or [ErrorDetail(path, text)]


def _holds_unknown(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_unknown, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Unknown)


def _check_secrets(value: object, path: str, errors: list[ErrorDetail]) -> None:
    """Hydra saves the whole config and the command line with every run, so neither may contain a secret."""
    if isinstance(value, dict):
        for name, inner in value.items():
            here = _join(path, name)
            if is_secret_key(str(name)) and isinstance(inner, str) and inner not in ("", "???"):
                errors[:] = [m for m in errors if m.key != here]
                errors.append(
                    ErrorDetail(here, f"a secret must not be in the config, which is saved: {_variable(here)}")
                )
            else:
                _check_secrets(inner, here, errors)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_secrets(inner, f"{path}[{i}]", errors)
    elif isinstance(value, str) and holds_secret(value):
        errors[:] = [m for m in errors if m.key != path]
        errors.append(ErrorDetail(path, "holds a password or a secret of the environment, and the config is saved"))


def _variable(path: str) -> str:
    service = {"wandb": "WANDB_API_KEY", "hf": "HF_TOKEN", "huggingface": "HF_TOKEN", "model": "HF_TOKEN"}
    name = next((v for k, v in service.items() if k in path.split(".")), "")
    return f"use the environment variable {name}" if name else "use an environment variable"


def _resolved(node: DictConfig | ListConfig, path: str, errors: list[ErrorDetail], *, depth: int = 0) -> object:
    """Plain dicts and lists with every interpolation resolved. A missing value stays "???"."""
    raw = OmegaConf.to_container(node, resolve=False)
    if isinstance(raw, list):
        return [_resolved_value(node, i, value, f"{path}[{i}]", errors, depth=depth + 1) for i, value in enumerate(raw)]
    if isinstance(raw, dict):
        return {
            name: _resolved_value(node, name, value, _join(path, name), errors, depth=depth + 1)
            for name, value in raw.items()
        }
    return raw


def _resolved_value(
    parent: DictConfig | ListConfig, name: object, raw: object, path: str, errors: list[ErrorDetail], *, depth: int
) -> object:
    if not isinstance(raw, dict | list) and not (isinstance(raw, str) and "${" in raw):
        return raw
    if depth > _DEEPEST:
        errors.append(ErrorDetail(path, "refers to itself, or is nested too deeply"))
        return Unknown()
    try:
        value = parent[name]  # type: ignore[index]  # str for a mapping, int for a list
    except InterpolationToMissingValueError:
        return Unknown()  # the key it refers to has its own message
    except InterpolationResolutionError as error:
        if "HydraConfig was not set" not in str(error):  # known in the job, not yet on the command line
            errors.append(ErrorDetail(path, f"{raw} cannot be resolved: {str(error).splitlines()[0]}"))
        return Unknown()
    except (OmegaConfBaseException, RecursionError) as error:
        errors.append(ErrorDetail(path, f"{raw} cannot be read: {str(error).splitlines()[0]}"))
        return Unknown()
    return _resolved(value, path, errors, depth=depth) if isinstance(value, DictConfig | ListConfig) else value


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
