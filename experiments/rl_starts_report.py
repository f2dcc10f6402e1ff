"""Reports the finished runs of `experiments.rl_starts`: table, CSV and figure.

    experiments/results/rl_starts.csv   value of each start, rate, step and metric with its 95 % interval, minus SFT (Holm)
    docs/images/rl_starts.png           accuracy, pass@8, training reward and entropy over steps

Intervals of tests are over seeds and problems, those of `train/` over seeds and the steps of a bin of 20.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.evaluation.intervals import two_way_bootstrap
from cft.evaluation.paired_tests import holm, paired_difference
from cft.report.figures import COLORS, png_of
from experiments.rl_starts import MIDDLE, RATES, SEARCH_STEPS, SEEDS, STARTS, STEPS, Case, best_rate, searched

CSV, PNG = Path("experiments/results/rl_starts.csv"), Path("docs/images/rl_starts.png")
BASELINE = "sft"
VALIDATION = "validation pass_at_1"
BIN = 20
TESTS = {
    "accuracy": "greedy accuracy",
    "pass_at_1": "pass@1",
    "pass_at_8": "pass@8",
    "entropy": "entropy of greedy responses",
}
TRAIN = {"train/reward": "reward of the rollouts", "train/entropy": "entropy of the rollouts, nats"}
NAMES = {"base": "base model", "sft": "SFT", "cft": "CFT", "random": "random mask", "dft": "DFT"}
COLUMNS: Sequence[str] = (
    "start",
    "lr",
    "seeds",
    "step",
    "metric",
    "value",
    "low",
    "high",
    "minus_sft",
    "minus_low",
    "minus_high",
    "p",
    "p_holm",
)
ROWS_TRAINED_ON = 1000  # rows of the annotation: data.max_rows of experiment=tiny_arith_budget


def report() -> None:
    """Write the report. Raises SystemExit if a start has no finished seed."""
    chosen = best_rate()
    done = {rate: {start: seeds_of(start, rate) for start in STARTS} for rate in RATES}
    if not all(done[chosen].values()):
        raise SystemExit(f"not every start has a finished seed yet: {done[chosen]}")
    records = [record for rate in RATES for record in (*validated(rate), *tested(done[rate], rate))]
    records += trained(done[chosen], chosen)
    with CSV.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    of_chosen = [record for record in records if record["lr"] == chosen]
    PNG.write_bytes(png_of(figure(of_chosen)))
    for rate in RATES:
        print(f"lr {rate:g}, seeds {done[rate]}\n{table([r for r in records if r['lr'] == rate])}\n")
    print(rates(records), budget(done[chosen], chosen), sep="\n")


def seeds_of(start: str, rate: float) -> list[int]:
    return [seed for seed in SEEDS if Case(start, seed).finished(rate)]


def validated(rate: float) -> list[dict[str, Any]]:
    place = {"lr": rate, "seeds": 1, "step": SEARCH_STEPS, "metric": VALIDATION}
    return [{"start": start, **place, **results.metrics["eval/pass_at_1"]} for start, results in searched(rate).items()]


def tested(seeds: Mapping[str, Sequence[int]], rate: float) -> list[dict[str, Any]]:
    """Test results of the starts with finished seeds. A start is compared with SFT on the seeds that both have."""
    found = []
    for metric, step in product(TESTS, (0, MIDDLE, STEPS)):
        rows: list[dict[str, Any]] = []
        contrasts: list[dict[str, Any]] = []
        for start in filter(seeds.get, STARTS):
            interval = two_way_bootstrap(per_problem(start, seeds[start], step, metric, rate=rate))
            place = {"start": start, "lr": rate, "seeds": len(seeds[start]), "step": step, "metric": metric}
            rows.append({**place, **interval.as_dict()})
            both = [seed for seed in seeds[start] if seed in seeds[BASELINE]]
            if start == BASELINE or not both:
                continue
            mine, theirs = (per_problem(name, both, step, metric, rate=rate) for name in (start, BASELINE))
            difference = paired_difference(mine, theirs, pair_seeds=True)
            minus = difference.interval
            rows[-1] |= {"minus_sft": minus.value, "minus_low": minus.low, "minus_high": minus.high, "p": difference.p}
            contrasts.append(rows[-1])
        for row, corrected in zip(contrasts, holm([row["p"] for row in contrasts]), strict=True):
            row["p_holm"] = corrected
        found += rows
    return found


def per_problem(start: str, seeds: Sequence[int], step: int, metric: str, *, rate: float) -> NDArray[np.float64]:
    """[S, P]"""
    runs = [Case(start, seed).results(step, rate) for seed in seeds]
    assert len({tuple(run.per_problem["id"]) for run in runs}) == 1, "the runs were tested on different problems"
    return np.array([run.per_problem[metric] for run in runs], dtype=np.float64)


def trained(seeds: Mapping[str, Sequence[int]], rate: float) -> list[dict[str, Any]]:
    found = []
    for metric in TRAIN:
        for start in STARTS:
            table_SN = np.array([curve(Case(start, seed).rl(rate), metric) for seed in seeds[start]])
            for end in range(BIN, STEPS + 1, BIN):
                interval = two_way_bootstrap(table_SN[:, end - BIN : end], rate=False)
                place = {"start": start, "lr": rate, "seeds": len(seeds[start]), "step": end, "metric": metric}
                found.append({**place, **interval.as_dict()})
    return found


def curve(folder: Path, metric: str) -> list[float]:
    """Values of a metric by step."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        return [float(row[metric]) for row in csv.DictReader(handle) if row.get(metric)]


