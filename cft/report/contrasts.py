"""Every arm against its reference: difference, p-value, Holm's correction, and differences in training beyond the method.

The reference is plain SFT of the same model if there is exactly one such arm, else the untrained model. A difference between
arms is attributed to the method, so every other difference in training is marked: optimizer steps, epochs and rows per step
(budget), the denominator of the loss (normalizer), the annotation and rows trained on (data). These marks compare trained arms
with the one SFT arm, else with the arm whose training most others share, whatever the reference is. Values that were not
recorded cannot be shown to agree, and are marked as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cft.evaluation.paired_tests import holm, paired_difference
from cft.report.arm_names import is_base, is_sft, is_trained
from cft.report.arms import ACCURACY, Arm, Comparison, Contrast, values_of
from cft.report.read import ReportError, Run

_UNKNOWN = "not recorded: "
_WORDS = {"fingerprint": "fingerprint of the annotation", "rows_sha256": "training rows"}


def contrasted(comparisons: Sequence[Comparison], *, seed: int, strict: bool) -> list[Comparison]:
    """The comparisons with contrasts, marks and a note for each mark. Holm's correction is over all of them."""
    whole = [
        replace(c, arms=tuple(_marked([_against_reference(arm, c.arms, seed=seed) for arm in c.arms])))
        for c in comparisons
    ]
    marks = [sentence for c in whole for arm in c.arms for sentence in _sentences(arm)]
    if strict and marks:
        raise ReportError(
            "arms that differ in more than their method, or cannot be told to agree:\n  "
            + "\n  ".join(dict.fromkeys(marks))
            + "\nTrain them alike, or compare without --strict: the differences are then marked"
        )
    corrected = _corrected(whole)
    return [
        replace(
            c,
            arms=tuple(arms),
            notes=(*c.notes, *(f"† {sentence}" for arm in arms for sentence in _sentences(arm))),
        )
        for c, arms in zip(whole, corrected, strict=True)
    ]


# ---- differences


def _against_reference(arm: Arm, arms: Sequence[Arm], *, seed: int) -> Arm:
    reference = _reference(arm, arms)
    if reference is None:
        return arm
    found = {}
    for name in contrast_metrics(arms):
        ours, theirs = values_of(name, arm.runs), values_of(name, reference.runs)
        if ours is not None and theirs is not None:
            paired = [run.seed for run in arm.runs] == [run.seed for run in reference.runs]
            tested = paired_difference(ours, theirs, pair_seeds=paired, seed=seed)
            found[name] = Contrast(tested.interval, tested.p, tested.p, tested.test)
    return replace(arm, reference=reference.label, contrasts=found) if found else arm


