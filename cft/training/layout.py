"""How the rows of a batch lie in the forward pass, and how little of them is computed.

    padded   [B, T]: rows padded on the right to the longest one, which a causal model never looks at: no mask is needed
    packed   [1, L]: rows end to end, position ids that begin again with each row, attention row by row: no padding

Either way a row ends before its last wanted token: what follows predicts nothing that is needed. A row without a
wanted token is left out. Packing rests on the model's attention alone looking at other positions, so that
`SelectiveLM.check_layout` tries it on the model at hand. A layer that sees a window gets the mask that transformers makes of
the position ids, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cft.losses.eligible import EligibleTokens
from cft.models.architecture import window

Layout = Literal["padded", "packed"]
ATTENTION = "cft_rows"


@dataclass(frozen=True, slots=True)
class Placement:
    """inputs: of the backbone. index_N: where the states that predict the tokens are among the B * T computed ones. start_B:
    where a row's first position is among them. row_P: the row of each of these positions, -1 for padding; None where it was not
    asked for."""

    inputs: dict[str, Any]
    index_N: Tensor
    start_B: Tensor
    row_P: Tensor | None = None

    def states(self, hidden_BTD: Tensor) -> Tensor:
        """[N, D] hidden states that predict the tokens."""
        return hidden_BTD.flatten(0, 1)[self.index_N]


def placed(
    input_ids_BT: Tensor,
    tokens: EligibleTokens,
    *,
    layout: Layout,
    by_rows: bool,
    masked: bool = False,
    flash: bool = False,
    rows: bool = False,
) -> Placement:
    """by_rows: the model's attention is `rows_attention` (see `attend_by_rows`). masked: some layers need transformers' own
    mask there. flash: it is flash attention. rows: whether `Placement.row_P` is wanted. At least one position is computed even
    when nothing is wanted: under DDP every parameter must take part on every rank."""
    needed_B = computed_positions(tokens)
    row_B = needed_B.nonzero()[:, 0]
    lengths = needed_B[row_B].tolist()
    if layout == "padded" or len(lengths) == 1:
        width = max(lengths)
        place_B = torch.zeros_like(needed_B).scatter(0, row_B, torch.arange(len(row_B), device=row_B.device) * width)
        index_N = place_B[tokens.row_N] + tokens.position_N - 1
        row_P = None
        if rows:
            inside = torch.arange(width, device=row_B.device) < needed_B[row_B, None]
            row_P = torch.where(inside, row_B[:, None], -1).flatten()
        return Placement({"input_ids": input_ids_BT[row_B, :width]}, index_N, place_B, row_P)
    start_B = needed_B.cumsum(0) - needed_B
    position_BT = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device).expand_as(input_ids_BT)
    kept_BT = position_BT < needed_B[:, None]
    inputs: dict[str, Any] = {"input_ids": input_ids_BT[kept_BT][None], "position_ids": position_BT[kept_BT][None]}
    if by_rows:
        if not masked:
            # A mask of four axes is taken as it is, so that transformers builds no [L, L] one; rows_attention needs none.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids_BT.device)
        inputs["row_lengths"] = torch.tensor(
            lengths
        )  # stays on the CPU, so that no layer waits for a device to read it
    if flash:
        # Or transformers would find them from the position ids in every layer, waiting for the device each time.
        ends = torch.tensor([0, *lengths]).cumsum(0).to(input_ids_BT.device, torch.int32)
        inputs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        inputs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    row_P = row_B.repeat_interleave(needed_B[row_B]) if rows else None
    return Placement(inputs, start_B[tokens.row_N] + tokens.position_N - 1, start_B, row_P)


def computed_positions(tokens: EligibleTokens) -> Tensor:
    """[B] int64: how many positions of each row pass through the model, from its first one on."""
    needed_B = torch.zeros(tokens.num_rows, dtype=torch.long, device=tokens.row_N.device)
    # The token at position p is predicted by the state at p - 1, so p positions are needed.
    needed_B = needed_B.scatter_reduce(0, tokens.row_N, tokens.position_N, "amax")
    if not len(tokens.row_N):
        needed_B[0] = 1
    return needed_B


def attend_by_rows(model: PreTrainedModel) -> bool:
    """Let packed rows attend one by one where the model uses sdpa; False where another attention is used.

    It stays switched on: a checkpointed layer is computed again after the forward pass. Without packed rows it is sdpa.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation == "sdpa":
        config._attn_implementation = ATTENTION
    return config._attn_implementation == ATTENTION


def needs_mask(model: PreTrainedModel) -> bool:
    """Whether some layer sees less than all earlier tokens of its row."""
    return window(model.config) is not None


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_lengths: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of `transformers`: query [1, H, L, d], key and value [1, h, L, d] -> [1, L, H, d]."""
    if row_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    mask = None if attention_mask is None or attention_mask.shape[-1] == 1 else attention_mask
    return _by_rows(query, key, value, row_lengths, mask, dropout=dropout, scaling=scaling), None


@torch.compiler.disable()  # the number of rows changes from batch to batch
def _by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_lengths: Tensor,
    mask_11LL: Tensor | None,
    *,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    grouped, lengths, start = query.shape[1] != key.shape[1], row_lengths.tolist(), 0
    attended = []
    for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True):
        end = start + q.shape[2]
        mask = None if mask_11LL is None else mask_11LL[..., start:end, start:end]
        attended.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling, enable_gqa=grouped
            )
        )
        start = end
    return torch.cat([out.transpose(1, 2) for out in attended], dim=1)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, rows_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
