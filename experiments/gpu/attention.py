"""Fork attention in half precision: accuracy compared with SDPA, and time of each implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from cft.engines.attention import KVBlock, LayerKeys, Shared
from experiments.gpu.record import Record, milliseconds

HEADS, GROUPS, WIDTH = 4, 7, 128  # as in Qwen2.5-7B


def attention(record: Record) -> None:
    device = record.device
    sizes = (5.0, 40.0) if record.tiny else (5.0, 10.0, 20.0, 40.0, 80.0)
    record.each(
        [(f"scores up to {size:g}", lambda size=size: errors(size, device=device)) for size in sizes], needs=3.0
    )
    rows, prefix, tail = (8, 40, 10) if record.tiny else (256, 400, 100)
    record.each([(f"time of {rows} rows", lambda: times(rows, prefix, tail, device=device))])
    record.each([("memory-efficient kernel", lambda: efficient(rows, prefix, device=device))])


def errors(magnitude: float, *, device: torch.device, prefix: int = 400, tail: int = 100) -> dict[str, float]:
    """Errors relative to float64: of fork attention over a shared prefix and a suffix, of the same with scores in bfloat16, as
    in an earlier version, and of SDPA over both."""
    generator = torch.Generator().manual_seed(0)
    rows = 8

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    query = draw(rows, HEADS, GROUPS, WIDTH)
    keys, values = draw(rows, HEADS, prefix + tail, WIDTH), draw(rows, HEADS, prefix + tail, WIDTH)
    keys[:, :, :prefix], values[:, :, :prefix] = keys[:1, :, :prefix], values[:1, :, :prefix]
    scores = torch.einsum("nhgd,nhtd->nhgt", query.double(), keys.double())
    query = (query.double() * magnitude / scores.abs().max()).to(torch.bfloat16)
    scores = torch.einsum("nhgd,nhtd->nhgt", query.double(), keys.double())
    exact = torch.einsum("nhgt,nhtd->nhgd", scores.softmax(-1), values.double())
    query, keys, values = (x.to(device) for x in (query, keys, values))
    halves = [slice(0, prefix), slice(prefix, None)]
    old = [_bfloat16_part(query, keys[:, :, half], values[:, :, half]) for half in halves]
    found = {
        "forks": _forks(query, keys, values, prefix),
        "scores in bfloat16": torch.lerp(old[1][0], old[0][0], torch.sigmoid(old[0][1] - old[1][1])),
        "sdpa": torch.nn.functional.scaled_dot_product_attention(
            query.flatten(1, 2)[:, :, None], keys, values, scale=1.0, enable_gqa=True
        ).view_as(query),
    }
    return {name: float((out.cpu().double() - exact).norm() / exact.norm()) for name, out in found.items()}


def _forks(query: Tensor, keys: Tensor, values: Tensor, prefix: int) -> Tensor:
    """One layer as in `fork_attention`: the newest token of each fork is written into its suffix."""
    rows = len(query)
    own = LayerKeys(keys[:, :, prefix:-1].contiguous(), values[:, :, prefix:-1].contiguous())
    block = KVBlock(list(range(rows)), [own], [own.k.shape[2]] * rows)
    sequence = [LayerKeys(keys[:1, :, :prefix], values[:1, :, :prefix])]
    shared = Shared.of(sequence, index=range(rows), visible=[prefix] * rows)
    out, lse = block.attend(0, query, keys[:, :, -1], values[:, :, -1])
    of_prefix, lse_prefix = shared.attend(0, query)
    return torch.lerp(out, of_prefix, torch.sigmoid(lse_prefix - lse)).to(query.dtype)


def _bfloat16_part(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    scores = query @ keys.transpose(-1, -2)
    top = scores.amax(-1, keepdim=True)
    weight = scores.sub_(top).exp_()
    total = weight.sum(-1, keepdim=True)
    return (weight @ values).div_(total), top.add_(total.log_())


def times(rows: int, prefix: int, tail: int, *, device: torch.device) -> dict[str, float]:
    """Time of one layer in milliseconds."""
    made = [torch.randn(rows, HEADS, n, WIDTH, device=device).to(torch.bfloat16) for n in (prefix + tail,) * 2]
    query = torch.randn(rows, HEADS, GROUPS, WIDTH, device=device).to(torch.bfloat16)
    keys, values = made
    own = LayerKeys(keys[:, :, prefix:-1].contiguous(), values[:, :, prefix:-1].contiguous())
    block = KVBlock(list(range(rows)), [own], [own.k.shape[2]] * rows)
    sequence = [LayerKeys(keys[:1, :, :prefix].contiguous(), values[:1, :, :prefix].contiguous())]
    shared = Shared.of(sequence, index=range(rows), visible=[prefix] * rows)
    newest = keys[:, :, -1], values[:, :, -1]
    folded = query.flatten(1, 2)[:, :, None]

    def ms(work: object) -> float:
        return milliseconds(work, device=device, times=20)  # type: ignore[arg-type]

    return {
        "tails": ms(lambda: block.attend(0, query, *newest)),
        "prefix": ms(lambda: shared.attend(0, query)),
        "tails, scores in bfloat16": ms(lambda: _bfloat16_part(query, own.k, own.v)),
        "sdpa over both, nothing shared": ms(
            lambda: torch.nn.functional.scaled_dot_product_attention(folded, keys, values, scale=1.0, enable_gqa=True)
        ),
    }


def efficient(rows: int, prefix: int, *, device: torch.device) -> dict[str, float]:
    """torch's memory-efficient kernel, which returns a float32 log-sum-exp: its error against float64 and its time, for the
    prefix."""
    if device.type != "cuda":
        return {}
    query, keys, values = (
        torch.randn(1, HEADS, n, WIDTH, device=device).to(torch.bfloat16) for n in (rows * GROUPS, prefix, prefix)
    )
    query = query / WIDTH**0.5 * 4

    def kernel() -> tuple[Tensor, ...]:
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, keys, values, None, True, scale=1.0)

    out, lse, *_ = kernel()
    scores = (query.double() @ keys.double().transpose(-1, -2)).cpu()
    exact = scores.softmax(-1) @ values.double().cpu()
    return {
        "error": float((out.double().cpu() - exact).norm() / exact.norm()),
        "lse_error": float((lse[..., : scores.shape[2]].double().cpu() - scores.logsumexp(-1)).abs().max()),
        "ms": milliseconds(kernel, device=device, times=20),
    }
