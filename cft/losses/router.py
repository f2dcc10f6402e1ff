"""The loss that keeps the experts of a mixture busy, of each row by itself.

    L_r = E * sum_e f_e P_e          f_e  fraction of the row's positions, over layers, that are sent to expert e, times k
                                     P_e  mean probability that the router gives e, over the same positions and layers

Of one row it is `load_balancing_loss_func` of transformers (Switch Transformer, arXiv 2101.03961, eq. 4-6), which takes all
positions of a micro-batch together: a product of two means, that depends on which rows lie in a micro-batch. Of each row by
itself, as the sequence-wise loss of DeepSeek-V3 (arXiv 2412.19437, eq. 17-20), it is a sum over rows: the same number however
rows are put into micro-batches, packed, or spread over processes. The term is divided by the rows of the step that have an
eligible token. Padding counts nowhere. A row's positions are those that are computed, up to its last wanted token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def balance_of_rows(router_logits: Sequence[Tensor], row_P: Tensor, *, num_rows: int, chosen: int) -> Tensor:
    """[num_rows] L_r with gradient, 0 for a row without positions.

    router_logits: by layer, [P, E] or [B, T, E] before the softmax. row_P: the row of each position, -1 for padding. chosen:
    experts a token is sent to.
    """
    inside_P = row_P >= 0
    row_N = row_P[inside_P]
    experts = router_logits[0].shape[-1]
    wide = torch.promote_types(router_logits[0].dtype, torch.float32)  # sums of many, also where a pass is of bfloat16
    sent_RE = torch.zeros(num_rows, experts, dtype=wide, device=row_P.device)
    probability_RE = torch.zeros_like(sent_RE)
    for logits in router_logits:
        probability_NE = torch.softmax(logits.reshape(-1, experts)[inside_P], dim=-1, dtype=wide)
        sent_NE = torch.zeros_like(probability_NE).scatter_(1, probability_NE.topk(chosen, dim=-1).indices, 1.0)
        sent_RE = sent_RE.index_add(0, row_N, sent_NE)
        probability_RE = probability_RE.index_add(0, row_N, probability_NE)
    positions_R = row_N.bincount(minlength=num_rows).clamp(min=1) * len(router_logits)
    return experts * (sent_RE * probability_RE).sum(1) / positions_R.to(wide) ** 2
