"""Attention of forks: over the sequence they share, and over what each decoded itself.

    prefix   [1, h, L, d]    keys of a sequence, stored once; every fork of it looks at them, up to its own prefix_len
    block    [n, h, T, d]    keys of n forks' own tokens, of similar length; a mask hides what a shorter one lacks

Both parts are computed apart and joined exactly. With the scores s_m of part m,

    lse_m = log sum exp s_m        out = sum_m exp(lse_m) softmax(s_m) v_m / sum_m exp(lse_m)

so of two parts the first has the weight sigmoid(lse_1 - lse_2). A fork without a shared prefix has all its keys in its block.

Scores, log-sum-exp and outputs are float32 in half precision too, as inside SDPA: a bfloat16 of 20 has steps of 0.125, and
the difference of two of them would decide the weights.
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
# What torch's attention calls on a CPU; it alone gives the log-sum-exp too. In float32 a fifth faster than product by product.
FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
SPARE_COLUMNS = (
    32  # a block is made with room for so many tokens; when full it gets as many again, or half of what it has
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
    """Keys and values of the tokens that some forks do not share.

    rows: what the caller keeps of each fork, in the order of the batch.

    keys: by layer, [n, h, T, d]; seen: how many of the T columns each row has, the last ones. The first columns belong to rows
    that have left: where the block is copied anyway, they stay behind.
    """

    def __init__(self, rows: Sequence[Row], keys: Keys, seen: Sequence[int]) -> None:
        self.rows = list(rows)
        self.columns = keys[0].k.shape[2]
        self.keys = list(keys)
        position_T = torch.arange(self.columns, device=keys[0].k.device)
        missing = self.columns - torch.tensor(seen, device=position_T.device)
        self.mask_nT = _additive(position_T[None] < missing[:, None], dtype=keys[0].k.dtype)
        self.ragged = min(seen) < self.columns
        self._starts = [self.columns - count for count in seen]  # the first column of each row
        self._reserve(self.columns + SPARE_COLUMNS)

    def __len__(self) -> int:
        return len(self.rows)

    def bytes_held(self) -> int:
        return num_bytes(self.keys)

    @property
    def width(self) -> int:
        """Columns that a row still sees."""
        return self.columns - min(self._starts, default=self.columns)

    def make_room(self) -> None:
        """For one more token of each fork. If memory runs out here, some layers have more room than others."""
        if self.columns == min(layer.k.shape[2] for layer in self.keys):
            self.trim()
            self._reserve(self.columns + max(SPARE_COLUMNS, self.columns // 2))

    def trim(self) -> None:
        """Leave out the columns that no row sees. Their memory is free once the keys are copied."""
        first = self.columns - self.width
        if first:
            self.columns -= first
            self._starts = [start - first for start in self._starts]
            self.mask_nT = self.mask_nT[:, first:]
            self.keys = [LayerKeys(*(part[:, :, first:] for part in (layer.k, layer.v))) for layer in self.keys]

    def shrink(self) -> None:
        """Give back the memory of rows that have left, layer by layer."""
        n = len(self.rows)
        for index, layer in enumerate(self.keys):
            if layer.k.shape[0] > n:
                self.keys[index] = LayerKeys(*(part[:n].clone() for part in (layer.k, layer.v)))
        self.mask_nT = self.mask_nT[:n]

    def _reserve(self, columns: int) -> None:
        """Layer by layer: the memory that one leaves is there for the next."""
        n = len(self.rows)
        self.mask_nT = nn.functional.pad(self.mask_nT[:n, : self.columns], (0, columns - self.columns))
        for index, layer in enumerate(self.keys):
            if layer.k.shape[2] < columns:
                self.keys[index] = LayerKeys(
                    *(_widened(part[:n, :, : self.columns], columns) for part in (layer.k, layer.v))
                )

    def advance(self) -> None:
        """The newest token's keys, which `attend` wrote, are kept."""
        self.columns += 1

    def remove(self, index: int) -> None:
        """Drop a fork; the last one takes its place."""
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
        """Output [n, h, g, d] and log-sum-exp [n, h, g, 1] of the newest tokens, whose keys are written down. Both float32."""
        n, until = len(self.rows), self.columns + 1
        keys = self.keys[layer]
        keys.k[:n, :, self.columns] = key_nhd
        keys.v[:n, :, self.columns] = value_nhd
        # Few queries a fork: the matrix kernel reads long keys faster as its left side.
        scores = _product(keys.k[:n, :, :until], query_nhgd.transpose(-1, -2)).transpose(-1, -2).contiguous()
        if self.ragged:
            scores += self.mask_nT[:n, None, None, :until]
        return _part(scores, keys.v[:n, :, :until])


def joined(one: KVBlock[Row], other: KVBlock[Row]) -> KVBlock[Row]:
    """Both as one block, the shorter rows right-aligned."""
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
    """A copy with room for so many columns, the new ones unwritten."""
    n, heads, taken, width = part_nhTd.shape
    new = part_nhTd.new_empty(n, heads, columns, width)
    new[:, :, :taken] = part_nhTd
    return new


def _additive(hidden: Tensor, *, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores: minus infinity where `hidden`, else 0."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)


@dataclass(frozen=True, slots=True)
class Shared:
    """The rows of a batch that look at one prefix. index: [m] rows. mask: [m, L], minus infinity from a row's prefix_len on."""

    prefix: Keys
    index: Tensor
    mask_mL: Tensor

    @classmethod
    def of(cls, prefix: Keys, *, index: Sequence[int], visible: Sequence[int]) -> Shared:
        """index: rows of the batch. visible: how many tokens of the prefix each of them sees, at least 1."""
        first = prefix[0].k
        position_L = torch.arange(max(visible), device=first.device)
        hidden_mL = position_L[None] >= torch.tensor(visible, device=first.device)[:, None]
        return cls(prefix, torch.tensor(index, device=first.device), _additive(hidden_mL, dtype=first.dtype))

    def attend(self, layer: int, query_mhgd: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVBlock.attend`. The point of it all: the queries of all forks are one matrix, and the keys exist once."""
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
    """Attention over one part alone, and the log-sum-exp of its scores (last axis 1), which are overwritten."""
    top = scores.amax(-1, keepdim=True)
    weight = scores.sub_(top).exp_()
    total = weight.sum(-1, keepdim=True)
    return _product(weight.to(value.dtype), value).div_(total), top.add_(total.log_())


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right with its sums in float32, also where both are of half precision."""
    if left.dtype.itemsize >= 4:
        return left @ right
    if left.device.type == "cuda":  # only there has torch a product of that kind
        shape = (*left.shape[:-1], right.shape[-1])
        flat = (x.reshape(-1, *x.shape[-2:]) for x in (left, right))
        return torch.bmm(*flat, out_dtype=torch.float32).view(shape)
    return left.float() @ right.float()


@dataclass(frozen=True, slots=True)
class Prefill:
    """A forward pass over whole sequences, [b, T] padded on the right; `keys` takes what each layer computes."""

    keys: Keys


@dataclass(frozen=True, slots=True)
class Decode:
    """A forward pass over the newest token of every fork, [N, 1]: the rows of all blocks, one after the other."""

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
    """An attention function of `transformers`: query [N, H, q, d], key and value [N, h, q, d] -> [N, q, H, d]."""
    if (
        softcap is not None or s_aux is not None
    ):  # of a model whose config does not say so: see cft/models/architecture.py
        raise TypeError("its attention has soft-capped scores or attention sinks")
    if isinstance(forks, Prefill):
        forks.keys.append(LayerKeys(key, value))
        # Padding on the right is never looked at by what is before it.
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
