"""Every pipeline of conf/pipeline on tiny_arith, reduced, with several seeds: python -m experiments.systems

The shipped annotation replaces steps `annotate` without settings. All trainings use ROWS of its rows and EPOCHS epochs at one
learning rate, and keep the best epoch by loss; all are tested on the same PROBLEMS test problems with greedy decoding. Learning
rates are not searched: the purpose is to show that each system runs to its end, and its result under one small budget.

Seeds run in turn, each with all systems and reinforcement learning last, so that the command can be interrupted at any time; if
started again, it runs only what is missing (`--only NAME ...`, `--seeds N`; `--minutes M` starts no run after that time).
Every finished run is a row of RESULTS, from which the page is written (`--page` does only this): accuracies with intervals over
seeds and problems, and differences from plain fine-tuning paired by both.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cft.cli.main import main as cft_main
from cft.config.compose import composed_tree, composing
from cft.console import console
from cft.evaluation.intervals import Interval, two_way_bootstrap
from cft.evaluation.paired_tests import paired_difference
from cft.files import write_bytes
from cft.shipped import CONF_DIR
from cft.types import Outcome
from experiments import token_classifier
from experiments.complete import read_minutes
from experiments.sequences import matrix, plain, signed
from experiments.sequences import table as matrix_tables

OUT = Path("outputs/systems")
RESULTS = Path("experiments/results/systems.csv")
PAGE = Path("docs/experiments/systems.md")
GUIDE = Path("docs/guides/pipelines.md")
SEEDS, ROWS, EPOCHS, RATE, PROBLEMS, RL_STEPS = 3, 320, 2, 1e-4, 150, 20
BASELINE = "sft"
ANNOTATION = "tiny_arith"  # shipped with the package
MADE = "${step:annotate.config.annotation}"

# Reduced settings by stage.
BUDGET: Mapping[str, Mapping[str, Any]] = {
    "annotate": {"limit": 100, "unit_size": 100, "verify.workers": 1},
    "train": {
        "data.max_rows": ROWS,
        "data.validation_fraction": 0.1,
        "trainer.max_epochs": EPOCHS,
        "data.batch_size": 16,
        "trainer.accumulate_grad_batches": 1,
        "optimizer.lr": RATE,
        "callbacks": "best_loss",
        "validation.problems": 0,
        "probe.every_n_steps": 0,
        "logger": "none",
        "verify.workers": 1,
    },
    "rl": {"steps": RL_STEPS, "save_every_n_steps": RL_STEPS, "logger": "none"},
    "evaluate": {"limit": PROBLEMS, "num_samples": 0, "verify.workers": 1},
}
LONGER = ("steps.annotate.limit=400", "steps.train.trainer.max_epochs=3")
# Additional or different settings of a system.
OWN: Mapping[str, tuple[str, ...]] = {
    BASELINE: ("steps.train.mask=all",),
    # "To convergence": the tags are new to the model. The second stage's rate is that of docs/experiments/all-methods.md.
    "sftkey": (
        "steps.stage_1.trainer.max_epochs=8",
        "steps.stage_1.optimizer.lr=3e-4",
        "steps.stage_2.optimizer.lr=3e-5",
    ),
    # Losses that compare responses use a tenth of the rate; the contrast's adapters have their own rate.
    "cdpo": ("steps.right.optimizer.lr=3e-4", "steps.wrong.optimizer.lr=3e-4", "steps.train.optimizer.lr=1e-5"),
    "cdpo_evidence": ("steps.train.optimizer.lr=3e-4",),
    "discriminative": ("steps.train.optimizer.lr=1e-5",),
    "implicit_reward_dpo": ("steps.dpo.optimizer.lr=1e-5",),
    # Enough training to forget something.
    "slca_continual": (*LONGER, "steps.train.optimizer.lr=1e-3"),
    "continual_sft": (*LONGER, "steps.train.optimizer.lr=1e-3"),
    "slca_continual_slow": (*LONGER, "steps.train.optimizer.lr=1e-4"),
    "continual_sft_slow": (*LONGER, "steps.train.optimizer.lr=1e-4"),
    # In place of a classifier from the hub.
    "sft_go_llmlingua2": (f"steps.classify.score.path={token_classifier.FOLDER}",),
}
PIPELINE_OF = {BASELINE: "cft", "slca_continual_slow": "slca_continual", "continual_sft_slow": "continual_sft"}
ROBUSTNESS = "tcd"  # does not train; its table: experiments/robustness.py
PAIRS = (("slca_continual", "continual_sft"), ("slca_continual_slow", "continual_sft_slow"))
SEQUENCES = tuple(name for pair in PAIRS for name in pair)  # with separate tables
ANCHORS = {ROBUSTNESS: "token-constraint-decoding", **dict.fromkeys(SEQUENCES, "data-sets-in-sequence")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tested model of a system. right: "1" or "0" per test problem, in the same order for all."""

    system: str
    step: str
    seed: int
    benchmark: str
    right: str
    minutes: float  # duration of all steps of the run


