"""Overhead of a Ray worker compared with computing in this process: make bench-fleet

    python -m experiments.bench_fleet [--problems 96] [--unit-size 8] [--rounds 3]

The same units of tiny_arith are annotated in turns by this process and by one worker on a local cluster, each with its model
loaded and warmed up on a unit before timing starts. The ratio is that of the shortest rounds, so that a busy machine distorts
it little; below 1 the worker was faster. The times to start the cluster and to load the worker are reported separately, in
seconds. The rows must be the same. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack

from cft.annotation.annotator import Unit
from cft.annotation.store import table_hash
from cft.benchmarks.sets import verifier_for
from cft.cli.job import composed
from cft.config.build import build
from cft.fleets import InProcess
from cft.fleets.base import Crew, Fleet
from cft.quiet import quiet_libraries
from cft.stages.annotation_worker import Done, MakeAnnotating, Problems, StoredRows
from cft.types import AnnotatedResponse


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares one process with one Ray worker.")
    parser.add_argument("--problems", type=int, default=96)
    parser.add_argument("--unit-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    quiet_libraries()
    cfg, _ = composed("annotate", ["fleet=ray", "fleet.address=local", "fleet.num_workers=1"])
    splits = build(cfg.data)
    make = MakeAnnotating.of(
        cfg,
        verifier=verifier_for(splits, chosen=build(cfg.verifier), thinking=cfg.verify.thinking.tags),
        positions=build(cfg.positions),
        every_outcome=False,
    )
    size, problems = arguments.unit_size, splits.train[: arguments.problems]
    units = [Problems(tuple(problems[i : i + size])) for i in range(0, len(problems), size)]
    seconds: dict[str, list[float]] = {"process": [], "ray": []}
    hashes: dict[str, str] = {}
    with ExitStack() as held:
        crews: dict[str, Crew[Problems | StoredRows, Done]] = {}
        started: dict[str, float] = {}
        fleets: dict[str, Fleet] = {"process": InProcess(), "ray": build(cfg.fleet)}
        for name, fleet in fleets.items():
            before = time.monotonic()
            crews[name] = held.enter_context(fleet.crew(make, device="cpu", expected=dict))
            started[name] = time.monotonic() - before
            annotated(crews[name], units[:1])  # warm-up: one-time allocations and compilation
        for _ in range(arguments.rounds):
            for name, crew in crews.items():
                before = time.monotonic()
                rows = annotated(crew, units)
                seconds[name].append(time.monotonic() - before)
                hashes[name] = table_hash(rows)
    assert hashes["process"] == hashes["ray"], "the worker's rows are not those of this process"
    found = {
        "problems": len(problems),
        "units": len(units),
        "start_seconds": {name: round(value, 1) for name, value in started.items()},
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "ratio": round(min(seconds["ray"]) / min(seconds["process"]), 3),
        "same_rows": True,
    }
    print(
        f"{len(problems)} problems in {len(units)} units: {min(seconds['process']):.1f} s in this process, "
        f"{min(seconds['ray']):.1f} s by one Ray worker, ratio {found['ratio']:.3f}; to start: "
        f"{started['process']:.1f} s and {started['ray']:.1f} s"
    )
    print(json.dumps(found))


def annotated(crew: Crew[Problems | StoredRows, Done], units: list[Problems]) -> list[AnnotatedResponse]:
    """Rows of all units, in unit order."""
    found: dict[int, list[AnnotatedResponse]] = {}
    for number, done in crew.map(enumerate(units)):
        assert isinstance(done.result, Unit)
        found[number] = done.result.rows
    return [row for number in sorted(found) for row in found[number]]


if __name__ == "__main__":
    main()
