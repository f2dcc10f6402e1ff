"""Which learning rate does each arm deserve? Chosen by its score on validation problems, before any test result counts.

    cft report SEARCH FINAL --choose optimizer.lr

Runs of an arm that differ in the key alone are candidates. Where some were trained for the search (evaluation.problems=0),
they alone decide and the tested runs play no part; else the tested runs' own validation scores do. What is compared then
are the tested runs at the chosen value. A seed that other values have and this one lacks (its training diverged, or was cut
off) counts as the worst score: the mean of the seeds that survived is no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cft.report.arm_names import ArmName, identity, named
from cft.report.read import ReportError, Run, Runs


@dataclass(frozen=True, slots=True)
class Choice:
    """What was tried for an arm.

    Args:
        key: What was searched.
        arm: The arm's values without the key.
        metric: By which it was chosen.
        scores: Value of the key -> validation score of each seed, by rising value; the worst score for a seed that it lacks.
        lacking: Which values lack a seed, in words.
        chosen: The best value, "" where none has a score for every seed.
    """

    key: str
    arm: dict[str, Any]
    metric: str
    scores: dict[str, list[float]]
    lacking: tuple[str, ...]
    chosen: str

    @property
    def words(self) -> str:
        told = [f"{name}={self.arm[name]}" for name in ("mask", "weighting", "loss") if name in self.arm]
        return " ".join(told) or "the arm"

    @property
    def notes(self) -> list[str]:
        return [f"--choose {self.key}: {self.words}: {text}." for text in self.lacking]


def choose(runs: Sequence[Run], *, key: str) -> tuple[Runs, list[Choice]]:
    """(the runs to compare, what was chosen for each arm). Runs without the key, such as the base model, stay. Notes of the
    runs: theirs, and which values lack a seed.

    Raises:
        ReportError: There is nothing to choose from, or what was chosen was not tested.
    """
    found = searched(runs, key=key)
    kept = [run for run in runs if not any(run is other for _, group in found for other in group)]
    notes = list(runs.notes) if isinstance(runs, Runs) else []
    for choice, group in found:
        if not choice.chosen:
            raise ReportError(
                f"--choose {key}: of {choice.words} no value has a score for every seed "
                f"({'; '.join(choice.lacking) or 'none was finite'}); train the seeds that are missing, or leave out the "
                "others' folders"
            )
        notes += choice.notes
        tested = [run for run in group if run.metrics]
        at_chosen = [run for run in tested if str(run.arm[key]) == choice.chosen]
        if tested and not at_chosen:
            raise ReportError(
                f"--choose {key}: {choice.words} scores best on validation problems with {key}={choice.chosen}, but was "
                f"tested with {', '.join(sorted({str(run.arm[key]) for run in tested}))} only; train and test it with "
                f"{key}={choice.chosen}"
            )
        kept += at_chosen
    return Runs(kept, notes=notes), [choice for choice, _ in found]


def searched(runs: Sequence[Run], *, key: str) -> list[tuple[Choice, list[Run]]]:
    """The best value of the key for each arm, and the runs that differ in it alone.

    Raises:
        ReportError: No run has the key and a validation score, or those of one arm cannot be compared.
    """
    keyed = [run for run in runs if run.arm.get(key) is not None and run.results.best_validation is not None]
    if not keyed:
        raise ReportError(
            f"--choose {key}: no run has this entry and a validation score; expected for instance optimizer.lr"
        )
    groups: dict[str, list[Run]] = {}
    for run in keyed:
        groups.setdefault(identity(run, without=key), []).append(run)
    arms = named(keyed, without=key)
    return [(_choice(group, key=key, arm=arms[one]), group) for one, group in groups.items()]


def _choice(runs: Sequence[Run], *, key: str, arm: ArmName) -> Choice:
    deciding = [run for run in runs if not run.metrics] or list(runs)
    metrics = sorted({(run.results.best_validation or {})["metric"] for run in deciding})
    if len(metrics) > 1:
        raise ReportError(
            f"--choose {key}: {arm.label} was validated by {' and '.join(metrics)}, which cannot be compared; give the "
            "folders of runs with one callbacks.best.monitor"
        )
    worst, better = (float("inf"), min) if "loss" in metrics[0] else (float("-inf"), max)
    by_seed: dict[str, dict[int, float]] = {}
    for run in sorted(deciding, key=lambda run: (_order(run.arm[key]), run.seed)):
        score = run.validation_score
        by_seed.setdefault(str(run.arm[key]), {})[run.seed] = worst if score is None else score
    seeds = sorted({seed for found in by_seed.values() for seed in found})
    scores = {value: [found.get(seed, worst) for seed in seeds] for value, found in by_seed.items()}
    missing = {value: [str(seed) for seed in seeds if seed not in found] for value, found in by_seed.items()}
    lacking = tuple(
        f"{key}={value} has no run of seed {', '.join(absent)} (diverged or cut off?), which counts as the worst score"
        for value, absent in missing.items()
        if absent
    )
    # Equal means: the first, that is the smaller value.
    chosen = better(scores, key=lambda value: float(np.mean(scores[value])))
    none_is_whole = all(worst in each for each in scores.values())
    return Choice(key, arm.key, metrics[0], scores, lacking, "" if none_is_whole else chosen)


def _order(value: Any) -> tuple[float, str]:
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return float("inf"), str(value)
