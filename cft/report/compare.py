"""Runs -> arms -> a comparison with intervals: what the tables, the figure and the page are made of.

A run's `results.json` (written by `cft train` and `cft evaluate` into its folder):

    schema 1; stage "train" or "evaluate"; run; seed; benchmark; split; problems
    arm          what tells the run from others, but for the seed: {"model": ..., "mask": ..., "optimizer.lr": ...};
                 every option of the method, and every value of it that is not the option's own (`cft/runs/arm.py`)
    metrics      {"eval/accuracy": {"value", "low", "high"}, ...}; the interval is over problems
    per_problem  {"id": [...], "correct": [0 or 1, ...], further metrics by name}
    settings     every value of the config that training depends on, by its dotted name; identity: their hash
    evaluation   how the responses were made and judged; base: metrics and per_problem of the untrained model or null
    not_run      ids of problems whose prompt leaves no room: in no rate; verdicts: greedy responses by outcome

An arm is all runs with the same `arm` and settings; settings that differ stand beside the arm's entries. Its interval
is the two-way bootstrap over seeds and problems where the values of each problem are known (`per_problem`), else over
seeds, else a single run's own. Arms are compared on the problems that all share, solved and judged in the same way;
anything else is refused, naming the arms. Arms trained with another budget, normaliser or data are marked, or refused if strict
(`cft/report/contrasts.py`). An arm has one label in all comparisons of a report, and no other arm has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cft.evaluation.intervals import RATE, Interval, bootstrap_interval, is_unbounded, two_way_bootstrap
from cft.report.arms import (
    ACCURACY,
    BASE,
    Arm,
    Comparison,
    Measured,
    ReportError,
    Run,
    Runs,
    Scope,
    identity_of,
    is_base,
    values_table,
)
from cft.report.contrasts import contrasted
from cft.report.curves import at_best_epoch
from cft.report.names import name_of, order_of, said
from cft.report.settings import distinguished
from cft.report.unfinished import notes_on
from cft.runs.results import TRAINING_FACTS

_REQUIRED = ("stage", "run", "arm", "seed", "benchmark", "split", "metrics", "per_problem")
# How and on what an arm was measured is no part of what it is: `evaluation` and the problem ids are compared instead.
_CONDITIONS = frozenset(
    (
        *("benchmark", "split", "limit", "checkpoint", "engine", "verifier", "verify", "evaluation", "logger", "hydra"),
        *("num_samples", "temperature", "top_p", "max_new_tokens", "trainer.enable_progress_bar", "device"),
    )
)


def collect(folders: Sequence[Path]) -> Runs:
    """All results below the folders, each once, in the order of their paths; notes on runs that left none."""
    paths: dict[Path, None] = {}
    for folder in folders:
        if not folder.exists():
            raise ReportError(f"{folder}: no such folder; expected run folders of cft train or cft evaluate")
        found = [folder] if folder.is_file() else sorted(folder.rglob("results.json"))
        paths |= dict.fromkeys(path.resolve() for path in found)
    notes = notes_on(folders)
    if not paths:
        where = ", ".join(map(str, folders))
        message = f"{where}: no results.json below; it is written when a run of cft train or cft evaluate ends"
        raise ReportError(" ".join([f"{message}.", *notes]) if notes else message)
    return Runs(map(_at_best, _with_trainings([_read(path) for path in paths])), notes=notes)


def compare(runs: Iterable[Run], *, seed: int = 0, strict: bool = False) -> list[Comparison]:
    """One comparison for each benchmark and split. seed: of the bootstrap. strict: refuse what would be marked."""
    notes = runs.notes if isinstance(runs, Runs) else ()
    runs = _apart(list(runs))
    labels = _trained_labels(runs)
    by_place: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_place.setdefault(run.measured_on, []).append(run)
    comparisons = [_compare(place, group, labels=labels, seed=seed) for place, group in sorted(by_place.items())]
    comparisons = [replace(comparison, notes=(*comparison.notes, *notes)) for comparison in comparisons]
    return contrasted(comparisons, seed=seed, strict=strict)


def _read(path: Path) -> Run:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); run the job again, or leave its folder out") from error
    if not isinstance(facts, dict) or facts.get("schema") != 1:
        found = facts.get("schema") if isinstance(facts, dict) else type(facts).__name__
        raise ReportError(f"{path}: expected results of schema 1, found {found}; leave the folder out")
    if missing := [key for key in _REQUIRED if key not in facts]:
        raise ReportError(f"{path}: missing {', '.join(missing)}; run the job again, or leave its folder out")
    columns = facts["per_problem"]
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or len(set(columns.get("id", []))) != len(columns.get("id", [])):
        raise ReportError(f"{path}: per_problem needs columns of one length and different ids; run the job again")
    arm = {name: value for name, value in facts["arm"].items() if not _is_condition(name)}
    return Run(path.parent, arm, int(facts["seed"]), _intervals(facts["metrics"]), columns, facts, path.parent)


def _with_trainings(runs: Sequence[Run]) -> list[Run]:
    """Evaluations of a checkpoint whose training is among the runs have its log, and the facts that they did not take over
    themselves: earlier ones took none."""
    trained: dict[tuple[Any, ...], Run] = {
        (run.facts["run"], run.facts["identity"], run.seed): run
        for run in runs
        if run.facts["stage"] == "train" and run.facts.get("identity")
    }
    found = []
    for run in runs:
        links = (run.facts.get("lineage") or {}).get("inputs", ()) if run.facts["stage"] == "evaluate" else ()
        origins = [link.get("came_from") or {} for link in links if link.get("kind") == "checkpoint"]
        keys = [(origin.get("run"), origin.get("identity"), origin.get("seed")) for origin in origins]
        if (training := next((trained[key] for key in keys if key in trained), None)) is not None:
            facts = {name: training.facts[name] for name in TRAINING_FACTS if name in training.facts}
            run = replace(run, facts=facts | run.facts, logs=training.folder)
        found.append(run)
    return found


def _at_best(run: Run) -> Run:
    """With its values on validation rows at the best epoch, if it was evaluated."""
    if not run.metrics or not isinstance(run.facts.get("best_epoch"), int):
        return run
    measured = at_best_epoch(run.logs / "metrics.csv", epoch=run.facts["best_epoch"])
    return replace(run, metrics=run.metrics | {name: Interval(v, v, v) for name, v in measured.items()})


def _is_condition(name: str) -> bool:
    return name in _CONDITIONS or name.split(".")[0].split("/")[0] in _CONDITIONS


def _intervals(metrics: dict[str, Any]) -> dict[str, Interval]:
    """Metrics that have a value: null stands for "not defined", such as the entropy of empty responses."""
    fields = ("value", "low", "high")
    return {
        name: Interval(*(float(entry[field]) for field in fields))
        for name, entry in metrics.items()
        if all(entry.get(field) is not None for field in fields)
    }


def _apart(runs: list[Run]) -> list[Run]:
    """Trained arms told apart by settings over all benchmarks and splits: two trainings are two arms wherever measured."""
    trained = [run for run in runs if run.metrics and "mask" in run.arm]
    told = {id(run): other for run, other in zip(trained, _distinguished(trained), strict=True)}
    return [told.get(id(run), run) for run in runs]


def _trained_labels(runs: list[Run]) -> dict[str, str]:
    """identity -> label of every trained arm that was measured."""
    arms = {identity_of(run.arm): run.arm for run in runs if run.metrics and "mask" in run.arm}
    keys = list(arms.values())
    return dict(zip(arms, _labels(keys, _varying(keys)), strict=True))


def _compare(place: tuple[str, str], runs: list[Run], *, labels: dict[str, str], seed: int) -> Comparison:
    """labels: of the trained arms of all comparisons, by identity."""
    notes: list[str] = []
    measured = [run for run in runs if run.metrics]
    if not measured:
        where = "/".join(filter(None, place)) or "no benchmark"
        raise ReportError(
            f"none of the {len(runs)} runs on {where} was evaluated; set evaluation.problems above 0, or compare what was "
            "measured on validation problems: python -m experiments.learning_rates <folder>"
        )
    if len(measured) < len(runs):
        notes.append(_left_out(len(runs) - len(measured), "without an evaluation"))
    kept = _widest(_newest(_distinguished(measured), notes), notes)
    groups: dict[str, list[Run]] = {}
    for run in kept:
        groups.setdefault(identity_of(run.arm), []).append(run)
    keys = [group[0].arm for group in groups.values()]
    varying = _varying(keys)
    other = [key for key in keys if "mask" not in key]
    other_labels = _labels(other, tuple(dict.fromkeys(name for key in other for name in key)))
    labels = labels | dict(zip(map(identity_of, other), other_labels, strict=True))
    _require_comparable(kept, labels)
    kept = _newest(_on_shared_problems(kept, labels, notes), notes)
    groups = {identity: [run for run in kept if identity_of(run.arm) == identity] for identity in groups}
    arms = []
    for identity, group in groups.items():
        by_seed = tuple(sorted(group, key=lambda run: run.seed))
        arms.append(Arm(labels[identity], by_seed[0].arm, by_seed, _measure(by_seed, seed)))
    if not any(is_base(arm.key) for arm in arms) and (
        base := _stated_base(kept, order=kept[0].per_problem.get("id", []))
    ):
        arms.append(base)
    arms.sort(key=_rank)
    trained_on = [run.facts.get("data") or {} for run in kept]
    if len({data["fingerprint"] for data in trained_on if data.get("fingerprint")}) > 1:
        notes.append("The arms were trained on different annotations.")
    elif len({data["rows_sha256"] for data in trained_on if data.get("rows_sha256")}) > 1:
        notes.append("The runs were trained on different rows: the annotation grew, or rows were chosen otherwise.")
    notes += _seeds_note(arms)
    if any(len(arm.runs) == 1 for arm in arms if not is_base(arm.key)):
        notes.append("An arm with one seed has an interval over problems alone: it leaves out the spread of training.")
    problems = len(kept[0].per_problem.get("id", [])) if kept else 0
    return Comparison(*place, problems, tuple(arms), varying, tuple(notes))


def _left_out(count: int, which: str) -> str:
    return f"{count} {'run' if count == 1 else 'runs'} {which} {'is' if count == 1 else 'are'} left out."


def _seeds_note(arms: Sequence[Arm]) -> list[str]:
    """Arms of other seeds are not paired by seed, and a seed that is missing may be one that failed."""
    by_seeds: dict[str, list[str]] = {}
    for arm in arms:
        if "mask" in arm.key:
            by_seeds.setdefault(", ".join(str(run.seed) for run in arm.runs), []).append(arm.label)
    if len(by_seeds) < 2:
        return []
    told = "; ".join(f"{seeds} ({' / '.join(labels)})" for seeds, labels in by_seeds.items())
    return [f"The arms were not trained with the same seeds: {told}. Such arms are not paired by seed."]


def _distinguished(runs: list[Run]) -> list[Run]:
    arms = distinguished([(run.arm, run.facts.get("settings")) for run in runs])
    return [replace(run, arm=arm) for run, arm in zip(runs, arms, strict=True)]


def _newest(runs: list[Run], notes: list[str]) -> list[Run]:
    """One run for each arm and seed: a repetition of the same seed is no new seed.

    What was measured otherwise is no repetition: it stays, to be refused as not comparable.
    """
    latest: dict[tuple[str, int, str], Run] = {}
    for run in sorted(runs, key=lambda run: ((run.folder / "results.json").stat().st_mtime_ns, str(run.folder))):
        settings = {name: value for name, value in (run.facts.get("evaluation") or {}).items() if name != "seed"}
        latest[identity_of(run.arm), run.seed, _text([run.per_problem.get("id"), settings])] = run
    if len(latest) < len(runs):
        notes.append(_left_out(len(runs) - len(latest), "of an arm and seed that a newer one has"))
    return [run for run in runs if any(run is kept for kept in latest.values())]


def _require_comparable(runs: list[Run], labels: dict[str, str]) -> None:
    """Same text of the problems, same sampling, same verifier."""
    for run in runs[1:]:
        first, names = runs[0], (labels[identity_of(runs[0].arm)], labels[identity_of(run.arm)])
        first_hash, own_hash = first.facts.get("problems_sha256"), run.facts.get("problems_sha256")
        if first_hash and own_hash and first_hash != own_hash:
            raise ReportError(
                f"{names[0]!r} ({first.folder}) and {names[1]!r} ({run.folder}) were measured on problems of the same ids "
                f"but different text or answers (sha256 {first_hash[:12]} and {own_hash[:12]}); evaluate both on the same data"
            )
        ours, theirs = first.facts.get("evaluation"), run.facts.get("evaluation")
        if ours and theirs:
            differing = [k for k in sorted({*ours, *theirs} - {"seed"}) if ours.get(k) != theirs.get(k)]
            if differing:
                values = ", ".join(f"{key}: {ours.get(key)} and {theirs.get(key)}" for key in differing)
                raise ReportError(f"{names[0]!r} ({first.folder}) and {names[1]!r} ({run.folder}) differ in {values}")


def _widest(runs: list[Run], notes: list[str]) -> list[Run]:
    """Without runs that measured an arm and seed on fewer of the problems that another run measured it on."""

    def told(run: Run) -> tuple[str, int, str]:
        settings = {name: value for name, value in (run.facts.get("evaluation") or {}).items() if name != "seed"}
        return identity_of(run.arm), run.seed, _text(settings)

    def is_within(run: Run, other: Run) -> bool:
        return told(run) == told(other) and set(run.per_problem.get("id", [])) < set(other.per_problem.get("id", []))

    kept = [run for run in runs if not any(is_within(run, other) for other in runs)]
    if len(kept) < len(runs):
        notes.append(_left_out(len(runs) - len(kept), "of an arm and seed that another one measured on more problems"))
    return kept


def _on_shared_problems(runs: list[Run], labels: dict[str, str], notes: list[str]) -> list[Run]:
    """The runs as if each had been measured on the problems that all share. Raises ReportError where there are none."""
    asked = [run.per_problem.get("id", []) for run in runs]
    if all(ids == asked[0] for ids in asked):
        return runs
    shared = set(asked[0]).intersection(*asked[1:])
    if not shared:
        first, other = next(((a, b) for a in runs for b in runs if not _shared_ids(a, b)), (runs[0], runs[-1]))
        raise ReportError(
            f"{labels[identity_of(first.arm)]!r} ({first.folder}) and {labels[identity_of(other.arm)]!r} ({other.folder}) "
            f"were measured on different problems: {len(first.per_problem.get('id', []))} and "
            f"{len(other.per_problem.get('id', []))}, 0 in common; evaluate both with the same benchmark, split and limit"
        )
    order = [problem for problem in asked[0] if problem in shared]
    sizes = sorted({len(ids) for ids in asked})
    notes.append(
        f"Compared on the {len(order)} problems that all {len(runs)} runs share; they were measured on "
        f"{' or '.join(map(str, sizes))}. Values that are not recorded problem by problem are left out."
    )
    return [_restricted(run, order) for run in runs]


def _shared_ids(a: Run, b: Run) -> set[str]:
    return set(a.per_problem.get("id", [])) & set(b.per_problem.get("id", []))


def _restricted(run: Run, order: Sequence[str]) -> Run:
    metrics, columns = restricted(run.metrics, run.per_problem, order)
    return replace(run, metrics=metrics, per_problem=columns)


def restricted(
    metrics: dict[str, Interval], per_problem: dict[str, list[Any]], order: Sequence[str]
) -> tuple[dict[str, Interval], dict[str, list[Any]]]:
    """Metrics and values on the problems of `order` alone; a metric whose values are not known by problem is left out, but
    for those of rows (val/)."""
    place = {problem: i for i, problem in enumerate(per_problem.get("id", []))}
    columns = {name: [column[place[problem]] for problem in order] for name, column in per_problem.items()}
    found = {}
    for name, interval in metrics.items():
        column = columns.get("correct" if name == ACCURACY else name.removeprefix("eval/"))
        if name.startswith("val/"):
            found[name] = interval
        elif column and all(isinstance(value, int | float) for value in column):
            found[name] = bootstrap_interval(column, rate=False if is_unbounded(name) else None)
    return found, columns


def _measure(runs: tuple[Run, ...], seed: int) -> dict[str, Measured]:
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    return {name: _measured(name, runs, seed) for name in sorted(names, key=lambda name: name != ACCURACY)}


def _measured(name: str, runs: tuple[Run, ...], seed: int) -> Measured:
    table, unbounded = values_table(name, runs), is_unbounded(name)
    options: dict[str, Any] = (
        {"seed": seed, "within": None, "rate": False} if unbounded else {"seed": seed, "within": RATE}
    )
    if table is not None:
        scope: Scope = "seeds and problems" if len(runs) > 1 else "problems"
        return Measured(two_way_bootstrap(table, **options), scope)
    if len(runs) == 1:
        return Measured(runs[0].metrics[name], "one value" if name.startswith("val/") else "problems")
    column = np.array([[run.metrics[name].value] for run in runs])
    return Measured(two_way_bootstrap(column, **options), "seeds")


def _stated_base(runs: list[Run], *, order: Sequence[str]) -> Arm | None:
    """The untrained model as the trained runs recorded it, if they agree, on the problems of `order`."""
    stated = {_text(run.facts["base"]): run for run in runs if run.facts.get("base")}
    if len(stated) != 1:
        return None
    run = next(iter(stated.values()))
    base = run.facts["base"]
    metrics, columns = _intervals(base["metrics"]), base["per_problem"]
    if not set(order) <= set(columns["id"]):
        return None
    if columns["id"] != list(order):
        metrics, _ = restricted(metrics, columns, order)
    measured = {name: Measured(interval, "problems") for name, interval in metrics.items()}
    return Arm(BASE, {"model": run.arm.get("model")}, (), measured)


def _varying(keys: list[dict[str, Any]]) -> tuple[str, ...]:
    """Names whose values differ among the arms cft train made; of other models only what model it is."""
    trained = [key for key in keys if "mask" in key] or keys
    names = dict.fromkeys(["model", *(name for key in trained for name in key)])
    return tuple(
        name for name in names if len({_text(key.get(name)) for key in (keys if name == "model" else trained)}) > 1
    )


def _labels(keys: list[dict[str, Any]], varying: tuple[str, ...]) -> list[str]:
    """A short name an arm, with as many of the differing values behind it as it takes to tell the arms apart."""
    labels = [name_of(key) for key in keys]
    for key_name in [name for name in varying if name not in ("mask", "weighting", "loss")]:
        if len(set(labels)) == len(labels):
            break
        words = [said(key_name, key[key_name]) if key_name in key else "" for key in keys]
        labels = [
            f"{label}, {word}" if word and word not in label.split(", ") else label
            for label, word in zip(labels, words, strict=True)
        ]
    return labels


def _rank(arm: Arm) -> tuple[int, str]:
    return order_of(arm.key), arm.label


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
