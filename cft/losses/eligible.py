"""Selects the positions of a batch whose logits are computed. This is the only place where labels are shifted.

Each term of the loss acts on one set of response tokens (`On`); logits are computed for the union over all terms.
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
    """The selected tokens, flattened to [N], ordered by row and then position.

    Args:
        row_N: row of each token.
        position_N: position of each token in its row.
        target_N: token ids.
        weight_N: static weights; 0 for tokens that only a regularizer uses.
        token_group_N: 1 critical, 0 other.
        stored: stored scores by name, [N] each.
        num_rows: rows of the batch.
        groups: groups of the batch's rows, as in TokenBatch.
    """

    row_N: Tensor
    position_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    token_group_N: Tensor
    stored: Mapping[str, Tensor]
    num_rows: int
    groups: RowGroups | None = None

    def on(self, where: On) -> Tensor:
        """[N] bool: the tokens in the set `where`."""
        if where == "eligible":
            return self.weight_N != 0
        if where == "response":
            return self.token_group_N >= 0
        return self.token_group_N == (1 if where == "critical" else 0)


def eligible_tokens(batch: TokenBatch, chosen_BT: Tensor) -> EligibleTokens:
    """The tokens where chosen_BT is true. The first token of a row has no prediction and is never eligible."""
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