def _reference(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    same_model = [other for other in arms if _model(other) == _model(arm)]
    candidates = ([other for other in same_model if kind(other.method)] for kind in (is_sft, is_base))
    reference = next((group[0] for group in candidates if len(group) == 1), None)
    return None if reference is arm or reference is None or not (reference.runs and arm.runs) else reference


def contrast_metrics(arms: Sequence[Arm]) -> list[str]:
    """Accuracy, and avg@k, pass@k and maj@k of the largest k that every arm with runs has."""
    with_runs = [arm for arm in arms if arm.runs]
    shared = [name for name in with_runs[0].metrics if all(name in a.metrics for a in with_runs)] if with_runs else []
    chosen = [ACCURACY]
    for prefix in ("eval/avg_at_", "eval/pass_at_", "eval/maj_at_"):
        of_kind = [name for name in shared if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()]
        chosen += sorted(of_kind, key=lambda name: int(name.rpartition("_")[2]))[-1:]
    return chosen


def _corrected(comparisons: Sequence[Comparison]) -> list[list[Arm]]:
    """The arms of each with p-values corrected over all of them; a metric is a family of its own."""
    found = [list(comparison.arms) for comparison in comparisons]
    for metric in dict.fromkeys(name for arms in found for arm in arms for name in arm.contrasts):
        places = [(arms, i) for arms in found for i, arm in enumerate(arms) if metric in arm.contrasts]
        adjusted = holm([arms[i].contrasts[metric].p for arms, i in places])
        for (arms, i), p in zip(places, adjusted, strict=True):
            contrasts = arms[i].contrasts
            arms[i] = replace(arms[i], contrasts=contrasts | {metric: replace(contrasts[metric], holm=p)})
    return found


# ---- marks


def marks_between(arm: Arm, reference: Arm) -> tuple[str, ...]:
    """Differences in the training of two arms, with both values: `budget: steps 114 and 228`. Values that one of them did not
    record: `not recorded: budget of SFT`. None for the untrained model."""
    if _is_untrained(arm) or _is_untrained(reference):
        return ()
    if unknown := [side.label for side in (arm, reference) if not is_trained(side.method)]:
        return (f"{_UNKNOWN}training of {' and '.join(unknown)}",)
    found, sides = [], (arm, reference)
    for entry in ("budget", "data"):
        facts = [_facts(side, entry) for side in sides]
        if lacking := [side.label for side, known in zip(sides, facts, strict=True) if not known]:
            found.append(f"{_UNKNOWN}{entry} of {' and '.join(lacking)}")
            continue
        for name in sorted({*facts[0], *facts[1]}) if entry == "budget" else _WORDS:
            ours, theirs = (known.get(name, []) for known in facts)
            words = _WORDS.get(name, name.replace("_", " "))
            if bool(ours) != bool(theirs):
                found.append(f"{_UNKNOWN}{words} of {sides[bool(ours)].label}")
            # Seeds of one arm may have other rows by design (data.shuffle_responses), but never another budget.
            elif ours != theirs or (entry == "budget" and len(ours) > 1):
                found.append(f"{entry}: {words} {_both(ours, theirs)}")
    normalizers = [_values(_normalizer(run) for run in side.runs) for side in sides]
    if all(normalizers) and normalizers[0] != normalizers[1]:
        found.append(f"normalizer: {_both(*normalizers)}")
    return tuple(found)


def _facts(arm: Arm, entry: str) -> dict[str, list[str]]:
    """Values that the runs recorded under results.json's `entry`, by name; each value once."""
    found: dict[str, list[str]] = {}
    for run in arm.runs:
        for name, value in (getattr(run.results, entry) or {}).items():
            if not isinstance(value, dict | list):
                found[name] = _values([*found.get(name, []), value])
    return found


def _marked(arms: Sequence[Arm]) -> list[Arm]:
    """The arms with their marks, against one arm for all trained arms of a model."""
    standards = _standards(arms)
    any_trained = next(iter(standards.values()), next((arm for arm in arms if not _is_untrained(arm)), None))
    found = []
    for arm in arms:
        # What is not known to be trained like anything belongs to no model.
        standard = standards.get(_model(arm)) if is_trained(arm.method) else any_trained
        if _is_untrained(arm) or standard is None:
            found.append(arm)
            continue
        marks = _within(arm) if arm.label == standard.label else marks_between(arm, standard)
        found.append(replace(arm, marks=marks, marked_against=standard.label if marks else ""))
    return found


def _standards(arms: Sequence[Arm]) -> dict[str, Arm]:
    """By model: plain SFT if exactly one trained arm is, else the arm whose training most others share, the first of
    several."""
    by_model: dict[str, list[Arm]] = {}
    for arm in arms:
        if is_trained(arm.method) and arm.runs:
            by_model.setdefault(_model(arm), []).append(arm)
    found = {}
    for model, like in by_model.items():
        sft = [arm for arm in like if is_sft(arm.method)]
        found[model] = sft[0] if len(sft) == 1 else max(like, key=lambda one: _number_like(one, like))
    return found


def _number_like(one: Arm, arms: Sequence[Arm]) -> int:
    return sum(not marks_between(other, one) for other in arms if other is not one)


def _model(arm: Arm) -> str:
    return str(arm.method.get("model"))


def _within(arm: Arm) -> tuple[str, ...]:
    """Budgets that the seeds of one arm do not share."""
    mixed = [(name, values) for name, values in sorted(_facts(arm, "budget").items()) if len(values) > 1]
    return tuple(f"budget: {name.replace('_', ' ')} {'/'.join(values)}" for name, values in mixed)


def _sentences(arm: Arm) -> list[str]:
    """The marks in words: differences first, then what was not recorded."""
    unknown = [mark.removeprefix(_UNKNOWN) for mark in arm.marks if mark.startswith(_UNKNOWN)]
    known = [mark for mark in arm.marks if not mark.startswith(_UNKNOWN)]
    both = f"{arm.label} and {arm.marked_against}" if arm.label != arm.marked_against else f"The seeds of {arm.label}"
    found = [f"{both} differ in {'; '.join(known)}."] if known else []
    return found + ([f"{both} cannot be told to agree: no record of the {', the '.join(unknown)}."] if unknown else [])


def _both(ours: list[str], theirs: list[str]) -> str:
    return f"{'/'.join(_short(v) for v in ours)} and {'/'.join(_short(v) for v in theirs)}"


def _normalizer(run: Run) -> Any:
    return run.results.settings.get("loss.normalizer", run.arm.get("loss.normalizer"))


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value  # a SHA-256


def _values(values: Iterable[Any]) -> list[str]:
    return sorted({str(value) for value in values if value is not None})


def _is_untrained(arm: Arm) -> bool:
    """Whether it is a base model, under any decoding rule; weights of unknown training are not."""
    return not (is_trained(arm.method) or "weights" in arm.method) or not arm.runs
