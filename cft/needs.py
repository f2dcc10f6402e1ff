"""What a training configuration's methods need and its other parts give, read from the classes' source.

Masks, weightings, losses and aggregations say `needs`, references say `gives`, and classes whose arguments name stored
scores list these arguments in `score_arguments`. They are class attributes, so that a missing need is found before anything
is imported or loaded; what a class decides when it is built is checked again by `cft/columns.py` and `cft/scores.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from cft.columns import GROUP, NO_GROUPS, NO_REFERENCE, OWN_LOGPROB, REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB
from cft.targets import Definition, TargetError, lookup, lookup_dotted, read_module, resolve

_MAX_BASES = 40
_OF_OBJECTIVE = ("weighting", "loss")
_OF_DATA = ("mask", "groups")


def unmet(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, message) of every need that the configuration leaves open. tree: resolved, of the training stage."""
    needs = {need for part in _OF_OBJECTIVE for need in _needs(tree.get(part))}
    reference = _target(tree.get("reference"))
    given = strings(reference, "gives") if reference else None
    for need in (REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB):
        if need in needs and given is not None and need not in given:
            yield "reference", NO_REFERENCE[need]
            break  # who lacks the distribution lacks the log-probs for the same reason
    if GROUP in needs and _target(tree.get("groups")) == "cft.columns.NoGroups":
        yield "groups", NO_GROUPS
    model = tree.get("model")
    if reference == "cft.reference_model.AdapterOff" and isinstance(model, Mapping) and model.get("lora", ...) is None:
        yield "reference", "adapter_off is the model without its adapters, but it has none; expected model/lora=default"


def stored_scores(tree: Mapping[str, object]) -> set[str]:
    """Names of the stored scores that a training configuration reads."""
    named = {need for part in _OF_OBJECTIVE for need in _needs(tree.get(part))} - {GROUP, *NO_REFERENCE}
    named |= {need for part in _OF_DATA for need in _needs(tree.get(part))}
    reference = tree.get("reference")
    if _target(reference) == "cft.reference_model.Score" and isinstance(reference, Mapping):
        named.add(str(reference.get("name")))
    return named - {OWN_LOGPROB}


def missing_scores(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, message) of every stored score that is not there, with the command that makes it. Reads the file system."""
    names = stored_scores(tree)
    data, annotations_dir = tree.get("data"), tree.get("annotations_dir")
    if not names or _target(data) != "cft.data.AnnotatedDataModule" or not isinstance(data, Mapping):
        return
    from cft.scores import command_for, scores_folder
    from cft.store import StoreError, find_annotation

    annotation = str(data.get("annotation"))
    try:
        folder = scores_folder(
            find_annotation(annotation, annotations_dir=str(annotations_dir)), annotations_dir=str(annotations_dir)
        )
    except StoreError:
        return  # that the annotation is missing has its own message
    for name in sorted(names):
        if not (Path(folder) / name / "manifest.json").is_file():
            yield (
                "data.annotation",
                f"{annotation} has no stored score {name}, which this method needs; make it with: "
                f"{command_for(name, annotation)}",
            )


def _needs(node: object) -> Iterator[str]:
    """Of a node and of those inside it."""
    if isinstance(node, list):
        for inner in node:
            yield from _needs(inner)
    if not isinstance(node, Mapping):
        return
    if target := _target(node):
        yield from (need for need in strings(target, "needs") or () if need not in _live())
        for argument in strings(target, "score_arguments") or ():
            if isinstance(name := node.get(argument), str):
                yield name
    if target == _ELSEWHERE:  # its inner mask reads another annotation
        return
    for inner in node.values():
        yield from _needs(inner)


_ELSEWHERE = "cft.projected_mask.Projected"


def _target(node: object) -> str | None:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return target if isinstance(target, str) else None


@cache
def strings(target: str, attribute: str) -> frozenset[str] | None:
    """The texts in a class attribute, inherited ones included; None where the source does not tell."""
    try:
        definition: Definition | None = resolve(target)
    except TargetError:
        return None
    for _ in range(_MAX_BASES):
        if definition is None or definition.source is None or not isinstance(definition.node, ast.ClassDef):
            return None
        value = _assigned(definition.node, attribute)
        if value is not None:
            return frozenset(_texts(value, definition))
        bases = [b.value if isinstance(b, ast.Subscript) else b for b in definition.node.bases]
        definition = lookup_dotted(definition.source, bases[0]) if bases else None
    return None


@cache
def _live() -> frozenset[str]:
    """Names of what is computed from the logits at hand (`cft.token_scores.LIVE`)."""
    source = read_module("cft.token_scores")
    found = lookup(source, "LIVE") if source else None
    keys = found.node.keys if found and isinstance(found.node, ast.Dict) else []
    return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _assigned(node: ast.ClassDef, name: str) -> ast.expr | None:
    for member in node.body:
        match member:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return value
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                return value
    return None


def _texts(expr: ast.expr, definition: Definition) -> Iterator[str]:
    """Of a constant, a name of one, a tuple or set of them, or frozenset(...)."""
    match expr:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Tuple(elts=inner) | ast.Set(elts=inner) | ast.List(elts=inner) | ast.Call(args=inner):
            for item in inner:
                yield from _texts(item, definition)
        case ast.Name():
            found = lookup_dotted(definition.source, expr) if definition.source else None
            if found is not None and isinstance(found.node, ast.expr):
                yield from _texts(found.node, found)
