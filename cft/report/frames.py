"""The CSV files of a report as DataFrames: runs, arms, differences, curves, pass@k, compute, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cft.evaluation.intervals import Interval, two_way_bootstrap
from cft.evaluation.metrics import pass_at_k
from cft.report.arm_names import as_text, identity, is_trained
from cft.report.arms import Arm, Comparison
from cft.report.read import Run, training_log

RL_SAMPLES = 8  # per problem, in the RL step that annotation is compared with
MAX_POINTS = 24  # of a pass@k curve: beyond that the values of k are spread evenly over their logarithm


def _frame(records: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per record, columns in the order of their first appearance; values keep their types."""
    return pd.DataFrame(records, columns=columns, dtype=object)  # type: ignore[arg-type]


def runs_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """comparison.csv: one row per run; value, low and high of each metric (interval over problems)."""
    records = []
    for comparison, arm in each_arm(comparisons):
        for run in arm.runs:
            record = {"arm": arm.label, "seed": run.seed, **_measured_on(comparison), **arm.named.key}
            for name, interval in run.metrics.items():
                record |= _with_limits(name, interval)
            facts = ("stage", "best_epoch", "eligible_fraction", "train_seconds")
            record |= {fact: getattr(run.results, fact) for fact in facts}
            records.append({**record, "folder": run.folder.name})
    return _frame(records)


def arms_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """arms.csv: one row per arm; mean over seeds with its interval, and what it was bootstrapped over."""
    records = []
    for comparison, arm in each_arm(comparisons):
        record = {"arm": arm.label, "seeds": len(arm.runs), **_measured_on(comparison), **arm.named.key}
        for name, measured in arm.metrics.items():
            record |= _with_limits(name, measured.interval) | {f"{name}/interval_over": measured.scope}
        for name, contrast in arm.contrasts.items():
            record |= {f"{name}/difference": contrast.interval.value, "difference_to": arm.reference}
            record |= _limits(f"{name}/difference", contrast.interval)
            record |= {f"{name}/p": contrast.p, f"{name}/p_holm": contrast.holm}
        records.append({**record, "marks": "; ".join(arm.marks), "marked_against": arm.marked_against})
    return _frame(records)


def differences_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """differences.csv: one row per contrast of an arm with its reference."""
    records = []
    for comparison, arm in each_arm(comparisons):
        place = {"benchmark": comparison.benchmark, "split": comparison.split, "arm": arm.label, "minus": arm.reference}
        for name, contrast in arm.contrasts.items():
            interval = contrast.interval
            record = {**place, "metric": name, "difference": interval.value, "low": interval.low, "high": interval.high}
            record |= {"p": contrast.p, "p_holm": contrast.holm, "test": contrast.test}
            records.append({**record, "marks": "; ".join(arm.reference_marks)})
    return _frame(records)


def labels_of(comparisons: Sequence[Comparison]) -> list[str]:
    """Labels of arms that have runs, in the order of the tables: the same color everywhere."""
    return list(dict.fromkeys(arm.label for _, arm in each_arm(comparisons) if arm.runs))


def each_arm(comparisons: Sequence[Comparison]) -> list[tuple[Comparison, Arm]]:
    return [(comparison, arm) for comparison in comparisons for arm in comparison.arms]


def _measured_on(comparison: Comparison) -> dict[str, Any]:
    return {"benchmark": comparison.benchmark, "split": comparison.split, "problems": comparison.problems}


def _with_limits(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, **_limits(name, interval)}


def _limits(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}/low": interval.low, f"{name}/high": interval.high}


# ---- training


