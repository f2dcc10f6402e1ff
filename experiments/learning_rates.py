"""Which learning rate is best for each arm, by accuracy on validation problems: python -m experiments.learning_rates FOLDER

Reads results.json of every run below the folders (a multirun over optimizer.lr, evaluation.problems=0 suffices), prints
the mean over seeds of the best epoch's validation score, and the best rate of each arm. Test problems play no part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

RATE = "optimizer.lr"


def scores(folders: Sequence[Path]) -> dict[tuple[str, ...], dict[float, list[float]]]:
    """arm without its rate -> rate -> best validation score of each seed."""
    found: dict[tuple[str, ...], dict[float, list[float]]] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("results.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["stage"] != "train":
            continue
        arm = (result["arm"]["mask"], result["arm"]["weighting"], result["arm"]["loss.normalizer"])
        rate = float(result["arm"][RATE])
        found.setdefault(arm, {}).setdefault(rate, []).append(result["best_validation"]["value"])
    return found


def main(folders: Sequence[Path]) -> None:
    found = scores(folders)
    if not found:
        raise SystemExit(f"{', '.join(map(str, folders))}: no results.json of train.py below")
    table = Table("mask", "weighting", "normalizer", RATE, "validation, mean", "each seed", "")
    for arm, rates in found.items():
        best = max(rates, key=lambda rate: float(np.mean(rates[rate])))
        for rate in sorted(rates):
            each = " ".join(f"{score:.3f}" for score in rates[rate])
            table.add_row(*arm, f"{rate:g}", f"{np.mean(rates[rate]):.4f}", each, "best" if rate == best else "")
    Console().print(table)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
