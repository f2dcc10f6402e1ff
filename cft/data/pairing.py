"""Prompts exchanged between rows: what a model can still learn from such pairs is the form of responses, not their content.

The basis of SHAD (arXiv 2412.14780), which tells boilerplate tokens from reasoning tokens by it.
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
    """The same responses in the same order, each behind the prompt of another problem of its part (training or held out).

    Every prompt is used once. A function of the seed and the ids, not of the order of the rows. Raises BadValue where one
    problem has more than half of a part's rows.
    """
    prompts: dict[str, AnnotatedResponse] = {}
    for held in (False, True):
        of_part = sorted((row for row in rows if part(row) is held), key=lambda row: _order(row, seed=seed))
        if not of_part:
            continue
        # Sorted by problem: a shift by the rows of the commonest problem leaves none of them among its own.
        shift = max(Counter(row.problem_id for row in of_part).values())
        if 2 * shift > len(of_part):
            raise BadValue(
                f"data.shuffle_responses=true: one problem has {shift} of {len(of_part)} "
                f"{'held-out' if held else 'training'} rows, so that some response would keep its prompt; annotate more "
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
