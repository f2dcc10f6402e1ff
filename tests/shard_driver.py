"""Writes shard 1 of 3 of stores with synthetic units, without a model, in processes that kill themselves (SIGKILL) at a point.

python tests/shard_driver.py <folder> <point> ...      prints how each process ended
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from cft.annotation import store as store_module
from cft.annotation.shards import Part, Shard
from cft.annotation.store import AnnotationStore, ProblemRecord
from cft.types import AnnotatedResponse
from tests.kill_driver import before

UNITS = 7
FINGERPRINT = {"model": {"weights": "w1"}}
REQUEST = {"problems": UNITS}
COMMAND = "cft annotate num_shards=3"


def response(number: int) -> AnnotatedResponse:
    cells = np.full((2, 2), number, np.int32)
    return AnnotatedResponse(
        problem_id=f"p{number}",
        response_id=f"r{number}",
        problem="?",
        answer=str(number),
        response="!",
        finish="stop",
        prompt_ids=np.array([1], np.int32),
        response_ids=np.array([number, 2], np.int32),
        char_span=cells,
        logprob=np.zeros(2, np.float32),
        entropy=np.zeros(2, np.float32),
        alt_ids=cells,
        alt_logprob=np.zeros((2, 2), np.float32),
        alt_answer=[["7", "8"]] * 2,
        alt_tokens=cells,
        alt_outcome=np.zeros((2, 2), np.int8),
        replay_outcome=np.zeros(2, np.int8),
    )


def part_of(shard: Shard) -> Part:
    return Part(shard, REQUEST, to_do=lambda records: set(range(UNITS)) - set(records), command=COMMAND)


def write(folder: Path, shard: Shard, *, meet: Callable[[], object] = lambda: None) -> None:
    """Commit the shard's missing units. meet: called once before the first one."""
    store = AnnotationStore(folder)
    with store.writing(fingerprint=FINGERPRINT, info={}, part=part_of(shard)):
        meet()
        for u in [u for u in range(UNITS) if shard.has(u) and u not in store.units()]:
            store.commit(
                u,
                rows=[response(u)],
                problems=[ProblemRecord(f"p{u}", "annotated", "!", str(u), 2, 2)],
                facts={"counts": {"problems": 1, "forks": u}, "compute": {"solve_tokens": 10 * u}},
            )


def _manifest(path: Path, *args: object) -> bool:
    return path.name == "manifest.json"


def arriving() -> None:
    """The shard is registered; the manifest does not list it yet."""
    before(store_module, "write_json", when=_manifest)


def committing() -> None:
    """The record of its second unit has its temporary name."""
    before(os, "replace", when=lambda source, target: Path(target).parent.name == "units", call=2)


def leaving() -> None:
    """Its units are written; the manifest does not list them yet."""
    before(store_module, "write_json", when=_manifest, call=2)


def left() -> None:
    """The manifest is written; the shard's lock and the gate are still held."""
    before(store_module, "clear_place")


POINTS = {f.__name__: f for f in (arriving, committing, leaving, left)}

if __name__ == "__main__":
    for folder, point in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        if (child := os.fork()) == 0:  # safe: no thread is running yet
            POINTS[point]()
            write(Path(folder), Shard(1, 3))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
