"""What the methods of a training configuration need and what its other parts provide, read from the classes' source.

Masks, weightings, losses and aggregations declare `needs`, references declare `gives`, and classes whose arguments name stored
scores list these arguments in `score_arguments`, or as in ARGUMENTS if only one kind makes sense. These are class attributes,
so a missing need is found before anything is imported or loaded; needs that depend on an instance are checked again by
`cft/data/columns.py` and `cft/scores/store.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from cft.config.annotations import keys_of_dict, texts_of
from cft.config.source import TargetError, resolve
from cft.quoting import setting
from cft.scores.column import GROUP, NO_GROUPS, NO_REFERENCE, OWN_LOGPROB, REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB

_OF_OBJECTIVE = ("weighting", "loss")
_OF_DATA = ("mask", "groups")
GIVEN_ROWS = "cft.data.rows.given_rows"
# Class attributes that name arguments which name stored scores -> the kind these must have, "" for any.
ARGUMENTS = {"score_arguments": "", "logprob_arguments": REFERENCE_LOGPROB, "contrast_arguments": "contrast"}
# Values of the masks' attribute `evidence`, in words.
EVIDENCE = {
    "outcomes": "the outcomes of each token's alternatives",
    "samples": "the outcomes of samples after each token",
    "annotation": "the rows",
    OWN_LOGPROB: "the log-probs",
}


def unmet(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, message) of every unmet need. tree: the resolved config of the training stage."""
    needs = {need for part in _OF_OBJECTIVE for need, _ in _needs(tree.get(part))}
    reference = target_of(tree.get("reference"))
    given = strings(reference, "gives") if reference else None
    for need in (REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB):
        if need in needs and given is not None and need not in given:
            yield "reference", NO_REFERENCE[need]
            break  # the log-probs are missing for the same reason as the distribution
    if GROUP in needs and target_of(tree.get("groups")) == "cft.data.columns.NoGroups":
        yield "groups", NO_GROUPS
    model = tree.get("model")
    if (
        reference == "cft.references.models.AdapterOff"
        and isinstance(model, Mapping)
        and model.get("lora", ...) is None
    ):
        yield "reference", "adapter_off is the model without its adapters, but it has none; expected model/lora=default"


def unused(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, note) of a reference or grouping that is chosen but not used by any other part."""
    needs = {need for part in _OF_OBJECTIVE for need, _ in _needs(tree.get(part))}
    reference = target_of(tree.get("reference"))
    if reference and strings(reference, "gives") and not needs & set(NO_REFERENCE):
        yield (
            "reference",
            "is chosen, but neither the weighting nor the loss compares with a reference: it has no effect",
        )
    if GROUP not in needs and target_of(tree.get("groups")) not in (None, "cft.data.columns.NoGroups"):
        yield "groups", "are chosen, but the loss does not tell groups apart (loss=sft_go and loss=shad do): no effect"


def lacking_evidence(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, message) of every part that needs an annotation's evidence although data=rows is trained on."""
    data = tree.get("data")
    if target_of(data) != GIVEN_ROWS or not isinstance(data, Mapping):
        return
    path = shlex.quote(setting("data.path", str(data.get("path"))))
    make = f"cft annotate responses=given data=rows {path} annotation=NAME"
    then = f"these rows hold none; make it with: {make} (and model=... as here), and train with: cft train data.annotation=NAME"
    for part in _OF_DATA:
        for name, reads in _evidence_of(tree.get(part)):
            if reads == "entropy":
                command = f"cft score data=rows {path} score=entropy (and model=..., prompt=... as here)"
                pick = "choose the same tokens with mask=attention mask.score=entropy mask.fraction=..."
                yield (
                    part,
                    f"{name} reads entropies, of which these rows hold none; make them with: {command}, and {pick}",
                )
                continue
            yield part, f"{name} reads {EVIDENCE.get(reads, reads)} of an annotation, and {then}"
    if target_of(tree.get("reference")) == "cft.references.models.Annotation":
        yield "reference", f"annotation is the log-probs of the annotating model, and {then}. Or set reference=initial"
    loss = tree.get("loss")
    regularizers = loss.get("regularizers") if isinstance(loss, Mapping) else None
    for name, node in regularizers.items() if isinstance(regularizers, Mapping) else ():
        if isinstance(node, Mapping) and node.get("where") in ("critical", "other"):
            key = f"loss.regularizers.{name}.where"
            yield (
                key,
                f"{node['where']} needs to know which tokens are critical, and {then}. Or take response or eligible",
            )


def _evidence_of(node: object) -> Iterator[tuple[str, str]]:
    """(class, evidence that it reads) of a node and of the nodes inside it."""
    if not isinstance(node, Mapping):
        return
    target = target_of(node)
    if target:
        name = target.rpartition(".")[2]
        yield from ((name, reads) for reads in sorted(strings(target, "evidence") or ()))
        for argument in sorted(strings(target, "logprob_arguments") or ()):
            if node.get(argument) == OWN_LOGPROB:
                yield name, OWN_LOGPROB
    for inner in node.values():
        yield from _evidence_of(inner)


def stored_scores(tree: Mapping[str, object]) -> set[str]:
    """Names of the stored scores that a training configuration reads from its annotation."""
    return {name for name, _ in _wanted(tree)}


