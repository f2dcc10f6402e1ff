"""The load-balancing loss of a mixture-of-experts model, computed per row.

    L_r = E * sum_e f_e P_e          f_e  fraction of the row's positions, over layers, that are routed to expert e, times k
                                     P_e  mean router probability of e, over the same positions and layers

For one row this is `load_balancing_loss_func` of transformers (Switch Transformer, arXiv 2101.03961, eq. 4-6). That function
combines all positions of a micro-batch in a product of two means, which depends on the rows in the micro-batch. Computed per
row, as in the sequence-wise loss of DeepSeek-V3 (arXiv 2412.19437, eq. 17-20), the loss is a sum over rows, which does not
depend on how rows are assigned to micro-batches, packed or distributed over processes. The term is divided by the rows of the
step with an eligible token. Padding is excluded. A row's positions are those computed, up to its last predicted token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def balance_of_rows(router_logits: Sequence[Tensor], row_P: Tensor, *, num_rows: int, chosen: int) -> Tensor:
    """The load-balancing loss of each row.

    Args:
        router_logits: logits before the softmax, by layer; [P, E] or [B, T, E].
        row_P: row of each position, -1 for padding.
        num_rows: number of rows.
        chosen: k, the number of experts per token.

    Returns:
        [num_rows] L_r with gradient, 0 for a row without positions.
    """
    inside_P = row_P >= 0
    row_N = row_P[inside_P]
    experts = router_logits[0].shape[-1]
    wide = torch.promote_types(router_logits[0].dtype, torch.float32)  # precise sums, even if logits are bfloat16
    sent_RE = torch.zeros(num_rows, experts, dtype=wide, device=row_P.device)
    probability_RE = torch.zeros_like(sent_RE)
    for logits in router_logits:
        probability_NE = torch.softmax(logits.reshape(-1, experts)[inside_P], dim=-1, dtype=wide)
        sent_NE = torch.zeros_like(probability_NE).scatter_(1, probability_NE.topk(chosen, dim=-1).indices, 1.0)
        sent_RE = sent_RE.index_add(0, row_N, sent_NE)
        probability_RE = probability_RE.index_add(0, row_N, probability_NE)
    positions_R = row_N.bincount(minlength=num_rows).clamp(min=1) * len(router_logits)
    return experts * (sent_RE * probability_RE).sum(1) / positions_R.to(wide) ** 2