def systems(only: Sequence[str]) -> list[str]:
    """The systems to run: the baseline first, then by name."""
    names = [path.stem for path in sorted((CONF_DIR / "pipeline").glob("*.yaml"))]
    names = [*PIPELINE_OF, *names]
    if unknown := set(only) - set(names):
        raise SystemExit(f"--only: no such system: {', '.join(sorted(unknown))}; they are {', '.join(names)}")
    return [name for name in names if not only or name in only]


@cache
def written(pipeline: str) -> dict[str, Any]:
    """Contents of the pipeline's yaml and of the one that it extends."""
    with composing():
        return composed_tree("pipeline", [f"pipeline={pipeline}"]).written


def steps_of(pipeline: str) -> dict[str, dict[str, Any]]:
    """Settings of each step in the yaml."""
    return {name: node or {} for name, node in written(pipeline)["steps"].items()}


def words_of(system: str, *, seed: int) -> list[str]:
    """Arguments of cft pipeline."""
    pipeline = PIPELINE_OF.get(system, system)
    words = [f"pipeline={pipeline}", f"seed={seed}"]
    steps = steps_of(pipeline)
    shipped = steps.get("annotate") == {}
    for step, node in steps.items():
        if (step == "annotate" and shipped) or (step == "base" and (system, seed) != (BASELINE, 0)):
            words.append(f"~steps.{step}")  # the untrained model is measured once
            continue
        words += [f"steps.{step}.{key}={ANNOTATION}" for key, value in node.items() if shipped and value == MADE]
        budget = BUDGET.get(node.get("stage", step), {})
        kept = {key: value for key, value in budget.items() if shipped or key != "data.max_rows"}  # all rollouts
        words += [f"steps.{step}.{key}={value}" for key, value in kept.items()]
    return [*words, *OWN.get(system, ()), f"hydra.run.dir={folder_of(system, seed)}"]


def plan(chosen: Sequence[str], *, seeds: int) -> list[tuple[str, int]]:
    """(system, seed) in order; reinforcement learning, which takes longest, is last within each seed."""
    slow = {name for name in chosen if "rl" in steps_of(PIPELINE_OF.get(name, name))}
    return [(name, seed) for seed in range(seeds) for name in sorted(chosen, key=lambda name: name in slow)]


def folder_of(system: str, seed: int) -> Path:
    return OUT / f"{system}-seed{seed}"


def run(system: str, *, seed: int) -> bool:
    """Run a system with a seed; returns whether it finished."""
    folder = folder_of(system, seed)
    words = words_of(system, seed=seed)
    console.print(f"$ cft pipeline {' '.join(words)}", style="dim", markup=False, highlight=False)
    if str(token_classifier.FOLDER) in " ".join(words):
        token_classifier.write(token_classifier.FOLDER)
    argv, printed = sys.argv, io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = cft_main(["pipeline", *words])
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
    write_bytes(folder / "printed.log", printed.getvalue().encode())
    if status:
        console.print(f"{system}, seed {seed}: exit status {status}, see {folder / 'printed.log'}", markup=False)
    return not status


def rows_of(system: str, *, seed: int) -> Iterator[Row]:
    """Rows of a finished run."""
    folder = folder_of(system, seed)
    records = {path.stem: json.loads(path.read_bytes()) for path in sorted((folder / "steps").glob("*.json"))}
    minutes = sum(record["seconds"] or 0 for record in records.values()) / 60
    for name, record in records.items():
        for path in sorted((folder / name).rglob("samples.parquet")) if record["stage"] == "evaluate" else ():
            results = json.loads((path.parent / "results.json").read_bytes())
            yield Row(
                system=system,
                step=name,
                seed=seed,
                benchmark=results["benchmark"],
                right=verdicts(path),
                minutes=round(minutes, 2),
            )


def verdicts(path: Path) -> str:
    """Verdicts of the greedy responses by problem id."""
    samples = pq.read_table(path).to_pylist()
    greedy = {one["problem_id"]: one["outcome"] for one in samples if one["sample"] < 0}
    return "".join("1" if greedy[name] == Outcome.RIGHT else "0" for name in sorted(greedy))


# ---- the table