def learning_curves(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """curves.csv: every logged train/ and val/ metric of every run by optimizer step; a training in several comparisons is
    listed once. Column "run" distinguishes trainings of one arm and seed."""
    logs: dict[Path, tuple[str, int]] = {}
    for _, arm in each_arm(comparisons):
        for run in arm.runs:
            logs.setdefault(run.logs, (arm.label, run.seed))
    found = [pd.DataFrame(columns=["arm", "seed", "metric", "step", "value", "run"])]
    for number, (folder, (label, seed)) in enumerate(logs.items()):
        log = training_log(folder)
        if "step" not in log:
            continue
        names = [name for name in log if str(name).startswith(("train/", "val/"))]
        lines = log.melt("step", names, var_name="metric").dropna().drop_duplicates(["metric", "step"], keep="last")
        lines = lines.sort_values(["metric", "step"]).assign(arm=label, seed=seed, run=number)
        found.append(pd.DataFrame(lines.astype({"step": int}), columns=found[0].columns))
    return pd.concat(found[1:] or found, ignore_index=True)


def mean_curve(lines: pd.DataFrame) -> pd.Series:
    """Mean over runs by step, at steps that all of them logged. lines: rows of one arm and metric."""
    return lines.pivot(index="step", columns="run", values="value").dropna().mean(axis=1)


def pass_curves(comparison: Comparison, *, seed: int = 0) -> pd.DataFrame:
    """pass_at_k.csv: pass@k of each arm with its interval over seeds and problems, for every k up to the number of samples,
    from how many samples of each problem were right; empty where no arm recorded that."""
    records = []
    for arm in comparison.arms:
        samples = {run.results.evaluation.get("num_samples") for run in arm.runs}
        rows = [run.per_problem.get("num_right") for run in arm.runs]
        if len(samples) != 1 or not all(rows) or not (count := samples.pop()):
            continue
        right_SP = np.array(rows, dtype=np.int64)
        for k in _ks(count):
            by_count = np.array([pass_at_k(count, right, k) for right in range(count + 1)])
            interval = two_way_bootstrap(by_count[right_SP], seed=seed, within=(0.0, 1.0))
            place = {"benchmark": comparison.benchmark, "split": comparison.split, "arm": arm.label}
            records.append({**place, "k": k, "pass_at_k": interval.value, "low": interval.low, "high": interval.high})
    return _frame(records)


def _ks(samples: int) -> list[int]:
    if samples <= MAX_POINTS:
        return list(range(1, samples + 1))
    return sorted({round(k) for k in np.geomspace(1, samples, MAX_POINTS)})


# ---- what was spent


def compute_spent(comparisons: Sequence[Comparison], *, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """compute.csv: annotation (solving, counterfactuals) beside the training of each arm, in seconds and tokens.

    Tokens are decoded ones for annotation and response tokens seen for training (rows x epochs), seconds as each stage
    measured them on its own machine; None where they were not recorded.

    Args:
        comparisons: A training that was measured on several benchmarks counts once; an arm's is the mean over its seeds.
        manifest: Of the annotation, or {}.
    """
    columns = ["part", "seconds", "tokens", "mean_of_runs"]
    compute, records = manifest.get("compute") or {}, []
    for part, prefix in (("solving", "solve"), ("counterfactuals", "counterfactual")):
        spent = [compute.get(f"{prefix}_{unit}") for unit in columns[1:3]]
        if spent != [None, None]:
            records.append((f"annotation: {part}", *spent, 1))
    trainings: dict[str, tuple[str, dict[int, Run]]] = {}
    for _, arm in each_arm(comparisons):
        for run in arm.runs:
            if run.results.train_seconds is not None:
                trainings.setdefault(identity(run), (arm.label, {}))[1].setdefault(run.seed, run)
    for label, runs in trainings.values():
        seconds = float(np.mean([run.results.train_seconds or 0.0 for run in runs.values()]))
        tokens = [found for run in runs.values() if (found := _tokens(run)) is not None]
        records.append((f"training: {label}", seconds, float(np.mean(tokens)) if tokens else None, len(runs)))
    return _frame([dict(zip(columns, record, strict=True)) for record in records], columns)


def rl_steps(manifest: Mapping[str, Any]) -> float | None:
    """The annotation's tokens in units of RL steps with eight samples of each of the same problems, which decode eight times as
    many tokens as solving did."""
    compute = manifest.get("compute") or {}
    solve = compute.get("solve_tokens")
    return (solve + compute.get("counterfactual_tokens", 0)) / (RL_SAMPLES * solve) if solve else None


def _tokens(run: Run) -> float | None:
    tokens, epochs = (run.results.data or {}).get("response_tokens"), (run.results.budget or {}).get("epochs")
    return None if tokens is None or epochs is None else tokens * epochs


# ---- settings


def settings_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """config_differences.csv: settings that differ among the trained arms, one column per arm; "" where an arm has no such
    setting."""
    arms = {
        arm.label: next(run.results.settings for run in arm.runs)
        for _, arm in each_arm(comparisons)
        if is_trained(arm.method) and any(run.results.settings for run in arm.runs)
    }
    names = sorted({name for settings in arms.values() for name in settings})
    texts = [[as_text(s[name]) if name in s else "" for s in arms.values()] for name in names]
    rows = [[name, *row] for name, row in zip(names, texts, strict=True) if len(set(row)) > 1]
    return pd.DataFrame(rows, columns=["setting", *arms], dtype=object)
