"""Which positions of a batch reach the vocabulary: the only place where labels are shifted.

A term of the loss speaks of one set of response tokens (`On`); what is projected is the union over all terms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cft.types import RowGroups, TokenBatch

On = Literal["eligible", "response", "critical", "other"]


@dataclass(frozen=True, slots=True)
class EligibleTokens:
    """Flattened [N], by row and then position. row_N, position_N: where the token is; target_N: its id; weight_N:
    its static weight (0 where only a regularizer looks); token_group_N: 1 critical, 0 other; stored: scores by name, [N];
    groups: of the batch's rows, as in TokenBatch."""

    row_N: Tensor
    position_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    token_group_N: Tensor
    stored: Mapping[str, Tensor]
    num_rows: int
    groups: RowGroups | None = None

    def on(self, where: On) -> Tensor:
        """[N] bool: the tokens that a term with that `on` speaks of."""
        if where == "eligible":
            return self.weight_N != 0
        if where == "response":
            return self.token_group_N >= 0
        return self.token_group_N == (1 if where == "critical" else 0)


def eligible_tokens(batch: TokenBatch, chosen_BT: Tensor) -> EligibleTokens:
    """The tokens where chosen_BT (bool) holds. The first token of a row is predicted by nothing and never eligible."""
    row_N, before_N = chosen_BT[:, 1:].nonzero(as_tuple=True)
    position_N = before_N + 1
    return EligibleTokens(
        row_N,
        position_N,
        batch.input_ids_BT[row_N, position_N],
        batch.weight_BT[row_N, position_N],
        batch.token_group_BT[row_N, position_N],
        {name: column_BT[row_N, position_N] for name, column_BT in batch.scores.items()},
        len(batch.lengths_B),
        batch.groups,
    )


def tokens_on(batch: TokenBatch, where: Collection[On]) -> EligibleTokens:
    """The union of the sets named in `where`."""
    chosen_BT = batch.weight_BT != 0
    if "eligible" not in where:
        chosen_BT = chosen_BT & False
    if "response" in where:
        chosen_BT = chosen_BT | (batch.token_group_BT >= 0)
    if "critical" in where:
        chosen_BT = chosen_BT | (batch.token_group_BT == 1)
    if "other" in where:
        chosen_BT = chosen_BT | (batch.token_group_BT == 0)
    return eligible_tokens(batch, chosen_BT)