def budget(seeds: Mapping[str, Sequence[int]], rate: float) -> str:
    """Tokens decoded for the annotation that CFT and the random mask were trained on, and for the rollouts of one run."""
    manifest = AnnotationStore(SHIPPED / "tiny_arith").manifest()
    spent = manifest["compute"]
    counterfactual = spent["counterfactual_tokens"] + spent["speculative_tokens"]
    share = ROWS_TRAINED_ON / manifest["counts"]["annotated"]
    folders = [Case(start, seed).rl(rate) for start in STARTS for seed in seeds[start]]
    rollouts = np.mean([64 * sum(curve(folder, "train/response_tokens")) for folder in folders])
    return (
        f"annotation of {ROWS_TRAINED_ON} rows: {share * spent['solve_tokens']:,.0f} tokens of solutions, "
        f"{share * counterfactual:,.0f} of counterfactuals; rollouts of a run: {rollouts:,.0f}"
    )


def rates(records: Sequence[dict[str, Any]]) -> str:
    """Table of validation results of the rate search."""
    found = {(r["start"], r["lr"]): r["value"] for r in records if r["metric"] == VALIDATION}
    lines = [
        f"| validation pass@1 | {' | '.join(f'{rate:g}' for rate in RATES)} |",
        "|---|" + "---|" * len(RATES),
        *(f"| {NAMES[start]} | {' | '.join(f'{found[start, rate]:.3f}' for rate in RATES)} |" for start in STARTS),
        f"| mean | {' | '.join(f'{np.mean([found[start, rate] for start in STARTS]):.4f}' for rate in RATES)} |",
    ]
    return "\n".join(lines)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Table of test results before the first step and after the last."""
    rows = {(r["start"], r["step"], r["metric"]): r for r in records}
    lines = ["| start | seeds | after | " + " | ".join(TESTS.values()) + " |", "|---|---|---|" + "---|" * len(TESTS)]
    for start, step in product(STARTS, (0, MIDDLE, STEPS)):
        if (start, step, "accuracy") not in rows:
            continue
        found = [rows[start, step, metric] for metric in TESTS]
        cells = [f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in found]
        lines.append(f"| {NAMES[start]} | {found[0]['seeds']} | {step} | {' | '.join(cells)} |")
        if step == STEPS and "p_holm" in found[0]:
            minus = [
                f"{r['minus_sft']:+.3f} [{r['minus_low']:+.3f}, {r['minus_high']:+.3f}], p {r['p_holm']:.2g}"
                for r in found
            ]
            lines.append(f"| | | minus SFT | {' | '.join(minus)} |")
    return "\n".join(lines)


def figure(records: Sequence[dict[str, Any]]) -> Figure:
    found = Figure(figsize=(9.5, 6.4), layout="constrained")
    panels = {"accuracy": TESTS["accuracy"], "pass_at_8": TESTS["pass_at_8"], **TRAIN}
    for axes, (metric, title) in zip(found.subplots(2, 2).flat, panels.items(), strict=True):
        for i, start in enumerate(STARTS):
            rows = [r for r in records if r["metric"] == metric and r["start"] == start]
            _line(axes, rows, i, beside=not metric.startswith("train/"))
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step of GRPO", fontsize=9)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    found.legend(*found.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False)
    return found


def _line(axes: Axes, rows: Sequence[dict[str, Any]], i: int, *, beside: bool) -> None:
    """Plot one start. beside: points with error bars, slightly shifted; otherwise a band."""
    value, low, high = (np.array([row[name] for row in rows]) for name in ("value", "low", "high"))
    step = np.array([row["step"] for row in rows], dtype=np.float64)
    style: dict[str, Any] = {"color": COLORS[i], "label": NAMES[rows[0]["start"]], "linewidth": 1.6}
    if beside:
        axes.errorbar(step + 3.0 * (i - 2), value, yerr=[value - low, high - value], marker="o", capsize=2, **style)
    else:
        axes.plot(step, value, **style)
        axes.fill_between(step, low, high, color=COLORS[i], alpha=0.12, linewidth=0)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    report()
