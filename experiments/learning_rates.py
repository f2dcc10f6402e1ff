"""Best learning rate of each arm by its validation score: python -m experiments.learning_rates FOLDER

Reads results.json of every run below the folders (a multirun over optimizer.lr; evaluation.problems=0 suffices) and prints the
mean over seeds of the best epoch's validation score, and the best rate of each arm: the lowest loss, or the highest value of
any other metric. Test problems are not used. A seed that is missing at one rate but not at others counts as the worst score.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cft.errors import UserError
from cft.report.choice import searched
from cft.report.read import collect
from cft.report.text import printable

RATE = "optimizer.lr"
SHOWN = {"mask": "mask", "weighting": "weighting", "loss": "loss", "loss.normalizer": "normalizer"}


def main(folders: Sequence[Path]) -> None:
    runs = collect(folders)
    choices = [choice for choice, _ in searched([run for run in runs if run.results.stage == "train"], key=RATE)]
    names = list(dict.fromkeys(name for choice in choices for name in choice.arm))
    further = [n for n in names if n not in SHOWN and len({str(choice.arm.get(n)) for choice in choices}) > 1]
    table = Table(*SHOWN.values(), *further, RATE, "metric", "mean", "each seed", "")
    for choice in choices:
        about = [str(choice.arm.get(name, "")) for name in (*SHOWN, *further)]
        for rate, scores in choice.scores.items():
            each = " ".join(f"{score:.3f}" for score in scores)
            best = "best" if rate == choice.chosen else ""
            table.add_row(*about, f"{float(rate):g}", choice.metric, f"{np.mean(scores):.4f}", each, best)
    console = Console()
    console.print(table)
    for note in (*runs.notes, *(note for choice in choices for note in choice.notes)):
        console.print(printable(note), style="dim", markup=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders above them")
    try:
        main(parser.parse_args().folders)
    except UserError as error:
        raise SystemExit(printable(f"error: {error}")) from error
