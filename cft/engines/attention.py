"""Attention of forks: over the shared sequence, and over each fork's own suffix.

    prefix   [1, h, L, d]    keys of a sequence, stored once; each fork attends to the first prefix_len of them
    block    [n, h, T, d]    keys of the own tokens of n forks of similar length; a mask hides the padding of shorter ones

The two parts are computed separately and combined exactly. With the scores s_m of part m,

    lse_m = log sum exp s_m        out = sum_m exp(lse_m) softmax(s_m) v_m / sum_m exp(lse_m)

so with two parts the first has the weight sigmoid(lse_1 - lse_2). A fork without a shared prefix has all its keys in its block.

Scores, log-sum-exp and outputs are float32 in half precision as well, as inside SDPA: bfloat16 values near 20 have steps of
0.125, and the weights depend on the difference of two such values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "cft_forks"  # its name in transformers' registry
# torch's CPU attention kernel, which also returns the log-sum-exp. In float32 a fifth faster than separate matrix products.
FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
SPARE_COLUMNS = (
    32  # spare columns of a new block; a full block grows by as many, or by half of its columns if that is more
)


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """Keys and values of one layer, [n, h, T, d] each."""

    k: Tensor
    v: Tensor


Keys = list[LayerKeys]  # by layer
Row = TypeVar("Row")


def num_bytes(keys: Keys) -> int:
    return sum(part.numel() * part.element_size() for layer in keys for part in (layer.k, layer.v))


class KVBlock(Generic[Row]):
    """Keys and values of the unshared tokens of several forks.

    The first columns can belong only to rows that have been removed; they are dropped when the block is copied anyway.

    Args:
        rows: The caller's state of each fork, in batch order.
        keys: By layer, [n, h, T, d].
        seen: How many of the T columns, counted from the last, each row has.
    """

    def __init__(self, rows: Sequence[Row], keys: Keys, seen: Sequence[int]) -> None:
        self.rows = list(rows)
        self.columns = keys[0].k.shape[2]
        self.keys = list(keys)
        position_T = torch.arange(self.columns, device=keys[0].k.device)
        missing = self.columns - torch.tensor(seen, device=position_T.device)
        self.mask_nT = _additive(position_T[None] < missing[:, None], dtype=keys[0].k.dtype)
        self.ragged = min(seen) < self.columns
        self._starts = [self.columns - count for count in seen]  # first column of each row
        self._reserve(self.columns + SPARE_COLUMNS)

    def __len__(self) -> int:
        return len(self.rows)

    def bytes_held(self) -> int:
        return num_bytes(self.keys)

    @property
    def width(self) -> int:
        """Number of columns that at least one row attends to."""
        return self.columns - min(self._starts, default=self.columns)

    def make_room(self) -> None:
        """Make room for one more token per fork. If memory runs out, some layers may have more room than others."""
        if self.columns == min(layer.k.shape[2] for layer in self.keys):
            self.trim()
            self._reserve(self.columns + max(SPARE_COLUMNS, self.columns // 2))

    def trim(self) -> None:
        """Drop the columns that no row attends to. Their memory is freed when the keys are copied."""
        first = self.columns - self.width
        if first:
            self.columns -= first
            self._starts = [start - first for start in self._starts]
            self.mask_nT = self.mask_nT[:, first:]
            self.keys = [LayerKeys(*(part[:, :, first:] for part in (layer.k, layer.v))) for layer in self.keys]

    def shrink(self) -> None:
        """Free the memory of removed rows, layer by layer."""
        n = len(self.rows)
        for index, layer in enumerate(self.keys):
            if layer.k.shape[0] > n:
                self.keys[index] = LayerKeys(*(part[:n].clone() for part in (layer.k, layer.v)))
        self.mask_nT = self.mask_nT[:n]

    def _reserve(self, columns: int) -> None:
        """Widen all layers to `columns`, one after the other, so that memory freed by one is available to the next."""
        n = len(self.rows)
        self.mask_nT = nn.functional.pad(self.mask_nT[:n, : self.columns], (0, columns - self.columns))
        for index, layer in enumerate(self.keys):
            if layer.k.shape[2] < columns:
                self.keys[index] = LayerKeys(
                    *(_widened(part[:n, :, : self.columns], columns) for part in (layer.k, layer.v))
                )

    def advance(self) -> None:
        """Keep the newest token's keys, which `attend` wrote."""
        self.columns += 1

    def remove(self, index: int) -> None:
        """Remove a fork; the last fork takes its index."""
        last = len(self.rows) - 1
        self.rows[index], self._starts[index] = self.rows[last], self._starts[last]
        self.rows.pop()
        self._starts.pop()
        if index != last:
            self.mask_nT[index] = self.mask_nT[last]
            for layer in self.keys:
                for part in (layer.k, layer.v):
                    part[index, :, : self.columns] = part[last, :, : self.columns]

    def attend(self, layer: int, query_nhgd: Tensor, key_nhd: Tensor, value_nhd: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest tokens' keys and attend; output [n, h, g, d] and log-sum-exp [n, h, g, 1], both float32."""
        n, until = len(self.rows), self.columns + 1
        keys = self.keys[layer]
        keys.k[:n, :, self.columns] = key_nhd
        keys.v[:n, :, self.columns] = value_nhd
        # With few queries per fork, the matrix kernel is faster with the long keys as its left operand.
        scores = _product(keys.k[:n, :, :until], query_nhgd.transpose(-1, -2)).transpose(-1, -2).contiguous()
        if self.ragged:
            scores += self.mask_nT[:n, None, None, :until]
        return _part(scores, keys.v[:n, :, :until])


def joined(one: KVBlock[Row], other: KVBlock[Row]) -> KVBlock[Row]:
    """Merge two blocks into one, right-aligned."""
    one.trim()
    other.trim()
    columns = max(one.columns, other.columns)
    n = len(one) + len(other)
    keys = []
    for a, b in zip(one.keys, other.keys, strict=True):
        parts = []
        for x, y in ((a.k, b.k), (a.v, b.v)):
            new = x.new_zeros(n, x.shape[1], columns, x.shape[3])
            new[: len(one), :, columns - one.columns :] = x[: len(one), :, : one.columns]
            new[len(one) :, :, columns - other.columns :] = y[: len(other), :, : other.columns]
            parts.append(new)
        keys.append(LayerKeys(*parts))
    whole = KVBlock([*one.rows, *other.rows], keys, [one.columns] * len(one) + [other.columns] * len(other))
    for start, part in ((0, one), (len(one), other)):
        whole.mask_nT[start : start + len(part), columns - part.columns : columns] = part.mask_nT[
            : len(part), : part.columns
        ]
    whole.ragged |= one.ragged or other.ragged
    whole._starts = [start + columns - part.columns for part in (one, other) for start in part._starts]
    return whole


def _widened(part_nhTd: Tensor, columns: int) -> Tensor:
    """A copy with `columns` columns; the new ones are uninitialized."""
    n, heads, taken, width = part_nhTd.shape
    new = part_nhTd.new_empty(n, heads, columns, width)
    new[:, :, :taken] = part_nhTd
    return new


def _additive(hidden: Tensor, *, dtype: torch.dtype) -> Tensor:
    """An additive attention mask: minus infinity where `hidden`, else 0."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)


@dataclass(frozen=True, slots=True)
class Shared:
    """The rows of a batch that attend to one prefix.

    index: [m] rows of the batch. mask_mL: additive mask, minus infinity from position prefix_len of each row.
    """

    prefix: Keys
    index: Tensor
    mask_mL: Tensor

    @classmethod
    def of(cls, prefix: Keys, *, index: Sequence[int], visible: Sequence[int]) -> Shared:
        """index: rows of the batch. visible: how many tokens of the prefix each of them attends to, at least 1."""
        first = prefix[0].k
        position_L = torch.arange(max(visible), device=first.device)
        hidden_mL = position_L[None] >= torch.tensor(visible, device=first.device)[:, None]
        return cls(prefix, torch.tensor(index, device=first.device), _additive(hidden_mL, dtype=first.dtype))

    def attend(self, layer: int, query_mhgd: Tensor) -> tuple[Tensor, Tensor]:
        """Like `KVBlock.attend`, but the queries of all forks form one matrix and the keys exist once."""
        m, heads, groups, width = query_mhgd.shape
        longest = self.mask_mL.shape[1]
        keys = self.prefix[layer]
        if FUSED is not None and query_mhgd.device.type == "cpu" and query_mhgd.dtype == torch.float32:
            k, v = (part[:, :, :longest] for part in (keys.k, keys.v))
            query_1Hmd = query_mhgd.flatten(1, 2).transpose(0, 1)[None]
            out_1Hmd, lse_1Hm = FUSED(query_1Hmd, k, v, attn_mask=self.mask_mL[None, None], scale=1.0)
            out, lse = out_1Hmd[0].transpose(0, 1), lse_1Hm[0].transpose(0, 1)
            return out.view(m, heads, groups, width), lse.view(m, heads, groups, 1)
        folded = query_mhgd.transpose(0, 1).reshape(heads, m * groups, width)
        scores = _product(folded, keys.k[0, :, :longest].transpose(-1, -2))
        scores.view(heads, m, groups, longest).add_(self.mask_mL[:, None])
        out, lse = _part(scores, keys.v[0, :, :longest])
        return out.view(heads, m, groups, -1).transpose(0, 1), lse.view(heads, m, groups, 1).transpose(0, 1)


def _part(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over one part, and the log-sum-exp of its scores (last axis 1). Overwrites `scores`."""
    top = scores.amax(-1, keepdim=True)
    weight = scores.sub_(top).exp_()
    total = weight.sum(-1, keepdim=True)
    return _product(weight.to(value.dtype), value).div_(total), top.add_(total.log_())


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, accumulated and returned in float32 also for half-precision operands."""
    if left.dtype.itemsize >= 4:
        return left @ right
    if left.device.type == "cuda":  # torch supports out_dtype only on CUDA
        shape = (*left.shape[:-1], right.shape[-1])
        flat = (x.reshape(-1, *x.shape[-2:]) for x in (left, right))
        return torch.bmm(*flat, out_dtype=torch.float32).view(shape)
    return left.float() @ right.float()


@dataclass(frozen=True, slots=True)
class Prefill:
    """A forward pass over whole sequences, [b, T] padded on the right; each layer appends its keys and values to `keys`."""

    keys: Keys


@dataclass(frozen=True, slots=True)
class Decode:
    """A decode step over the newest token of every fork, [N, 1]: the rows of all blocks, concatenated."""

    blocks: Sequence[KVBlock[Any]]
    shared: Sequence[Shared]


def fork_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    forks: Prefill | Decode,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function for `transformers`: query [N, H, q, d], key and value [N, h, q, d] -> [N, q, H, d]."""
    # Models whose config shows this are refused earlier (cft/models/architecture.py).
    if softcap is not None or s_aux is not None:
        raise TypeError("its attention has soft-capped scores or attention sinks")
    if isinstance(forks, Prefill):
        forks.keys.append(LayerKeys(key, value))
        # No real token attends to the padding, which is on its right.
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return attended.transpose(1, 2), None
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    key_Nhd, value_Nhd = key[:, :, 0], value[:, :, 0]
    count, heads, width = key_Nhd.shape
    query_Nhgd = (query[:, :, 0] * scaling).view(count, heads, -1, width)  # g query heads share a key head
    parts, start = [], 0
    for block in forks.blocks:
        rows = slice(start, start + len(block))
        parts.append(block.attend(layer, query_Nhgd[rows], key_Nhd[rows], value_Nhd[rows]))
        start += len(block)
    out_Nhgd, lse_Nhg1 = (torch.cat(part) for part in zip(*parts, strict=True))
    for shared in forks.shared:
        out, lse = shared.attend(layer, query_Nhgd[shared.index])
        weight = torch.sigmoid(lse - lse_Nhg1[shared.index])
        out_Nhgd[shared.index] = torch.lerp(out_Nhgd[shared.index], out, weight)
    return out_Nhgd.to(query.dtype).view(count, 1, query.shape[1], -1), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, fork_attention)