def _wanted(tree: Mapping[str, object]) -> set[tuple[str, str]]:
    """(name, kind or "" for any) of the stored scores that a training configuration reads from its annotation."""
    wanted = {
        need for part in _OF_OBJECTIVE for need in _needs(tree.get(part)) if need[0] not in {GROUP, *NO_REFERENCE}
    }
    wanted |= {need for part in _OF_DATA for need in _needs(tree.get(part))}
    reference = tree.get("reference")
    if target_of(reference) == "cft.references.models.Score" and isinstance(reference, Mapping):
        wanted.add((str(reference.get("name")), REFERENCE_LOGPROB))
    return {need for need in wanted if need[0] != OWN_LOGPROB}


def _wanted_elsewhere(node: object) -> Iterator[tuple[str, set[tuple[str, str]]]]:
    """(another annotation, the scores that a mask in the node reads from it)."""
    if not isinstance(node, Mapping):
        return
    if target_of(node) == _ELSEWHERE:
        inner = {need for need in _needs(node.get("inner")) if need[0] != OWN_LOGPROB}
        yield str(node.get("from_annotation")), inner
        return
    for inner in node.values():
        yield from _wanted_elsewhere(inner)


def missing_scores(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, message) of every stored score that is missing or of another kind, with the command that makes it. Reads the file
    system."""
    data, annotations_dir = tree.get("data"), str(tree.get("annotations_dir"))
    if target_of(data) == GIVEN_ROWS and isinstance(data, Mapping) and (wanted := _wanted(tree)):
        from cft.scores.store import given_scores_folder

        path = str(data.get("path"))
        folder = given_scores_folder(path, annotations_dir=annotations_dir)
        yield from _missing_in(folder, wanted, called=path, annotation="", model="", given=path, key="data.path")
    if target_of(data) != "cft.data.annotated.annotated_rows" or not isinstance(data, Mapping):
        return
    yield from _missing(
        _wanted(tree), annotation=str(data.get("annotation")), annotations_dir=annotations_dir, key="data.annotation"
    )
    for part in _OF_DATA:
        for annotation, wanted in _wanted_elsewhere(tree.get(part)):
            yield from _missing(wanted, annotation=annotation, annotations_dir=annotations_dir, key=part)


def _missing(
    wanted: set[tuple[str, str]], *, annotation: str, annotations_dir: str, key: str
) -> Iterator[tuple[str, str]]:
    if not wanted:
        return
    from cft.annotation.store import AnnotationStore, StoreError, find_annotation
    from cft.scores.store import annotating_model, scores_folder

    try:
        found = find_annotation(annotation, annotations_dir=annotations_dir)
        model = annotating_model(AnnotationStore(found).manifest())
    except StoreError:
        return  # a missing or damaged annotation has its own message
    folder = scores_folder(found, annotations_dir=annotations_dir)
    yield from _missing_in(folder, wanted, called=annotation, annotation=annotation, model=model, given="", key=key)


def _missing_in(
    folder: Path, wanted: set[tuple[str, str]], *, called: str, annotation: str, model: str, given: str, key: str
) -> Iterator[tuple[str, str]]:
    from cft.scores.store import command_for, expected_kind, other_kind

    for name, kind in sorted(wanted):
        try:
            manifest = json.loads((Path(folder) / name / "manifest.json").read_bytes())
        except FileNotFoundError:
            command = command_for(name, annotation, model=model, given=given)
            yield key, f"{called} has no stored score {name}, which this method needs; make it with: {command}"
            continue
        except ValueError:
            continue  # damaged: the error comes when it is read
        if not (isinstance(manifest, dict) and isinstance(manifest.get("fingerprint"), dict)):
            continue
        kind = kind or expected_kind(name)
        if text := other_kind(manifest, name=name, kind=kind, annotation=annotation, model=model, given=given):
            yield key, f"{called}: {text}"


def _needs(node: object) -> Iterator[tuple[str, str]]:
    """(name, kind of stored score or "" for any) of a node and of the nodes inside it."""
    if isinstance(node, list):
        for inner in node:
            yield from _needs(inner)
    if not isinstance(node, Mapping):
        return
    if target := target_of(node):
        yield from ((need, "") for need in strings(target, "needs") or () if need not in _live())
        for attribute, kind in ARGUMENTS.items():
            for argument in strings(target, attribute) or ():
                if isinstance(name := node.get(argument), str):
                    yield name, kind
    if target == _ELSEWHERE:  # its inner mask reads another annotation
        return
    for inner in node.values():
        yield from _needs(inner)


_ELSEWHERE = "cft.masks.projected.Projected"


def target_of(node: object) -> str | None:
    """Where a node's target is defined; the node may name a re-export."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return _defined_at(target) if isinstance(target, str) else None


@cache
def _defined_at(target: str) -> str:
    try:
        return resolve(target).full_name
    except TargetError:
        return target


@cache
def strings(target: str, attribute: str) -> frozenset[str] | None:
    """The strings in a class attribute, inherited ones included; None if the source does not determine them."""
    try:
        return texts_of(resolve(target), attribute)
    except TargetError:
        return None


@cache
def _live() -> frozenset[str]:
    """Names of the values that are computed from the current logits."""
    return keys_of_dict("cft.weightings.statistics.LIVE")
