"""CSV files of a report: a row a run, an arm, a contrast, a point of a curve. Text that would run as a formula is disarmed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cft.files import write_atomically
from cft.report.arms import Comparison
from cft.report.text import one_line

_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
MAX_CELL_CHARS = 1000


def cell(value: Any) -> str | int | float:
    """A value as a cell: numbers stay numbers, negative ones too; text that starts with = + - @ gets a quote mark."""
    if value is None or value != value:  # not a number: not defined
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = one_line(str(value), limit=MAX_CELL_CHARS)
    if text.lstrip().startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def write_runs(path: Path, comparisons: Sequence[Comparison]) -> None:
    """comparison.csv: one row a run; value, low and high of each metric (interval over problems)."""
    records = []
    for comparison in comparisons:
        for arm in comparison.arms:
            for run in arm.runs:
                record: dict[str, Any] = {"arm": arm.label, "seed": run.seed}
                record |= {
                    "benchmark": comparison.benchmark,
                    "split": comparison.split,
                    "problems": comparison.problems,
                }
                record |= run.arm
                for name, interval in run.metrics.items():
                    record |= {name: interval.value, f"{name}/low": interval.low, f"{name}/high": interval.high}
                for fact in ("stage", "best_epoch", "eligible_fraction", "train_seconds"):
                    record[fact] = run.facts.get(fact)
                record["folder"] = run.folder.name
                records.append(record)
    write_records(path, records)


def write_arms(path: Path, comparisons: Sequence[Comparison]) -> None:
    """arms.csv: one row an arm; mean over seeds with its interval, and what that was resampled over."""
    records = []
    for comparison in comparisons:
        for arm in comparison.arms:
            record: dict[str, Any] = {"arm": arm.label, "seeds": len(arm.runs)}
            record |= {"benchmark": comparison.benchmark, "split": comparison.split, "problems": comparison.problems}
            record |= arm.key
            for name, measured in arm.metrics.items():
                interval = measured.interval
                record |= {name: interval.value, f"{name}/low": interval.low, f"{name}/high": interval.high}
                record[f"{name}/interval_over"] = measured.scope
            for name, contrast in arm.contrasts.items():
                record |= {f"{name}/difference": contrast.interval.value, "difference_to": arm.reference}
                record |= {
                    f"{name}/difference/low": contrast.interval.low,
                    f"{name}/difference/high": contrast.interval.high,
                }
                record |= {f"{name}/p": contrast.p, f"{name}/p_holm": contrast.holm}
            record |= {"marks": "; ".join(arm.marks), "marked_against": arm.marked_against}
            records.append(record)
    write_records(path, records)


def write_differences(path: Path, comparisons: Sequence[Comparison]) -> None:
    """differences.csv: one row a contrast of an arm with its reference."""
    records = []
    for comparison in comparisons:
        for arm in comparison.arms:
            for name, contrast in arm.contrasts.items():
                record: dict[str, Any] = {
                    "benchmark": comparison.benchmark,
                    "split": comparison.split,
                    "arm": arm.label,
                }
                record |= {"minus": arm.reference, "metric": name, "difference": contrast.interval.value}
                record |= {"low": contrast.interval.low, "high": contrast.interval.high, "p": contrast.p}
                record |= {"p_holm": contrast.holm, "test": contrast.test, "marks": "; ".join(arm.reference_marks)}
                records.append(record)
    write_records(path, records)


def write_records(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One row a record, columns in the order of their first appearance."""
    records = list(rows)
    columns = list(dict.fromkeys(name for record in records for name in record))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow([cell(name) for name in columns])
            writer.writerows([cell(record.get(name)) for name in columns] for record in records)

    write_atomically(path, write)
