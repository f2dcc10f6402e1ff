"""Layout of the rows of a batch in the forward pass, and which of their positions are computed.

    padded   [B, T]: rows are right-padded to the longest; a causal model does not attend to right padding, so no mask is needed
    packed   [1, L]: rows are concatenated, position ids restart with each row, attention is computed row by row; no padding

In both layouts a row is truncated before its last predicted token, since later states predict nothing that is needed. A row
without a predicted token is omitted. Packing requires that only attention layers mix positions, so
`SelectiveLM.check_layout` tests it on the loaded model. Layers with sliding-window attention use, for each row, the mask that
transformers builds from the position ids.
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
    """Inputs of the backbone, and where its B * T outputs belong.

    Args:
        inputs: keyword arguments of the backbone.
        index_N: [N] indices, among the B * T computed states, of those that predict the tokens.
        start_B: [B] index of each row's first position among the computed states.
        row_P: [B * T] row of each computed position, -1 for padding; None if not requested.
    """

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
    """Place the rows of a batch in the given layout.

    At least one position is computed even if no token is predicted: under DDP every parameter must take part on every rank.

    Args:
        input_ids_BT: token ids of the batch.
        tokens: the tokens to predict.
        layout: "padded" or "packed".
        by_rows: whether the model uses `rows_attention` (see `attend_by_rows`).
        masked: whether some layers need the attention mask of transformers.
        flash: whether the model uses flash attention.
        rows: whether to compute `Placement.row_P`.
    """
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
            # transformers passes a 4D mask through unchanged, so it does not build an [L, L] mask; rows_attention needs none.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids_BT.device)
        inputs["row_lengths"] = torch.tensor(
            lengths
        )  # on the CPU, so that reading it in each layer needs no device synchronization
    if flash:
        # Otherwise transformers computes these from the position ids in every layer, with a device synchronization each time.
        ends = torch.tensor([0, *lengths]).cumsum(0).to(input_ids_BT.device, torch.int32)
        inputs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        inputs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    row_P = row_B.repeat_interleave(needed_B[row_B]) if rows else None
    return Placement(inputs, start_B[tokens.row_N] + tokens.position_N - 1, start_B, row_P)


def computed_positions(tokens: EligibleTokens) -> Tensor:
    """[B] int64: number of leading positions of each row that pass through the model."""
    needed_B = torch.zeros(tokens.num_rows, dtype=torch.long, device=tokens.row_N.device)
    # The state at position p - 1 predicts the token at p, so p positions are needed.
    needed_B = needed_B.scatter_reduce(0, tokens.row_N, tokens.position_N, "amax")
    if not len(tokens.row_N):
        needed_B[0] = 1
    return needed_B


def attend_by_rows(model: PreTrainedModel) -> bool:
    """Switch a model with sdpa attention to `rows_attention`. Returns False if the model uses another attention.

    The switch is permanent, because gradient checkpointing recomputes layers after the forward pass. Without packed rows,
    `rows_attention` is sdpa.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation == "sdpa":
        config._attn_implementation = ATTENTION
    return config._attn_implementation == ATTENTION


def needs_mask(model: PreTrainedModel) -> bool:
    """Whether some layer uses sliding-window attention."""
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
    """Attention function for transformers: query [1, H, L, d], key and value [1, h, L, d] -> [1, L, H, d]."""
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
