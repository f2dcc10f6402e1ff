"""Do the 95 % intervals of the tables cover 95 times in 100?   python -m experiments.simulate_coverage

Draws tables of seeds x problems from a known truth, 0/1 values as of greedy accuracy, and asks how often the interval
holds it. A value is Bernoulli with logit  problem + seed (+ seed x problem), the seeds' part from none to larger than any
seen in fine-tuning; the truth is the mean over all seeds and problems, by quadrature. Intervals:

    shipped     cft.evaluation.intervals.two_way_bootstrap, paired_two_way_bootstrap: what the report uses
    percentile  seeds and problems resampled alike, the usual two-way bootstrap
    problems    seeds averaged, problems resampled: speaks of these seeds alone

`single` is one arm's accuracy, `paired` the difference of two arms that share problems and not their seeds' effects.
Prints a table and writes outputs/simulate_coverage.json; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cft.evaluation.intervals import (
    Interval,
    bootstrap_interval,
    interval_of,
    paired_two_way_bootstrap,
    two_way_bootstrap,
)
from cft.files import write_json

Table = NDArray[np.float64]
SEEDS = (3, 5)
PROBLEMS = (100, 500)
SPREADS = (0.0, 0.05, 0.1, 0.2, 0.5)  # of the seeds' logits; 0.2 moves an accuracy of one half by 4 points or so
DIFFICULTY, INTERACTION, MEAN, GAIN = 1.5, 0.5, 0.3, 0.2
RESAMPLES = 1000
GOAL = 0.93


@dataclass(frozen=True, slots=True)
class Cell:
    design: str
    seeds: int
    problems: int
    spread: float


def rate(logit: Table) -> Table:
    return 1.0 / (1.0 + np.exp(-logit))


def truth(mean: float, spread: float) -> float:
    """Mean of the rate over problems, seeds and their interaction: a normal logit, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    total = np.sqrt(DIFFICULTY**2 + INTERACTION**2 + spread**2)
    return float((weights * rate(mean + total * nodes)).sum() / weights.sum())


def draw(problem_P: Table, *, mean: float, seeds: int, spread: float, rng: np.random.Generator) -> Table:
    shape = (seeds, len(problem_P))
    logit = mean + problem_P + spread * rng.standard_normal((seeds, 1)) + INTERACTION * rng.standard_normal(shape)
    return (rng.random(shape) < rate(logit)).astype(np.float64)


def percentile(values_SP: Table, *, seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    seeds, problems = values_SP.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    columns, counts = np.unique(values_SP, axis=1, return_counts=True)  # equal problems are interchangeable
    by_problem = rng.multinomial(problems, counts / problems, size=RESAMPLES) / problems
    return interval_of(float(values_SP.mean()), ((by_seed @ columns) * by_problem).sum(1), level=0.95)


def over_problems(values_SP: Table, *, seed: int) -> Interval:
    return bootstrap_interval(values_SP.mean(0), resamples=RESAMPLES, seed=seed)


def measure(cell: Cell, *, trials: int, methods: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """method -> coverage and mean width relative to that of the true standard error."""
    rng = np.random.default_rng([cell.seeds, cell.problems, round(100 * cell.spread)])
    expected = truth(MEAN, cell.spread)
    if cell.design == "paired":
        expected = truth(MEAN + GAIN, cell.spread) - expected
    hits, widths, means = dict.fromkeys(methods, 0), dict.fromkeys(methods, 0.0), []
    for trial in range(trials):
        problem_P = DIFFICULTY * rng.standard_normal(cell.problems)
        table = draw(problem_P, mean=MEAN, seeds=cell.seeds, spread=cell.spread, rng=rng)
        intervals: dict[str, Callable[[], Interval]]
        if cell.design == "paired":
            better = draw(problem_P, mean=MEAN + GAIN, seeds=cell.seeds, spread=cell.spread, rng=rng)
            difference = better - table
            intervals = {
                "shipped": lambda b=better, t=table, i=trial: paired_two_way_bootstrap(
                    b, t, resamples=RESAMPLES, seed=i
                )
            }
        else:
            difference = table
            intervals = {"shipped": lambda t=table, i=trial: two_way_bootstrap(t, resamples=RESAMPLES, seed=i)}
        intervals["percentile"] = lambda d=difference, i=trial: percentile(d, seed=i)
        intervals["problems"] = lambda d=difference, i=trial: over_problems(d, seed=i)
        means.append(difference.mean())
        for name in methods:
            interval = intervals[name]()
            hits[name] += interval.low <= expected <= interval.high
            widths[name] += interval.high - interval.low
    ideal = 2 * 1.96 * float(np.std(means))
    return {
        name: {"coverage": hits[name] / trials, "relative_width": round(widths[name] / trials / ideal, 3)}
        for name in methods
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--trials", type=int, default=1000, help="tables a cell; 1,000 have a standard error of 0.7 points"
    )
    parser.add_argument("--usual-trials", type=int, default=300, help="the same for the two usual intervals")
    parser.add_argument("--out", type=Path, default=Path("outputs/simulate_coverage.json"))
    arguments = parser.parse_args()
    started = time.monotonic()
    records = []
    print(f"{'design':8} seeds problems spread |  shipped (width) | percentile (width) | problems (width)")
    for cell in (Cell(*choice) for choice in product(("single", "paired"), SEEDS, PROBLEMS, SPREADS)):
        found = measure(cell, trials=arguments.trials, methods=("shipped",))
        if arguments.usual_trials:
            found |= measure(cell, trials=arguments.usual_trials, methods=("percentile", "problems"))
        records.append(
            {"design": cell.design, "seeds": cell.seeds, "problems": cell.problems, "spread": cell.spread, **found}
        )
        shown = " | ".join(f"{m['coverage']:.3f} ({m['relative_width']:.2f})".rjust(16) for m in found.values())
        print(f"{cell.design:8} {cell.seeds:5} {cell.problems:8} {cell.spread:6.2f} | {shown}", flush=True)
    coverage = [record["shipped"]["coverage"] for record in records]
    summary = {
        "goal": GOAL,
        "trials": arguments.trials,
        "lowest": min(coverage),
        "highest": max(coverage),
        "mean": round(float(np.mean(coverage)), 4),
        "below_goal": sum(value < GOAL for value in coverage),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(arguments.out, {"summary": summary, "cells": records})
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
