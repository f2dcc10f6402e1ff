"""Which learning rate is best for each arm, by its score on validation data: python -m experiments.learning_rates FOLDER

Reads results.json of every run below the folders (a multirun over optimizer.lr, evaluation.problems=0 suffices), prints
the mean over seeds of the best epoch's validation score, and the best rate of each arm: the lowest loss or the highest
of any other metric. Test problems play no part. A seed that other rates have and this one lacks counts as the worst score.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cft.report.choice import with_every_seed
from cft.report.settings import distinguished
from cft.report.text import printable
from cft.report.unfinished import notes_on

RATE = "optimizer.lr"
SHOWN = {"mask": "mask", "weighting": "weighting", "loss": "loss", "loss.normalizer": "normalizer"}
Rates = dict[float, list[float]]


def scores(folders: Sequence[Path]) -> tuple[str, list[tuple[dict[str, Any], Rates]], list[str]]:
    """(metric, for each arm without its rate: rate -> best validation score of each seed, notes on what is missing)."""
    paths = sorted(path for folder in folders for path in folder.rglob("results.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    results = [result for result in results if result["stage"] == "train"]
    if not results:
        raise SystemExit(f"{', '.join(map(str, folders))}: no results.json of train.py below")
    metrics = sorted({result["best_validation"]["metric"] for result in results})
    if len(metrics) > 1:
        raise SystemExit(
            f"The runs chose their best epoch by {' and '.join(metrics)}, which cannot be compared; give the folders of "
            "runs with one callbacks.best.monitor"
        )
    arms: dict[str, tuple[dict[str, Any], dict[float, dict[int, float]]]] = {}
    for result, arm in zip(results, distinguished([(r["arm"], r.get("settings")) for r in results]), strict=True):
        rest = {name: value for name, value in arm.items() if name != RATE}
        _, rates = arms.setdefault(json.dumps(rest, sort_keys=True), (rest, {}))
        value = result["best_validation"]["value"]  # null: it was not finite
        rates.setdefault(float(arm[RATE]), {})[result["seed"]] = _worst(metrics[0]) if value is None else value
    found, notes = [], notes_on(folders)
    for arm, rates in arms.values():
        whole, lacking = with_every_seed(rates, worst=_worst(metrics[0]), key=RATE)
        found.append((arm, whole))
        about = " ".join(str(arm[name]) for name in SHOWN if name in arm)
        notes += [f"{about}: {text}." for text in lacking]
    return metrics[0], found, notes


def best_rate(rates: Rates, *, metric: str) -> float | None:
    """The rate whose mean over seeds is best; None where each lacks a seed."""
    if all(_worst(metric) in each for each in rates.values()):
        return None
    return (min if _is_loss(metric) else max)(rates, key=lambda rate: float(np.mean(rates[rate])))


def _is_loss(metric: str) -> bool:
    return "loss" in metric


def _worst(metric: str) -> float:
    return float("inf") if _is_loss(metric) else float("-inf")


def main(folders: Sequence[Path]) -> None:
    metric, arms, notes = scores(folders)
    names = list(dict.fromkeys(name for arm, _ in arms for name in arm))
    further = [n for n in names if n not in SHOWN and len({json.dumps(arm.get(n)) for arm, _ in arms}) > 1]
    table = Table(*SHOWN.values(), *further, RATE, f"{metric}, mean", "each seed", "")
    for arm, rates in arms:
        best = best_rate(rates, metric=metric)
        about = [str(arm.get(name, "")) for name in (*SHOWN, *further)]
        for rate in sorted(rates):
            each = " ".join(f"{score:.3f}" for score in rates[rate])
            table.add_row(*about, f"{rate:g}", f"{np.mean(rates[rate]):.4f}", each, "best" if rate == best else "")
    Console().print(table)
    for note in notes:
        Console().print(printable(note), style="dim", markup=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders above them")
    main(parser.parse_args().folders)
