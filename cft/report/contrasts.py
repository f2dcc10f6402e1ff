"""Every arm against its reference: difference, p-value, Holm's correction, and what makes the two unlike beyond the method.

The reference is plain SFT (`cft/report/names.py`) of the same model where there is just one such arm, else the untrained
model. A difference between arms is put down to the method, so whatever else differs is marked: optimizer steps, epochs and
rows a step (budget), what the loss is divided by (normaliser), which annotation and rows they trained on (data).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cft.evaluation.paired_tests import holm, paired_difference
from cft.report.arms import ACCURACY, Arm, Comparison, Contrast, ReportError, Run, is_base, values_table
from cft.report.names import is_sft


def contrasted(comparisons: Sequence[Comparison], *, seed: int, strict: bool) -> list[Comparison]:
    """The comparisons with contrasts, marks and a note for each mark. Holm's correction is over all of them."""
    whole = [replace(c, arms=tuple(_against_reference(arm, c.arms, seed=seed) for arm in c.arms)) for c in comparisons]
    marks = [f"{arm.label} and {arm.reference} differ in {mark}" for c in whole for arm in c.arms for mark in arm.marks]
    if strict and marks:
        raise ReportError(
            "arms that differ in more than their method:\n  "
            + "\n  ".join(dict.fromkeys(marks))
            + "\nTrain them alike, or compare without --strict: the differences are then marked"
        )
    return [_corrected(c, p_values=_p_values(whole)) for c in whole]


def marks_between(arm: Arm, reference: Arm) -> tuple[str, ...]:
    """What differs in how two trained arms were trained, with both values: `budget: steps 114 and 228`."""
    if not (_trained(arm) and _trained(reference)):
        return ()
    found = []
    budgets = [arm_facts(arm, "budget"), arm_facts(reference, "budget")]
    for name in sorted({*budgets[0], *budgets[1]}):
        if (values := _differ(*(budget.get(name, []) for budget in budgets))) is not None:
            found.append(f"budget: {name.replace('_', ' ')} {values}")
    normalisers = [_values(run.arm.get("loss.normalizer") for run in side.runs) for side in (arm, reference)]
    if (values := _differ(*normalisers)) is not None:
        found.append(f"normaliser: {values}")
    data = [arm_facts(arm, "data"), arm_facts(reference, "data")]
    for name, words in (("fingerprint", "fingerprint of the annotation"), ("rows_sha256", "training rows")):
        if (values := _differ(*(facts.get(name, []) for facts in data))) is not None:
            found.append(f"data: {words} {values}")
    return tuple(found)


def arm_facts(arm: Arm, entry: str) -> dict[str, list[str]]:
    """Values that the runs recorded under results.json's `entry`, by name; each value once."""
    found: dict[str, list[str]] = {}
    for run in arm.runs:
        for name, value in (run.facts.get(entry) or {}).items():
            if not isinstance(value, dict | list):
                found[name] = _values([*found.get(name, []), value])
    return found


def _differ(ours: list[str], theirs: list[str]) -> str | None:
    """Both sides' values if they differ; a side that recorded none does not."""
    if not ours or not theirs or ours == theirs:
        return None
    return f"{'/'.join(_short(v) for v in ours)} and {'/'.join(_short(v) for v in theirs)}"


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value  # a SHA-256


def _values(values: Any) -> list[str]:
    return sorted({str(value) for value in values if value is not None})


def _trained(arm: Arm) -> bool:
    return "mask" in arm.key and bool(arm.runs)


def _against_reference(arm: Arm, arms: Sequence[Arm], *, seed: int) -> Arm:
    reference = _reference(arm, arms)
    if reference is None:
        return arm
    found = {}
    for name in contrast_metrics(arms):
        ours, theirs = values_table(name, arm.runs), values_table(name, reference.runs)
        if ours is not None and theirs is not None:
            paired = _seeds(arm.runs) == _seeds(reference.runs)
            tested = paired_difference(ours, theirs, pair_seeds=paired, seed=seed)
            found[name] = Contrast(tested.interval, tested.p, tested.p, tested.test)
    if not found:
        return arm
    return replace(arm, reference=reference.label, contrasts=found, marks=marks_between(arm, reference))


def _reference(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    same_model = [other for other in arms if other.key.get("model") == arm.key.get("model")]
    sft = [other for other in same_model if is_sft(other.key)]
    base = [other for other in same_model if is_base(other.key)]
    reference = next((group[0] for group in (sft, base) if len(group) == 1), None)
    return None if reference is arm or reference is None or not (reference.runs and arm.runs) else reference


def contrast_metrics(arms: Sequence[Arm]) -> list[str]:
    """Accuracy, and pass@k and maj@k of the largest k that every arm with runs has."""
    with_runs = [arm for arm in arms if arm.runs]
    shared = (
        [name for name in with_runs[0].metrics if all(name in arm.metrics for arm in with_runs)] if with_runs else []
    )
    chosen = [ACCURACY]
    for prefix in ("eval/pass_at_", "eval/maj_at_"):
        of_kind = [name for name in shared if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()]
        chosen += sorted(of_kind, key=lambda name: int(name.rpartition("_")[2]))[-1:]
    return chosen


def _seeds(runs: Sequence[Run]) -> list[int]:
    return [run.seed for run in runs]


def _p_values(comparisons: Sequence[Comparison]) -> dict[tuple[str, str, str, str], float]:
    """Corrected p-values by (benchmark, split, arm, metric); a metric is a family of its own."""
    found: dict[tuple[str, str, str, str], float] = {}
    for metric in dict.fromkeys(name for c in comparisons for arm in c.arms for name in arm.contrasts):
        keys = [(c, arm) for c in comparisons for arm in c.arms if metric in arm.contrasts]
        adjusted = holm([arm.contrasts[metric].p for _, arm in keys])
        found |= {(c.benchmark, c.split, a.label, metric): p for (c, a), p in zip(keys, adjusted, strict=True)}
    return found


def _corrected(comparison: Comparison, *, p_values: dict[tuple[str, str, str, str], float]) -> Comparison:
    arms, notes = [], list(comparison.notes)
    for arm in comparison.arms:
        place = (comparison.benchmark, comparison.split, arm.label)
        contrasts = {name: replace(c, holm=p_values[*place, name]) for name, c in arm.contrasts.items()}
        arms.append(replace(arm, contrasts=contrasts))
        if arm.marks:
            notes.append(f"† {arm.label} and {arm.reference} differ in {'; '.join(arm.marks)}.")
    return replace(comparison, arms=tuple(arms), notes=tuple(notes))
