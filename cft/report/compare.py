"""Runs -> arms -> a comparison with intervals: what tables, figures and page show.

An arm's interval is the two-way bootstrap over seeds and problems where the values of each problem are known
(`per_problem`), else over seeds, else a single run's own. Arms are compared on the problems that all share, solved and
graded in the same way; anything else is refused, naming the arms. Arms trained with another budget, normalizer or data are
marked, or refused if strict (`cft/report/contrasts.py`). An arm has one label in all comparisons of a report, and no other
arm has it (`cft/report/arms.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cft.evaluation.intervals import RATE, Interval, bootstrap_interval, is_unbounded, two_way_bootstrap
from cft.report.arm_names import BASE, ArmName, as_text, identity, is_base, is_trained, named, order_of, varying
from cft.report.arms import Arm, Comparison, Measured, Scope, is_known, metric_column, values_of
from cft.report.contrasts import contrasted
from cft.report.read import ACCURACY, ReportError, Run, Runs, intervals
from cft.runs.results import RESULTS


def compare(runs: Iterable[Run], *, seed: int = 0, strict: bool = False) -> list[Comparison]:
    """One comparison for each benchmark and split.

    Args:
        runs: Of `collect`.
        seed: Of the bootstrap.
        strict: Refuse what would be marked.

    Raises:
        ReportError: The runs are not comparable.
    """
    notes = runs.notes if isinstance(runs, Runs) else ()
    by_place: dict[tuple[str, str], list[Run]] = {}
    for run in (runs := list(runs)):
        by_place.setdefault(run.measured_on, []).append(run)
    # Two trainings are two arms wherever they are measured; what else was measured has its names place by place.
    trained = named([run for run in runs if run.metrics and is_trained(run.arm)])
    found = [_compare(place, group, trained=trained, seed=seed) for place, group in sorted(by_place.items())]
    return contrasted([replace(one, notes=(*one.notes, *notes)) for one in found], seed=seed, strict=strict)


def _compare(place: tuple[str, str], runs: list[Run], *, trained: dict[str, ArmName], seed: int) -> Comparison:
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
    names = trained | named([run for run in measured if not is_trained(run.arm)])
    labels = {one: name.label for one, name in names.items()}
    kept = _widest(_newest(measured, notes), notes)
    _require_comparable(kept, labels)
    kept = _newest(_on_shared_problems(kept, labels, notes), notes)
    groups: dict[str, list[Run]] = {}
    for run in kept:
        groups.setdefault(identity(run), []).append(run)
    arms = []
    for one, group in groups.items():
        by_seed = tuple(sorted(group, key=lambda run: run.seed))
        arms.append(Arm(names[one], by_seed, _measure(by_seed, seed)))
    differing = varying([arm.named for arm in arms])
    if not any(is_base(arm.method) for arm in arms) and (base := _stated_base(kept)):
        arms.append(base)
    arms.sort(key=lambda arm: (order_of(arm.method), arm.label))
    notes += [*_notes_on_data(kept), *_notes_on_seeds(arms)]
    return Comparison(*place, len(kept[0].ids), tuple(arms), differing, tuple(notes))


def _left_out(count: int, which: str) -> str:
    return f"{count} {'run' if count == 1 else 'runs'} {which} {'is' if count == 1 else 'are'} left out."


def _notes_on_data(runs: Sequence[Run]) -> list[str]:
    for name, note in (
        ("fingerprint", "The arms were trained on different annotations."),
        ("rows_sha256", "The runs were trained on different rows: the annotation grew, or rows were chosen otherwise."),
    ):
        if len({(run.results.data or {}).get(name) for run in runs} - {None}) > 1:
            return [note]
    return []


def _notes_on_seeds(arms: Sequence[Arm]) -> list[str]:
    """Arms of other seeds are not paired by seed, and a seed that is missing may be one that failed."""
    notes, by_seeds = [], dict[str, list[str]]()
    for arm in arms:
        if is_trained(arm.method):
            by_seeds.setdefault(", ".join(str(run.seed) for run in arm.runs), []).append(arm.label)
    if len(by_seeds) > 1:
        told = "; ".join(f"{seeds} ({' / '.join(labels)})" for seeds, labels in by_seeds.items())
        notes.append(f"The arms were not trained with the same seeds: {told}. Such arms are not paired by seed.")
    if any(len(arm.runs) == 1 for arm in arms if not is_base(arm.method)):
        notes.append("An arm with one seed has an interval over problems alone: it leaves out the spread of training.")
    return notes


# ---- which runs, on which problems


def _measurement(run: Run) -> tuple[str, int, str]:
    """What a repetition repeats: arm, seed, how responses were made and graded."""
    made = {name: value for name, value in run.results.evaluation.items() if name != "seed"}
    return identity(run), run.seed, as_text(made)


def _newest(runs: list[Run], notes: list[str]) -> list[Run]:
    """One run for each arm and seed: a repetition of the same seed is no new seed.

    What was measured otherwise is no repetition: it stays, to be refused as not comparable.
    """
    latest: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda run: ((run.folder / RESULTS).stat().st_mtime_ns, str(run.folder))):
        latest[_measurement(run), as_text(run.ids)] = run
    if len(latest) < len(runs):
        notes.append(_left_out(len(runs) - len(latest), "of an arm and seed that a newer one has"))
    return [run for run in runs if any(run is kept for kept in latest.values())]


def _widest(runs: list[Run], notes: list[str]) -> list[Run]:
    """Without runs that measured an arm and seed on fewer of the problems that another run measured it on."""
    measured = [(_measurement(run), set(run.ids)) for run in runs]
    kept = [
        run
        for run, (what, ids) in zip(runs, measured, strict=True)
        if not any(what == w and ids < i for w, i in measured)
    ]
    if len(kept) < len(runs):
        notes.append(_left_out(len(runs) - len(kept), "of an arm and seed that another one measured on more problems"))
    return kept


def _require_comparable(runs: list[Run], labels: dict[str, str]) -> None:
    """Same text of the problems, same sampling, same verifier. A decoding rule is part of the arm."""
    first = runs[0].results
    for run in runs[1:]:
        both, other = f"{_place(runs[0], labels)} and {_place(run, labels)}", run.results
        hashes = [(one.problems_sha256 or "")[:12] for one in (first, other)]
        if all(hashes) and first.problems_sha256 != other.problems_sha256:
            raise ReportError(
                f"{both} were measured on problems of the same ids but different text or answers (sha256 {hashes[0]} and "
                f"{hashes[1]}); evaluate both on the same data"
            )
        ours, theirs = first.evaluation, other.evaluation
        names = sorted({*ours, *theirs} - {"seed", "decoding"}) if ours and theirs else []
        if differing := [f"{n}: {ours.get(n)} and {theirs.get(n)}" for n in names if ours.get(n) != theirs.get(n)]:
            raise ReportError(f"{both} differ in {', '.join(differing)}")


def _place(run: Run, labels: dict[str, str]) -> str:
    return f"{labels[identity(run)]!r} ({run.folder})"


def _on_shared_problems(runs: list[Run], labels: dict[str, str], notes: list[str]) -> list[Run]:
    """The runs as if each had been measured on the problems that all share. Raises ReportError where there are none."""
    if all(run.ids == runs[0].ids for run in runs):
        return runs
    shared = set(runs[0].ids).intersection(*(run.ids for run in runs[1:]))
    if not shared:
        pairs = ((a, b) for a in runs for b in runs if not {*a.ids} & {*b.ids})
        first, other = next(pairs, (runs[0], runs[-1]))
        raise ReportError(
            f"{_place(first, labels)} and {_place(other, labels)} were measured on different problems: {len(first.ids)} and "
            f"{len(other.ids)}, 0 in common; evaluate both with the same benchmark, split and limit"
        )
    order = [problem for problem in runs[0].ids if problem in shared]
    sizes = sorted({len(run.ids) for run in runs})
    notes.append(
        f"Compared on the {len(order)} problems that all {len(runs)} runs share; they were measured on "
        f"{' or '.join(map(str, sizes))}. Values that are not recorded problem by problem are left out."
    )
    restricted = [_restricted(run.metrics, run.per_problem, order) for run in runs]
    return [replace(run, metrics=m, per_problem=c) for run, (m, c) in zip(runs, restricted, strict=True)]


def _restricted(
    metrics: dict[str, Interval], per_problem: dict[str, list[Any]], order: Sequence[str]
) -> tuple[dict[str, Interval], dict[str, list[Any]]]:
    """Metrics and values on the problems of `order` alone; a metric whose values are not known by problem is left out, but
    for those of rows (val/)."""
    place = {problem: i for i, problem in enumerate(per_problem.get("id", []))}
    columns = {name: [column[place[problem]] for problem in order] for name, column in per_problem.items()}
    found = {}
    for name, interval in metrics.items():
        column = columns.get(metric_column(name))
        if name.startswith("val/"):
            found[name] = interval
        elif column and is_known(column):
            found[name] = bootstrap_interval(column, rate=False if is_unbounded(name) else None)
    return found, columns


# ---- values


def _measure(runs: tuple[Run, ...], seed: int) -> dict[str, Measured]:
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    return {name: _measured(name, runs, seed) for name in sorted(names, key=lambda name: name != ACCURACY)}


def _measured(name: str, runs: tuple[Run, ...], seed: int) -> Measured:
    unbounded = is_unbounded(name)
    within, rate = (None, False) if unbounded else (RATE, None)
    scope: Scope = "seeds"
    if (table := values_of(name, runs)) is not None:
        scope = "seeds and problems" if len(runs) > 1 else "problems"
    elif len(runs) == 1:
        return Measured(runs[0].metrics[name], "one value" if name.startswith("val/") else "problems")
    else:
        table = np.array([[run.metrics[name].value] for run in runs])
    return Measured(two_way_bootstrap(table, seed=seed, within=within, rate=rate), scope)


def _stated_base(runs: list[Run]) -> Arm | None:
    """The untrained model as the trained runs recorded it, if they agree, on the problems compared."""
    stated = {as_text(run.results.base): run for run in runs if run.results.base}
    if len(stated) != 1:
        return None
    run, order = next(iter(stated.values())), runs[0].ids
    base = run.results.base or {}
    metrics, columns = intervals(base["metrics"]), base["per_problem"]
    if not set(order) <= set(columns["id"]):
        return None
    if columns["id"] != order:
        metrics, _ = _restricted(metrics, columns, order)
    model = {"model": run.arm.get("model")}
    return Arm(ArmName(BASE, model, model), (), {name: Measured(value, "problems") for name, value in metrics.items()})
