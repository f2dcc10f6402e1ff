"""What a comparison will take, told before it starts: measured on a few problems, annotated, trained on and tested by the
stages themselves, and extended to all of them.

Seconds grow with problems and rows; what a process costs to start, load a model and export is measured once a kind. Memory is
the most that a process of a step had; longer rows than those tried may need more, which a training estimates from its own
rows before its first step (`cft/training/memory.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cft.cli.job import composed
from cft.config.build import build
from cft.console import console
from cft.data.rows_as_problems import problems_of
from cft.files import write_json
from cft.pipelines.comparison import Design
from cft.pipelines.plan import Planner, Step, spelled_out
from cft.pipelines.records import Record
from cft.pipelines.runner import Runner
from cft.runs.results import RunResults

ESTIMATE = "estimate.json"
_NAME = "estimate"
_TESTED = 8  # problems
_VALIDATED = 2
_EPOCHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training of an arm, as measured. start: seconds of a process that are neither training nor testing."""

    seconds_per_row: float
    start: float
    export_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds by part, bytes at most.

    unknown: arms whose few steps failed; their time is that of the others.
    """

    problems: int
    rows: float
    parts: dict[str, float]
    memory: dict[str, int]
    disk: int
    unknown: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def show(self) -> None:
        table = Table(title="Estimate, from a few problems and steps", title_justify="left")
        table.add_column("part")
        table.add_column("time", justify="right")
        for name, seconds in self.parts.items():
            table.add_row(name, duration(seconds))
        table.add_row("all", duration(self.seconds), style="bold")
        console.print(table)
        used = ", ".join(f"{count / 1e9:.1f} GB of the {name}" for name, count in self.memory.items())
        console.print(
            f"Memory of a step at most: {used}; disk for what is kept: {self.disk / 1e9:.1f} GB", markup=False
        )
        for arm in self.unknown:
            console.print(
                f"{arm}: its few steps failed, see above; its time is taken to be that of the others", markup=False
            )


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(design: Design, runner: Runner, shared: Mapping[str, Any], *, probe: int, keep: str) -> Estimate:
    """Runs the few steps that are not done yet and writes what they say. probe: number of problems."""
    planner = Planner(runner.settings, shared)
    nodes = design.fixed()
    if design.annotates:
        nodes["annotate"] |= {"annotation": _NAME, "limit": probe}
    nodes["base"] |= {"limit": _TESTED}
    fixed = {name: planner.add(f"{_NAME}-{name}", node, check=False) for name, node in nodes.items()}
    trainings = {
        arm: planner.add(f"{_NAME}-{arm}", _few_steps(design, arm, probe=probe), check=False, may_fail=True)
        for arm in design.arms
    }
    steps = [step for step in (*fixed.values(), *trainings.values()) if step is not None]
    done = runner.run(steps, title="Estimate")
    found = _extended(design, runner, shared, fixed, trainings, done, keep=keep)
    write_json(runner.settings.folder / ESTIMATE, asdict(found) | {"seconds": found.seconds})
    return found


def _few_steps(design: Design, arm: str, *, probe: int) -> dict[str, Any]:
    few = {
        **({"data.annotation": _NAME} if design.annotates else {}),
        "data.max_rows": probe,
        "trainer.max_epochs": _EPOCHS,
        "validation.problems": _VALIDATED,
        "evaluation.problems": 0,
    }
    return design.training(arm, rate=design.rates[0], seed=0) | few


def _extended(
    design: Design,
    runner: Runner,
    shared: Mapping[str, Any],
    fixed: Mapping[str, Step | None],
    trainings: Mapping[str, Step | None],
    done: Mapping[str, Record],
    *,
    keep: str,
) -> Estimate:
    parts: dict[str, float] = {}
    base = fixed["base"]
    assert base is not None
    tested = RunResults.read(base.folder / "results.json")
    full = _full_config(design, runner, shared)
    problems, rows = 0, 0.0
    if (annotated := fixed.get("annotate")) is not None:
        manifest = json.loads((annotated.out / "manifest.json").read_bytes())
        spent = sum(value for name, value in manifest["compute"].items() if name.endswith("_seconds"))
        asked = max(1, manifest["counts"]["problems"])
        problems = _problems(design, runner, shared)
        parts["annotate"] = (done[annotated.name].seconds or 0.0) + spent / asked * max(0, problems - asked)
        rows = problems * manifest["counts"].get("annotated", 0) / asked
    seconds_per_test = (tested.seconds or 0.0) / max(1, tested.problems)
    start = max(0.0, (done[base.name].seconds or 0.0) - (tested.seconds or 0.0))
    tests = min(full["evaluation"]["problems"], full["tests"])
    validated = min(full["validation"]["problems"], full["validations"])
    # One greedy response of the 1 + num_samples that the test draws for each problem.
    greedy = seconds_per_test / (1 + base.config["num_samples"])
    parts["test the untrained model"] = start + seconds_per_test * tests
    # The few validations are in the time of a training, which then has one for all of the validation problems.
    measured = {
        arm: _measured(step, done, validation=_EPOCHS * _VALIDATED * greedy)
        for arm, step in trainings.items()
        if step is not None
    }
    known = [one for one in measured.values() if one is not None]
    if not rows:
        rows = max((one[1] for one in known), default=0.0)
    usual = (
        max((one[0].seconds_per_row for one in known), default=0.0),
        max((one[0].start for one in known), default=start),
    )
    searched = len(design.rates) * design.search_seeds if len(design.rates) > 1 else 0
    epochs = full["epochs"]
    for arm in design.arms:
        one = measured.get(arm)
        a_row, begins = (one[0].seconds_per_row, one[0].start) if one is not None else usual
        train = begins + epochs * (rows * a_row + validated * greedy)
        parts[f"{arm}: {searched} trainings to search a rate, {design.seeds} to test"] = (
            searched + design.seeds
        ) * train + design.seeds * tests * seconds_per_test
    exports = max((one[0].export_bytes for one in known), default=0)
    kept = {"results": 0, "exports": design.seeds, "all": 4 * (design.seeds + searched)}[
        keep
    ]  # weights, Adam's two states, export
    memory: dict[str, int] = {}
    for record in done.values():
        for name, count in record.peak_memory.items():
            memory[name] = max(memory.get(name, 0), count)
    return Estimate(
        problems=problems,
        rows=rows,
        parts=parts,
        memory=memory,
        disk=kept * len(design.arms) * exports,
        unknown=tuple(arm for arm, one in measured.items() if one is None),
    )


def _measured(step: Step, done: Mapping[str, Record], *, validation: float) -> tuple[Training, int] | None:
    """(a training, rows it had); None where it failed. validation: seconds of it that solved problems."""
    record = done[step.name]
    if not record.finished:
        return None
    results = RunResults.read(step.folder / "results.json")
    rows, seconds = int((results.data or {}).get("train_rows", 0)), results.train_seconds or 0.0
    return (
        Training(
            seconds_per_row=max(0.0, seconds - validation) / max(1, _EPOCHS * rows),
            start=max(0.0, (record.seconds or 0.0) - seconds),
            export_bytes=sum(path.stat().st_size for path in (step.folder / "export").glob("*")),
        ),
        rows,
    )


def _problems(design: Design, runner: Runner, shared: Mapping[str, Any]) -> int:
    """That will be annotated."""
    config = _inputs(Planner(runner.settings, shared).add("annotate", design.fixed()["annotate"], check=False), runner)
    there = len(problems_of(build(config.data)).of(config.split))
    return there if config.limit < 0 else min(config.limit, there)


def _full_config(design: Design, runner: Runner, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Of a tested training: its keys that the time depends on, and how many problems there are."""
    node = design.training(design.arms[0], rate=design.rates[0], seed=0) | {"data.annotation": _NAME}
    config = _inputs(Planner(runner.settings, shared).add("train", node, check=False), runner)
    splits = build(config.benchmark)
    return {
        "evaluation": {"problems": config.evaluation.problems},
        "validation": {"problems": config.validation.problems},
        "tests": len(splits.of("test")),
        "validations": len(splits.of("validation")),
        "epochs": max(1, config.trainer["max_epochs"]),
    }


def _inputs(step: Step | None, runner: Runner) -> Any:
    assert step is not None
    words = spelled_out(step.stage, step.overrides)
    return composed(step.stage, words, folder=step.folder, conf_dirs=runner.settings.conf_dirs, check=False)[0]