def read_rows() -> list[Row]:
    """Rows of RESULTS, [] if the file does not exist."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as lines:
        return [
            Row(**{**row, "seed": int(row["seed"]), "minutes": float(row["minutes"])}) for row in csv.DictReader(lines)
        ]


def write_rows(rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: (row.system, row.step, row.seed)))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(RESULTS, text.getvalue().encode())


def solved(rows: Sequence[Row]) -> dict[int, list[int]]:
    """Whether each problem is right, [problems] by seed."""
    return {row.seed: [int(sign) for sign in row.right] for row in rows}


def measured(rows: Sequence[Row], baseline: Sequence[Row]) -> tuple[Interval, Interval | None]:
    """Accuracy, and difference from the baseline on the common seeds and problems (None if there are none)."""
    own, other = solved(rows), solved(baseline)
    accuracy = two_way_bootstrap(np.array([own[seed] for seed in sorted(own)]), seed=0)
    both = sorted(set(own) & set(other))
    if not both or rows[0].benchmark != baseline[0].benchmark:
        return accuracy, None
    pair = [np.array([table[seed] for seed in both]) for table in (own, other)]
    return accuracy, paired_difference(*pair, pair_seeds=True).interval


def described() -> dict[str, tuple[str, str, str]]:
    """(source, steps, reconstructed parts) by pipeline, from the guide."""
    found = {}
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            for name in cells[0].replace("`", "").split(","):
                found[name.strip()] = (cells[1], re.sub(r"\]\([^)]*\)", "", cells[2]).replace("[", ""), cells[3])
    return found


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown table: for each system its final model first, with the description, then its earlier models."""
    columns = (
        "command",
        "source",
        "steps",
        "reconstructed or missing",
        "tested after",
        "seeds",
        "accuracy",
        "minus SFT",
    )
    yield f"| {' | '.join((*columns, 'minutes', 'minutes, complete'))} |"
    yield "|---" * 10 + "|"
    complete = read_minutes()
    texts = described() | {BASELINE: ("plain fine-tuning", "as `cft`", "")}
    baseline = [row for row in rows if row.system == BASELINE and row.step == "evaluate"]
    shown = {row.system for row in rows} - (set(PIPELINE_OF) - {BASELINE})
    for system in sorted(shown, key=lambda name: (name != BASELINE, name)):
        mine = [row for row in rows if row.system == system]
        steps = sorted({row.step for row in mine}, key=lambda name: (name != "evaluate", name))
        what = (f"`{command(system)}`", *texts.get(system, ("",) * 3))
        minutes = f"{min(row.minutes for row in mine):.1f} | {f'{complete[system]:.1f}' if system in complete else ''}"
        if system in (ROBUSTNESS, *SEQUENCES):
            seeds = 1 if system == ROBUSTNESS else len({row.seed for row in mine})
            yield f"| {' | '.join(what)} | {len(steps)} tests, [below](#{ANCHORS[system]}) | {seeds} |  |  | {minutes} |"
            continue
        for step in steps:
            own = [row for row in mine if row.step == step][: 1 if untrained(system, step) else None]
            accuracy, difference = measured(own, baseline)
            minus = "–" if difference is None or (system, step) == (BASELINE, "evaluate") else signed(difference)
            first = (*what, minutes) if step == steps[0] else (*[""] * 4, " | ")
            middle = f"`{step}` | {len(own)} | {plain(accuracy)} | {minus}"
            yield f"| {' | '.join(first[:4])} | {middle} | {first[4]} |"


def untrained(system: str, step: str) -> bool:
    """Whether a step tests the initial model, so that seeds repeat the same greedy responses."""
    return "checkpoint" not in steps_of(PIPELINE_OF.get(system, system))[step]


def command(system: str) -> str:
    """The whole system, with its own settings."""
    changes = OWN[system] if system == BASELINE else ()
    return " ".join(("cft pipeline", f"pipeline={PIPELINE_OF.get(system, system)}", *changes))


def sequences(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown tables of the systems that train on data sets in sequence."""
    data = list(written(SEQUENCES[0])["sequence"])
    right = {name: {(row.seed, row.step): row.right for row in rows if row.system == name} for name in SEQUENCES}
    found = {name: matrix(of, data, seeds=sorted({seed for seed, _ in of})) for name, of in right.items() if of}
    return matrix_tables(found, data, pairs=PAIRS)


def write_page(rows: Sequence[Row]) -> None:
    """Replace the tables between their marks in PAGE; the surrounding text is not generated."""
    text = PAGE.read_text(encoding="utf-8")
    for mark, lines in (("table", table(rows)), ("sequences", sequences(rows))):
        before, start, rest = text.partition(f"<!-- {mark} -->\n")
        end = f"<!-- end of {mark} -->\n"
        text = f"{before}{start}{chr(10).join(lines)}\n{end}{rest.partition(end)[2]}"
    write_bytes(PAGE, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no run is started after this time")
    parser.add_argument("--page", action="store_true", help="only write the page from the stored results")
    asked = parser.parse_args()
    started = time.monotonic()
    for system, seed in plan(systems(asked.only), seeds=0 if asked.page else asked.seeds):
        known = read_rows()
        late = time.monotonic() - started > 60 * asked.minutes
        if late or any((row.system, row.seed) == (system, seed) for row in known):
            continue
        if run(system, seed=seed):
            write_rows([*known, *rows_of(system, seed=seed)])
    write_page(read_rows())


if __name__ == "__main__":
    main()
