"""Which learning rate does each arm deserve? Chosen by its score on validation problems, before any test result counts.

    cft report SEARCH FINAL --choose optimizer.lr

Runs of an arm that differ in the key alone are candidates. Where some were trained for the search (evaluation.problems=0),
they alone decide and the tested runs play no part; else the tested runs' own validation scores do. What is compared then
are the tested runs at the chosen value. A seed that other values have and this one lacks (its training diverged, or was cut
off) counts as the worst score: the mean of the seeds that survived is no mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cft.report.arms import ReportError, Run, Runs
from cft.report.settings import distinguished

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Choice:
    """arm: its entries without the key. scores: value of the key -> validation score of each seed, by rising value."""

    key: str
    arm: dict[str, Any]
    metric: str
    scores: dict[str, list[float]]
    chosen: str


def choose(runs: Sequence[Run], *, key: str) -> tuple[Runs, list[Choice]]:
    """(the runs to compare, what was chosen for each arm). Runs without the key, such as the base model, stay. Notes of the
    runs: theirs, and which values lack a seed."""
    keyed = [run for run in runs if run.arm.get(key) is not None and "best_validation" in run.facts]
    if not keyed:
        raise ReportError(
            f"--choose {key}: no run has this entry and a validation score; expected for instance optimizer.lr"
        )
    stripped = [(_without(run.arm, key), _without_settings(run.facts.get("settings"), key)) for run in keyed]
    groups: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run, arm in zip(keyed, distinguished(stripped), strict=True):
        groups.setdefault(json.dumps(arm, sort_keys=True, default=str), []).append((run, arm))
    kept = [run for run in runs if not any(run is other for other in keyed)]
    choices: list[Choice] = []
    notes = list(runs.notes) if isinstance(runs, Runs) else []
    for group in groups.values():
        choice, lacking = _choice([run for run, _ in group], key=key, arm=group[0][1])
        notes += [f"--choose {key}: {_words(choice.arm)}: {text}." for text in lacking]
        tested = [run for run, _ in group if run.metrics]
        at_chosen = [run for run in tested if str(run.arm[key]) == choice.chosen]
        if tested and not at_chosen:
            raise ReportError(
                f"--choose {key}: {_words(choice.arm)} scores best on validation problems with {key}={choice.chosen}, but "
                f"was tested with {', '.join(sorted({str(run.arm[key]) for run in tested}))} only; train and test it with "
                f"{key}={choice.chosen}"
            )
        kept += at_chosen
        choices.append(choice)
    return Runs(kept, notes=notes), choices


def with_every_seed(
    scores: Mapping[_Value, Mapping[int, float]], *, worst: float, key: str
) -> tuple[dict[_Value, list[float]], list[str]]:
    """(value -> a score for each seed that any value has, `worst` where this one lacks it; which those are, in words).

    scores: value -> seed -> score.
    """
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    whole = {value: [by_seed.get(seed, worst) for seed in seeds] for value, by_seed in scores.items()}
    missing = {value: [str(seed) for seed in seeds if seed not in by_seed] for value, by_seed in scores.items()}
    return whole, [
        f"{key}={value} has no run of seed {', '.join(lacking)} (diverged or cut off?), which counts as the worst score"
        for value, lacking in missing.items()
        if lacking
    ]


def _choice(runs: Sequence[Run], *, key: str, arm: dict[str, Any]) -> tuple[Choice, list[str]]:
    """The choice, and which values lack a seed."""
    searched = [run for run in runs if not run.metrics] or list(runs)
    metrics = sorted({run.facts["best_validation"]["metric"] for run in searched})
    if len(metrics) > 1:
        raise ReportError(
            f"--choose {key}: {_words(arm)} was validated by {' and '.join(metrics)}, which cannot be compared; give the "
            "folders of runs with one callbacks.best.monitor"
        )
    worst = float("inf") if "loss" in metrics[0] else float("-inf")
    by_seed: dict[str, dict[int, float]] = {}
    for run in sorted(searched, key=lambda run: (_order(run.arm[key]), run.seed)):
        value = run.facts["best_validation"]["value"]
        by_seed.setdefault(str(run.arm[key]), {})[run.seed] = worst if value is None else float(value)
    scores, lacking = with_every_seed(by_seed, worst=worst, key=key)
    if all(worst in each for each in scores.values()):
        raise ReportError(
            f"--choose {key}: of {_words(arm)} no value has a score for every seed "
            f"({'; '.join(lacking) or 'none was finite'}); train the seeds that are missing, or leave out the others' folders"
        )
    better = min if "loss" in metrics[0] else max
    # Equal means: the first, that is the smaller value.
    chosen = better(scores, key=lambda value: float(np.mean(scores[value])))
    return Choice(key, arm, metrics[0], scores, chosen), lacking


def _order(value: Any) -> tuple[float, str]:
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return float("inf"), str(value)


def _without(arm: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in arm.items() if name != key}


def _without_settings(settings: dict[str, Any] | None, key: str) -> dict[str, Any] | None:
    return None if settings is None else _without(settings, key)


def _words(arm: dict[str, Any]) -> str:
    return " ".join(f"{name}={arm[name]}" for name in ("mask", "weighting", "loss") if name in arm) or "the arm"
