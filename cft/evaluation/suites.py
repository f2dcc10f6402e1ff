"""Several benchmarks measured in one run: their macro average, one table, one CSV.

macro average   mean over benchmarks of each benchmark's mean over problems; its interval resamples the problems of
                every benchmark on their own (the benchmarks themselves are taken as given)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cft.evaluation.intervals import Interval, interval_of, is_rate, is_unbounded, problem_deviations
from cft.files import write_bytes

ACCURACY = "eval/accuracy"
MACRO = "macro average"
_PREFIX = "eval/"


def macro_average(results: Mapping[str, Mapping[str, Any]], *, seed: int, resamples: int = 2000) -> dict[str, Interval]:
    """metric -> macro average over the benchmarks, for every metric that all of them have. results: by benchmark, as in
    results.json."""
    shared = [name for name in next(iter(results.values()))["metrics"] if _in_all(name, results)]
    averages = {}
    for name in shared:
        rng = np.random.default_rng(seed)
        value = float(np.mean([entry["metrics"][name]["value"] for entry in results.values()]))
        columns = [_column(entry, name) for entry in results.values()]
        if any(column is None for column in columns):
            averages[name] = Interval(value, float("nan"), float("nan"))
            continue
        bounded = not is_unbounded(name)
        draws = [
            problem_deviations(c, resamples=resamples, rng=rng, rate=bounded and is_rate(c))
            for c in columns
            if c is not None
        ]
        averages[name] = interval_of(value, value + np.mean(draws, axis=0), level=0.95)
    return averages


def suite_table(title: str, results: Mapping[str, Mapping[str, Any]], averages: Mapping[str, Interval]) -> Table:
    """One line a benchmark, the macro average last."""
    extra = _extra(averages)
    table = Table(title=title, title_justify="left", padding=(0, 1 if len(extra) < 4 else 0))  # 80 columns hold it
    table.add_column("benchmark", no_wrap=True)
    names = ("problems", "accuracy, 95 % interval", *(name.removeprefix(_PREFIX).replace("_", " ") for name in extra))
    for name in names:
        table.add_column(name, justify="right", no_wrap=name == names[1])
    for name, entry in results.items():
        values = [f"{entry['metrics'][key]['value']:.3f}" for key in extra]
        table.add_row(name, str(entry["problems"]), _shown(entry["metrics"][ACCURACY]), *values)
    total = sum(entry["problems"] for entry in results.values())
    table.add_section()
    values = [f"{averages[key].value:.3f}" for key in extra]
    table.add_row(MACRO, str(total), _shown(averages[ACCURACY].as_dict()), *values)
    return table


def write_summary(path: Path, results: Mapping[str, Mapping[str, Any]], averages: Mapping[str, Interval]) -> None:
    """A CSV of every shared metric: benchmark, problems, metric, value, low, high."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("benchmark", "problems", "metric", "value", "low", "high"))
    for name, entry in results.items():
        for metric, found in entry["metrics"].items():
            rows.writerow((name, entry["problems"], metric, found["value"], found["low"], found["high"]))
    total = sum(entry["problems"] for entry in results.values())
    for metric, average in averages.items():
        rows.writerow((MACRO, total, metric, average.value, average.low, average.high))
    write_bytes(path, text.getvalue().encode())


def _in_all(name: str, results: Mapping[str, Mapping[str, Any]]) -> bool:
    return all((entry["metrics"].get(name) or {}).get("value") is not None for entry in results.values())


def _column(entry: Mapping[str, Any], name: str) -> np.ndarray | None:
    """The values of one metric problem by problem, None where a problem has none."""
    key = "correct" if name == ACCURACY else name.removeprefix(_PREFIX)
    column = entry["per_problem"].get(key)
    return np.asarray(column, dtype=np.float64) if column else None


def _extra(averages: Mapping[str, Interval]) -> list[str]:
    """avg@n, pass@k of the largest k, and what tells of a limit or of a verifier that gave up, where one was met."""
    found = [name for name in averages if name.startswith((f"{_PREFIX}avg_at_", f"{_PREFIX}pass_at_"))]
    by_size = sorted(found, key=lambda name: int(name.rpartition("_")[2]))
    largest = [[name for name in by_size if name.startswith(_PREFIX + kind)][-1:] for kind in ("avg", "pass")]
    rates = (f"{_PREFIX}cut_off_rate", f"{_PREFIX}undecided_rate")
    return [*largest[0], *largest[1], *(name for name in rates if name in averages and averages[name].value > 0)]


def _shown(entry: Mapping[str, float]) -> str:
    return f"{entry['value']:.3f} \\[{entry['low']:.3f}, {entry['high']:.3f}]"
