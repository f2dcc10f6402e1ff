"""Estimates the cost of a comparison before it starts, by running the stages on a few problems and extrapolating.

The time of a training run is a fixed part (process start, model loading, first step, export) plus, per epoch, its rows,
validation and checkpoint. The time of a test is a fixed part plus a time per problem, determined from tests of two sizes. The
estimate assumes that the machine's load does not change; before each step, the remaining time is corrected by the duration of
the steps done (`Clock`). Memory is the peak of a step's process. Longer rows than those measured may need more; a training run
estimates this from its own rows before its first step (`cft/training/memory.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cft.annotation.store import AnnotationStore, find_annotation
from cft.cli.job import composed
from cft.config.build import build
from cft.console import console, duration, size
from cft.data.row_files import file_rows
from cft.data.rows_as_problems import problems_of
from cft.files import write_json
from cft.pipelines.comparison import Design
from cft.pipelines.plan import Planner, Step, spelled_out
from cft.pipelines.process import StepFailed
from cft.pipelines.records import Record
from cft.pipelines.reporting import REPORT
from cft.pipelines.runner import Runner
from cft.runs.results import RunResults

ESTIMATE = "estimate.json"
_NAME = "estimate"
_TESTED = (8, 24)  # numbers of problems of the two tests
_VALIDATED = 2
_EPOCHS = 2
_REPORT_TIME_PER_RUN = 0.03  # time of a report per additional run, as a fraction of that of a report on one run


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Measurements of one training run of an arm.

    Args:
        start: Seconds of its process outside of epochs.
        per_row: Seconds per row and epoch.
        per_epoch: Seconds per epoch without its rows, with a validation on few problems.
        rows: Number of its rows.
        export_bytes: Size of its export.
    """

    start: float
    per_row: float
    per_epoch: float
    rows: int
    export_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Testing:
    """Measurements of tests.

    Args:
        process: Seconds of the process outside of the test.
        begin: Seconds of a test independent of the number of problems.
        per_problem: Seconds per problem.
    """

    process: float
    begin: float
    per_problem: float

    def seconds(self, problems: int) -> float:
        return self.begin + problems * self.per_problem if problems else 0.0

    def per_greedy(self, samples: int) -> float:
        """Seconds of one greedy response, if tests decode 1 + `samples` responses per problem."""
        return self.per_problem / (1 + samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The estimated cost of a comparison.

    Args:
        problems: Number of problems.
        rows: Number of training rows.
        parts: Seconds by part of the comparison.
        steps: Seconds of one step of each kind, by the name of a step or a prefix of it.
        memory: Peak bytes by kind of memory.
        disk: Bytes of the kept weights.
        unknown: Arms whose short training run failed; the time of other arms is used for them.
    """

    problems: int
    rows: float
    parts: dict[str, float]
    steps: dict[str, float]
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
        used = ", ".join(f"{size(count)} of the {name}" for name, count in self.memory.items())
        console.print(f"Peak memory of a step: {used}; disk space of the kept files: {size(self.disk)}", markup=False)
        for arm in self.unknown:
            console.print(
                f"{arm}: its short training run failed, see above; the time of other arms is used for it", markup=False
            )


def estimate(design: Design, runner: Runner, shared: Mapping[str, Any], *, probe: int, keep: str) -> Estimate:
    """Measure on a few problems (steps that are done are skipped), and write the estimate.

    Args:
        design: the comparison.
        runner: runs the steps.
        shared: shared overrides.
        probe: number of problems to annotate and train on.
        keep: which weights are kept.

    Raises:
        StepFailed: no arm could be trained.
    """
    planner = Planner(runner.settings, shared)
    nodes = design.fixed()
    base = nodes.pop("base")
    if design.annotates:
        nodes["annotate"] |= {"annotation": _NAME, "limit": probe}
    few, more = _TESTED
    nodes |= {"base": base | {"limit": few}, "base-more": base | {"limit": more}}
    fixed = {name: planner.add(f"{_NAME}-{name}", node, check=False) for name, node in nodes.items()}
    trainings = {
        arm: planner.add(f"{_NAME}-{arm}", _few_steps(design, arm, probe=probe), check=False, may_fail=True)
        for arm in design.arms
    }
    page = planner.add(
        f"{_NAME}-{REPORT}", {"stage": REPORT, "folders": [str(runner.settings.folder / f"{_NAME}-base")]}
    )
    steps = [step for step in (*fixed.values(), *trainings.values(), page) if step is not None]
    done = runner.run(steps, title="Estimate")
    measured = {arm: _measured(step, done) for arm, step in trainings.items() if step is not None}
    if not any(measured.values()):
        raise StepFailed("no arm could be trained on a few rows, see above; no other step was started")
    testing = _testing([step for name, step in fixed.items() if step is not None and name.startswith("base")], done)
    found = _extended(
        _Full.of(design, runner, shared), design, fixed.get("annotate"), measured, testing, done, keep, probe
    )
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
    full: _Full,
    design: Design,
    annotate: Step | None,
    measured: Mapping[str, Training | None],
    testing: Testing,
    done: Mapping[str, Record],
    keep: str,
    probe: int,
) -> Estimate:
    known = [one for one in measured.values() if one is not None]
    parts, steps = dict[str, float](), dict[str, float]()
    there = full.rows
    if annotate is not None:
        manifest = json.loads((annotate.out / "manifest.json").read_bytes())
        spent = sum(value for name, value in manifest["compute"].items() if name.endswith("_seconds"))
        asked = max(1, manifest["counts"]["problems"])
        annotated = manifest["counts"].get("annotated", 0)
        parts["annotate"] = (done[annotate.name].seconds or 0.0) + spent / asked * max(0, full.problems - asked)
        steps["annotate"] = parts["annotate"]
        there, probe = round(full.problems * annotated / asked), min(probe, annotated)
    # The same fraction of rows is used as in the measurement: some are benchmark problems, too long or held out.
    wanted = there if full.max_rows < 0 else min(full.max_rows, there)
    rows = wanted * max((one.rows / max(1, min(probe, there)) for one in known), default=0.0)
    steps["base"] = parts["test the untrained model"] = testing.process + testing.seconds(full.tests)
    searched = len(design.rates) * design.search_seeds if len(design.rates) > 1 else 0
    validation = max(0, full.validations - _VALIDATED) * testing.per_greedy(full.samples)
    for arm in design.arms:
        one = measured.get(arm) or _slowest(known, start=testing.process)
        train = one.start + full.epochs * (rows * one.per_row + one.per_epoch + validation)
        steps[f"search-{arm}"], steps[arm] = train, train + testing.seconds(full.tests)
        parts[f"{arm}: {searched} trainings to search a rate, {design.seeds} to test"] = (
            searched * train + design.seeds * steps[arm]
        )
    reported = done[f"{_NAME}-{REPORT}"].seconds or 0.0
    steps[REPORT] = parts[REPORT] = reported * (1 + _REPORT_TIME_PER_RUN * len(design.arms) * (searched + design.seeds))
    exports = max((one.export_bytes for one in known), default=0)
    # Weights, two Adam states and export.
    kept = {"results": 0, "exports": design.seeds, "all": 4 * (design.seeds + searched)}[keep]
    memory: dict[str, int] = {}
    for record in done.values():
        for name, count in record.peak_memory.items():
            memory[name] = max(memory.get(name, 0), count)
    return Estimate(
        problems=full.problems,
        rows=rows,
        parts=parts,
        steps=steps,
        memory=memory,
        disk=kept * len(design.arms) * exports,
        unknown=tuple(arm for arm, one in measured.items() if one is None),
    )


def _slowest(known: Sequence[Training], *, start: float) -> Training:
    """Measurements for an arm whose own training run failed: the slowest of the others."""
    return Training(
        start=max((one.start for one in known), default=start),
        per_row=max((one.per_row for one in known), default=0.0),
        per_epoch=max((one.per_epoch for one in known), default=0.0),
        rows=0,
        export_bytes=0,
    )


def _measured(step: Step, done: Mapping[str, Record]) -> Training | None:
    """Measurements of a training step, None if it failed."""
    record = done[step.name]
    if not record.finished:
        return None
    results = RunResults.read(step.folder / "results.json")
    rows, spent = int((results.data or {}).get("train_rows", 0)), results.spent or {}
    first = min(rows, int(step.config["data"]["batch_size"]))
    per_row = spent.get("later_batches", 0.0) / max(1, _EPOCHS * rows - first)
    batches = spent.get("first_batch", 0.0) + spent.get("later_batches", 0.0)
    per_epoch = max(0.0, (results.train_seconds or 0.0) - batches) / _EPOCHS
    return Training(
        start=max(0.0, (record.seconds or 0.0) - _EPOCHS * (rows * per_row + per_epoch)),
        per_row=per_row,
        per_epoch=per_epoch,
        rows=rows,
        export_bytes=sum(path.stat().st_size for path in (step.folder / "export").glob("*")),
    )


def _testing(steps: Sequence[Step], done: Mapping[str, Record]) -> Testing:
    """Measurements of tests. steps: tests with few and with more problems; the numbers are equal if there are no more."""
    few, more = (RunResults.read(step.folder / "results.json") for step in steps)
    process = min(
        max(0.0, (done[s.name].seconds or 0.0) - (r.seconds or 0.0)) for s, r in zip(steps, (few, more), strict=True)
    )
    if more.problems <= few.problems:
        return Testing(process=process, begin=0.0, per_problem=(few.seconds or 0.0) / max(1, few.problems))
    per_problem = max(0.0, (more.seconds or 0.0) - (few.seconds or 0.0)) / (more.problems - few.problems)
    return Testing(
        process=process, begin=max(0.0, (more.seconds or 0.0) - per_problem * more.problems), per_problem=per_problem
    )


# ---- the full comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class _Full:
    """Sizes of the full comparison. rows: of an existing annotation, or user-provided ones."""

    problems: int
    rows: int
    max_rows: int
    epochs: int
    validations: int
    tests: int
    samples: int

    @classmethod
    def of(cls, design: Design, runner: Runner, shared: Mapping[str, Any]) -> _Full:
        planner = Planner(runner.settings, shared)
        problems = 0
        if design.annotates:
            asked = _inputs(planner.add("annotate", design.fixed()["annotate"], check=False), runner)
            there = len(problems_of(build(asked.data)).of(asked.split))
            problems = there if asked.limit < 0 else min(asked.limit, there)
        node = design.training(design.arms[0], rate=design.rates[0], seed=0)
        config = _inputs(
            planner.add("train", node | ({"data.annotation": _NAME} if design.annotates else {}), check=False), runner
        )
        splits = build(config.benchmark)
        return cls(
            problems=problems,
            rows=0 if design.annotates else _rows_of(config, design.annotation),
            max_rows=int(config.data["max_rows"]),
            epochs=max(1, int(config.trainer["max_epochs"])),
            validations=_count_of(config.validation.problems, len(splits.of("validation"))),
            tests=_count_of(config.evaluation.problems, len(splits.of("test"))),
            samples=int(config.evaluation.num_samples),
        )


def _count_of(wanted: int, there: int) -> int:
    return there if wanted < 0 else min(wanted, there)


def _rows_of(config: Any, annotation: str) -> int:
    """Number of rows of an existing annotation or of user-provided rows. config: of a training step."""
    if annotation:
        store = AnnotationStore(find_annotation(annotation, annotations_dir=config.annotations_dir))
        return int(store.manifest()["counts"].get("annotated", 0))
    data = config.data
    rows = file_rows(data["path"], config=data["config"], revision=data["revision"], split=data["split"])
    return sum(1 for _ in rows)


def _inputs(step: Step | None, runner: Runner) -> Any:
    assert step is not None
    words = spelled_out(step.stage, step.overrides)
    return composed(step.stage, words, folder=step.folder, conf_dirs=runner.settings.conf_dirs, check=False)[0]
