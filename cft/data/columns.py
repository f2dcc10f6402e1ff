"""Columns: the values per token, besides weights, that an objective needs from stored rows.

    need                      source
    reference_logprob         the reference's stored column (`cft/references/models.py`)
    group                     the configured grouping, a mask: 1 for selected tokens, else 0
    any other                 the stored score of that name (`cft/scores/store.py`)

A live reference model provides `reference_logprob` and `reference_distribution` without a column. A need without a source is an
error, raised before any model is loaded; the message has the setting or command that provides it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.errors import BadValue
from cft.masks.base import Mask, RowMask, mask_weights
from cft.scores.column import (
    GROUP,
    NO_GROUPS,
    NO_REFERENCE,
    REFERENCE_DISTRIBUTION,
    REFERENCE_LOGPROB,
    Column,
    StoredColumn,
)
from cft.types import AnnotatedResponse


class GroupColumn:
    """A grouping as a column: 1 for tokens that the mask selects, else 0."""

    def __init__(self, grouping: Mask) -> None:
        self.grouping = grouping
        self.needs = grouping.needs
        self.evidence = getattr(grouping, "evidence", ())

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        self.grouping.fit(rows)

    def facts(self) -> dict[str, Any]:
        return self.grouping.facts()

    def __call__(self, row: AnnotatedResponse) -> NDArray[np.float32]:
        return (mask_weights(self.grouping, row) > 0).astype(np.float32)


class NoGroups(RowMask):
    """No grouping, for configurations whose loss needs none."""

    def __call__(self, row: AnnotatedResponse) -> NDArray[np.float32]:
        return np.zeros(len(row.response_ids), dtype=np.float32)


def columns_for(
    needs: Collection[str], *, given: Collection[str], stored_logprob: str, grouping: Mask
) -> dict[str, Column]:
    """The columns that an objective needs.

    Args:
        needs: names of the needed values.
        given: needs that the reference provides.
        stored_logprob: stored column of the reference; "" for a live model.
        grouping: the grouping; NoGroups if there is none.

    Raises:
        BadValue: nothing provides one of the needs.
    """
    columns: dict[str, Column] = {}
    for need in sorted(needs):
        if need in (REFERENCE_LOGPROB, REFERENCE_DISTRIBUTION):
            if need not in given:
                raise BadValue(f"reference: {NO_REFERENCE[need]}")
            if need == REFERENCE_LOGPROB and stored_logprob:
                columns[need] = StoredColumn(stored_logprob)
        elif need == GROUP:
            if isinstance(grouping, NoGroups):
                raise BadValue(f"groups: {NO_GROUPS}")
            columns[need] = GroupColumn(grouping)
        else:
            columns[need] = StoredColumn(need)
    return columns


def needs_live(needs: Collection[str], *, stored_logprob: str) -> bool:
    """Whether the reference model must run during training."""
    return REFERENCE_DISTRIBUTION in needs or (REFERENCE_LOGPROB in needs and not stored_logprob)
