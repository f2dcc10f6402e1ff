"""What `experiments.rl_starts` found: table, CSV and figure of what is finished.

    experiments/results/rl_starts.csv   start, seeds, step, metric: value with its 95 % interval, minus SFT (Holm over starts)
    docs/images/rl_starts.png           accuracy, pass@8, training reward and entropy over steps

Intervals of tests are over seeds and problems, those of `train/` over seeds and the steps of a bin of 20.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
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
from experiments.rl_starts import MIDDLE, RATES, SEARCH_SEED, SEARCH_STEPS, SEEDS, STARTS, STEPS, Case, best_rate

CSV, PNG = Path("experiments/results/rl_starts.csv"), Path("docs/images/rl_starts.png")
BASELINE = "sft"
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
ROWS_TRAINED_ON = 1000  # of the annotation: data.max_rows of experiment=tiny_arith_budget


def report() -> None:
    """Raises SystemExit where a start has no seed that is finished."""
    seeds = {start: [seed for seed in SEEDS if Case(start, seed).finished] for start in STARTS}
    if not all(seeds.values()):
        raise SystemExit(f"not every start has a seed that is finished yet: {seeds}")
    records = [*searched(), *tested(seeds), *trained(seeds)]
    with CSV.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(records)
    PNG.write_bytes(png_of(figure(records)))
    print(table(records))
    print(f"seeds {seeds}; {budget(seeds)}")


def searched() -> list[dict[str, Any]]:
    found = []
    for start in STARTS:
        for rate in RATES:
            interval = Case(start, SEARCH_SEED).search(rate).metrics["eval/pass_at_1"]
            metric = f"validation pass_at_1 at lr {rate:g}{', chosen' if rate == best_rate(start) else ''}"
            found.append({"start": start, "seeds": 1, "step": SEARCH_STEPS, "metric": metric, **interval})
    return found


def tested(seeds: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """A start is compared with SFT on the seeds that both have."""
    found = []
    for metric in TESTS:
        for step in (0, MIDDLE, STEPS):
            rows = []
            for start in STARTS:
                interval = two_way_bootstrap(per_problem(start, seeds[start], step, metric))
                place = {"start": start, "seeds": len(seeds[start]), "step": step, "metric": metric}
                rows.append({**place, **interval.as_dict()})
            others = [row for row in rows if row["start"] != BASELINE]
            for row in others:
                both = [seed for seed in seeds[row["start"]] if seed in seeds[BASELINE]]
                mine, theirs = (per_problem(start, both, step, metric) for start in (row["start"], BASELINE))
                contrast = paired_difference(mine, theirs, pair_seeds=True)
                interval = contrast.interval
                row |= {"minus_sft": interval.value, "minus_low": interval.low, "minus_high": interval.high}
                row["p"] = contrast.p
            for row, corrected in zip(others, holm([row["p"] for row in others]), strict=True):
                row["p_holm"] = corrected
            found += rows
    return found


def per_problem(start: str, seeds: Sequence[int], step: int, metric: str) -> NDArray[np.float64]:
    """[S, P]"""
    runs = [Case(start, seed).results(step) for seed in seeds]
    assert len({tuple(run.per_problem["id"]) for run in runs}) == 1, "the runs were tested on different problems"
    return np.array([run.per_problem[metric] for run in runs], dtype=np.float64)


def trained(seeds: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    found = []
    for metric in TRAIN:
        for start in STARTS:
            table_SN = np.array([curve(Case(start, seed), metric) for seed in seeds[start]])
            for end in range(BIN, STEPS + 1, BIN):
                interval = two_way_bootstrap(table_SN[:, end - BIN : end], rate=False)
                place = {"start": start, "seeds": len(seeds[start]), "step": end, "metric": metric}
                found.append({**place, **interval.as_dict()})
    return found


def curve(case: Case, metric: str) -> list[float]:
    """Of each step."""
    with (case.rl / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        return [float(row[metric]) for row in csv.DictReader(handle) if row.get(metric)]


def budget(seeds: Mapping[str, Sequence[int]]) -> str:
    """Tokens decoded for the annotation that CFT and the random mask were trained on, and for the rollouts of one run."""
    manifest = AnnotationStore(SHIPPED / "tiny_arith").manifest()
    spent = manifest["compute"]
    counterfactual = spent["counterfactual_tokens"] + spent["speculative_tokens"]
    share = ROWS_TRAINED_ON / manifest["counts"]["annotated"]
    rollouts = np.mean(
        [64 * sum(curve(Case(start, seed), "train/response_tokens")) for start in STARTS for seed in seeds[start]]
    )
    return (
        f"annotation of {ROWS_TRAINED_ON} rows: {share * spent['solve_tokens']:,.0f} tokens of solutions, "
        f"{share * counterfactual:,.0f} of counterfactuals; rollouts of a run: {rollouts:,.0f}"
    )


def table(records: Sequence[dict[str, Any]]) -> str:
    lines = ["| start | after | " + " | ".join(TESTS.values()) + " |", "|---|---|" + "---|" * len(TESTS)]
    for start in STARTS:
        for step in (0, MIDDLE, STEPS):
            cells = []
            for metric in TESTS:
                (row,) = [r for r in records if (r["start"], r["step"], r["metric"]) == (start, step, metric)]
                text = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                if step == STEPS and "p_holm" in row:
                    minus = f"{row['minus_sft']:+.3f} [{row['minus_low']:+.3f}, {row['minus_high']:+.3f}]"
                    text += f"<br>minus SFT {minus}, p {row['p_holm']:.2g}"
                cells.append(text)
            lines.append(f"| {NAMES[start]} | {step} | " + " | ".join(cells) + " |")
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
    """beside: points with bars, a little apart; else a band."""
    value, low, high = (np.array([row[name] for row in rows]) for name in ("value", "low", "high"))
    step = np.array([row["step"] for row in rows], dtype=np.float64)
    style: dict[str, Any] = {"color": COLORS[i], "label": NAMES[rows[0]["start"]], "linewidth": 1.6}
    if beside:
        axes.errorbar(step + 3.0 * (i - 2), value, yerr=[value - low, high - value], marker="o", capsize=2, **style)
    else:
        axes.plot(step, value, **style)
        axes.fill_between(step, low, high, color=COLORS[i], alpha=0.12, linewidth=0)


if __name__ == "__main__":
    report()
