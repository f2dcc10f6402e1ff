"""What is left to annotate, of any limit and anything committed before: a table of the split's first problems, no gaps."""

from __future__ import annotations

import pytest

from cft.annotation.units import Plan, ids_hash
from cft.types import Problem

PROBLEMS = [Problem(id=str(i), question="?", answer="1") for i in range(11)]


def plan(asked: int, *, fills_only: bool = False) -> Plan:
    return Plan(PROBLEMS, asked, unit_size=3, num_alternatives=2, every_outcome=False, fills_only=fills_only)


def record(start: int, end: int) -> dict[str, object]:
    held = PROBLEMS[start:end]
    counts = {"problems": len(held)}
    return {"counts": counts, "problem_ids": ids_hash(held), "num_alternatives": 2, "complete": False}


@pytest.mark.parametrize(
    "asked, committed, to_annotate",
    [
        (7, [], [0, 1, 2]),
        (7, [(0, 3), (6, 7)], [1]),
        (8, [(0, 3), (3, 6), (6, 7)], [2]),  # the short unit grows
        (5, [(0, 3), (3, 6), (6, 7)], []),  # a smaller limit undoes nothing
        (2, [(6, 9)], [0, 1]),  # gaps before what is there are filled, whatever is asked
        (2, [(0, 2), (6, 8)], [0, 1]),
        (99, [(9, 11)], [0, 1, 2]),  # the last unit of the split is short
    ],
)
def test_what_is_left_to_annotate(asked: int, committed: list[tuple[int, int]], to_annotate: list[int]) -> None:
    records = {start // 3: record(start, end) for start, end in committed}
    assert plan(asked).to_annotate(records) == to_annotate
    assert plan(asked, fills_only=True).to_annotate(records) == []
    # Once that is done, the table holds the first problems of the split, one after another, and nothing is left to do.
    units = plan(asked).units(records)
    held = [p for unit in units for p in unit]
    assert held == PROBLEMS[: len(held)]
    assert len(held) >= min(asked, len(PROBLEMS))
    done = records | {u: record(3 * u, 3 * u + len(units[u])) for u in to_annotate}
    assert plan(asked).to_do(done) == set()
