"""Exchanges prompts between rows, so that a model can learn the form of responses but not their content.

SHAD (arXiv 2412.14780) uses this to distinguish boilerplate tokens from reasoning tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from cft.errors import BadValue
from cft.types import AnnotatedResponse


def other_prompts(
    rows: Sequence[AnnotatedResponse], *, seed: int, part: Callable[[AnnotatedResponse], bool]
) -> list[AnnotatedResponse]:
    """The same responses in the same order, each with the prompt of another problem of its part (training or held out).

    Every prompt is used once. The assignment depends on seed and ids, not on the order of the rows.

    Args:
        rows: the rows.
        seed: seed of the assignment.
        part: whether a row is held out.

    Raises:
        BadValue: one problem has more than half of a part's rows.
    """
    prompts: dict[str, AnnotatedResponse] = {}
    for held in (False, True):
        of_part = sorted((row for row in rows if part(row) is held), key=lambda row: _order(row, seed=seed))
        if not of_part:
            continue
        # Rows are sorted by problem, so a shift by the size of the largest problem moves every row to another problem.
        shift = max(Counter(row.problem_id for row in of_part).values())
        if 2 * shift > len(of_part):
            raise BadValue(
                f"data.shuffle_responses=true: one problem has {shift} of {len(of_part)} "
                f"{'held-out' if held else 'training'} rows, so some response would keep its prompt; annotate more "
                "problems, or set data.validation_fraction=0"
            )
        prompts |= {row.response_id: of_part[(i + shift) % len(of_part)] for i, row in enumerate(of_part)}
    return [
        dataclasses.replace(row, problem=other.problem, prompt_ids=other.prompt_ids)
        for row in rows
        if (other := prompts[row.response_id])
    ]


def _order(row: AnnotatedResponse, *, seed: int) -> tuple[str, str]:
    return _digest(seed, row.problem_id), _digest(seed, row.response_id)


def _digest(seed: int, name: str) -> str:
    return hashlib.blake2b(f"shuffle\x1f{seed}\x1f{name}".encode(), digest_size=8).hexdigest()
