"""Greedy and sampled choice of the next token, and detection of near ties.

Random numbers are counter-based: the uniform for response position i of a fork is the i-th number of a Philox stream
keyed by (seed, purpose), so a sample does not depend on the batch in which it is decoded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cft.errors import BadValue
from cft.types import Adjustment, Sampling, Written

TIE_MARGIN = 1e-3  # logits, in float32

# Effect of rounding on a sample. Logits of two computations differ by about e = 6e-5. A cumulative probability F then moves by
# at most 2 e F (1 - F): 3e-5 at F = 1/2, 6e-6 at a top_p of 0.95.
TIE_MARGIN_PROBABILITY = 4e-5  # a uniform this close to a boundary at F = 1/2 could fall on its other side
LEAST_MOVE = 1 / 40  # minimum of 4 F (1 - F) for boundaries near 0 or 1, where F (1 - F) vanishes but rounding does not
TIE_MARGIN_NUCLEUS = 1e-5  # a cumulative probability this close to top_p could include one token more or less
RELATIVE_TIE = 2e-4  # probabilities with a smaller relative difference could swap ranks
NUCLEUS_GUESS = 256  # first guess of the nucleus size; most are smaller, and top-k avoids sorting the vocabulary
MAX_BLOCK = 1024


def tie_margin_for(dtype: torch.dtype, asked: float | None) -> float:
    """The margin, in logits, below which a choice is re-scored without a cache.

    Logits of a bfloat16 head are multiples of 1/16 to 1/8. A margin would detect only exact ties of rounded values, a quarter
    of the choices that another batch can change, at the cost of a whole forward pass each.

    Args:
        dtype: Of the model's weights.
        asked: The configured margin; None: 1e-3 in float32, 0 in half precision.

    Raises:
        BadValue: A margin above 0 in half precision.
    """
    half = dtype.itemsize < 4
    if asked is None:
        return 0.0 if half else TIE_MARGIN
    if half and asked > 0:
        raise BadValue(
            f"engine.tie_margin={asked:g}: in half precision no margin tells which choices another batch would change; "
            "expected null or 0 with model.dtype=bfloat16 (the annotation's replays measure the flips), or model.dtype=float32"
        )
    return asked


def uniforms(sampling: Sampling, count: int) -> NDArray[np.float64]:
    """[count] uniform random numbers in [0, 1), a pure function of (seed, purpose); empty for greedy decoding."""
    if sampling.temperature == 0:
        return np.zeros(0)
    digest = hashlib.blake2b(f"{sampling.seed}\x1f{sampling.purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def choose(
    logits_NV: Tensor,
    *,
    sampling: Sequence[Sampling],
    uniform: Sequence[float],
    tie_margin: float,
    written: Sequence[Written],
) -> tuple[list[int], list[bool]]:
    """Choose the next token of every row.

    Args:
        logits_NV: Logits.
        sampling: Sampling parameters per row.
        uniform: Random number of each row's next position; ignored for greedy rows.
        tie_margin: In logits; 0 = no choice counts as a near tie.
        written: The ids so far per row, for rows with an adjustment.

    Returns:
        The chosen token per row, and whether the choice is a near tie that rounding could change.

    Raises:
        FloatingPointError: The logits are not finite.
    """
    unsure = list[bool]()
    if any(how.adjustment is not None for how in sampling):
        logits_NV, unsure = adjusted(logits_NV, sampling=sampling, written=written, tie_margin=tie_margin)
    token_N, margin_N = greedy(logits_NV)
    tokens, near = token_N.tolist(), (margin_N < tie_margin).tolist()
    kinds: dict[tuple[float, float], list[int]] = {}
    for row, how in enumerate(sampling):
        if how.temperature != 0:
            kinds.setdefault((how.temperature, how.top_p), []).append(row)
    for (temperature, top_p), rows in kinds.items():
        uniform_N = torch.tensor([uniform[row] for row in rows], dtype=torch.float64, device=logits_NV.device)
        drawn = logits_NV if len(rows) == len(logits_NV) else logits_NV[rows]
        drawn_N, distance_N = sampled(drawn, temperature=temperature, top_p=top_p, uniform_N=uniform_N)
        too_near = (distance_N < TIE_MARGIN_PROBABILITY).tolist()
        for row, token, close in zip(rows, drawn_N.tolist(), too_near, strict=True):
            tokens[row], near[row] = token, close and tie_margin > 0
    if unsure:
        near = [one or other for one, other in zip(near, unsure, strict=True)]
    return tokens, near


def adjusted(
    logits_NV: Tensor, *, sampling: Sequence[Sampling], written: Sequence[Written], tie_margin: float
) -> tuple[Tensor, list[bool]]:
    """Apply each row's adjustment to its logits; also return which rows' adjustments depend on a near tie."""
    require_finite(logits_NV.amax(-1))  # checked before tokens are forbidden, which could hide broken logits
    groups: dict[Adjustment | None, list[int]] = {}
    for row, how in enumerate(sampling):
        groups.setdefault(how.adjustment, []).append(row)
    found_NV, unsure = logits_NV, [False] * len(sampling)
    for adjustment, rows in groups.items():
        if adjustment is None:
            continue
        whole = len(groups) == 1
        before = logits_NV if whole else logits_NV[rows]
        context = written if whole else [written[row] for row in rows]
        after = adjustment.adjust(before, context)
        found_NV = after if whole else found_NV.index_copy(0, torch.tensor(rows, device=logits_NV.device), after)
        doubtful = adjustment.unsure(before, context, tie_margin=tie_margin) if tie_margin > 0 else None
        for row, doubt in zip(rows, [] if doubtful is None else doubtful.tolist(), strict=doubtful is not None):
            unsure[row] = doubt
    return found_NV, unsure


def greedy(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable token [N] int64 and its margin [N] over the second, in logits.

    The maxima of vocabulary blocks are computed first, in one fast pass; then only the best block of each row is searched.
    """
    vocabulary = logits_NV.shape[1]
    block = min(MAX_BLOCK, vocabulary & -vocabulary)  # the largest power of two that divides it
    if vocabulary // block < 2 or block < 16:
        best = logits_NV.topk(2, dim=-1)
        token_N, first_N, second_N = best.indices[:, 0], best.values[:, 0], best.values[:, 1]
    else:
        blocks_NCB = logits_NV.unflatten(1, (-1, block))
        outer = blocks_NCB.amax(-1).topk(2, dim=-1)
        winner_N = outer.indices[:, 0]
        inner = blocks_NCB[torch.arange(len(logits_NV), device=logits_NV.device), winner_N].topk(2, dim=-1)
        token_N, first_N = winner_N * block + inner.indices[:, 0], inner.values[:, 0]
        second_N = torch.maximum(inner.values[:, 1], outer.values[:, 1])
    require_finite(first_N)
    return token_N, first_N - second_N


def require_finite(best: Tensor) -> None:
    """Raise FloatingPointError if a row's largest logit is NaN or infinite."""
    if not torch.isfinite(best).all():
        raise FloatingPointError(
            "the model's logits are NaN or infinite: its weights are broken or its precision is too low, and nothing decoded "
            "from them would be valid (try model.dtype=float32, or another checkpoint)"
        )


def sampled(logits_NV: Tensor, *, temperature: float, top_p: float, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sample by the inverse cumulative distribution in the order of token ids.

    Nucleus (top-p): the smallest set of most probable tokens whose probability reaches top_p (arXiv 1904.09751).

    Args:
        logits_NV: Logits.
        temperature: Above 0.
        top_p: In (0, 1]; 1 = the whole vocabulary.
        uniform_N: Uniform random numbers, float64.

    Returns:
        Tokens [N], and the distance [N] of the uniform to the nearest boundary between two tokens. The distance is a
        probability, divided by how far rounding moves that boundary relative to one at 1/2.
    """
    weight_NV = logits_NV.sub(logits_NV.amax(-1, keepdim=True)).div_(temperature).exp_()
    # Low temperatures amplify rounding errors of the logits.
    if top_p == 1:
        token_N, distance_N = _drawn(weight_NV, uniform_N, unsure_N=torch.zeros_like(uniform_N))
        return token_N, distance_N * min(1.0, temperature)
    total_N = weight_NV.sum(-1, dtype=torch.float64)
    token_N = torch.zeros_like(uniform_N, dtype=torch.long)
    distance_N = torch.zeros_like(uniform_N)
    rows, width = torch.arange(len(logits_NV), device=logits_NV.device), min(NUCLEUS_GUESS, logits_NV.shape[1])
    while len(rows):  # the few rows with a wider nucleus are repeated with more tokens
        top = (weight_NV if len(rows) == len(weight_NV) else weight_NV[rows]).topk(width, dim=-1)
        share_MK = top.values.double() / total_N[rows][:, None]
        found = (share_MK[:, :-1].sum(-1) >= top_p) | (width == logits_NV.shape[1])
        id_MK, weight_MK, unsure_M = _nucleus(
            top.indices[found], share_MK[found], top_p=top_p, amplified=max(1.0, 1 / temperature)
        )
        index_M, distance_N[rows[found]] = _drawn(weight_MK, uniform_N[rows[found]], unsure_N=unsure_M)
        token_N[rows[found]] = id_MK.gather(1, index_M[:, None])[:, 0]
        rows, width = rows[~found], min(8 * width, logits_NV.shape[1])
    return token_N, distance_N * min(1.0, temperature)


def _drawn(weight_NM: Tensor, uniform_N: Tensor, *, unsure_N: Tensor) -> tuple[Tensor, Tensor]:
    """Index [N] of each uniform in the inverse cumulative distribution over weights [N, M], and its distance [N] to the nearest
    boundary, scaled as in `sampled`. unsure_N: probability of tokens that may not belong to the distribution."""
    # In the order of ids, not of probabilities: near-equal tokens that swap ranks then change nothing.
    cumulative_NM = weight_NM.cumsum(-1, dtype=torch.float64)
    total_N1 = cumulative_NM[:, -1:]
    point_N1 = uniform_N[:, None] * total_N1
    index_N1 = torch.searchsorted(cumulative_NM, point_N1, right=True)
    last_N1 = (cumulative_NM < total_N1).sum(-1, keepdim=True)  # guards against rounding at the upper end
    index_N1 = torch.minimum(index_N1, last_N1)
    above_N = (cumulative_NM.gather(1, index_N1) / total_N1)[:, 0]
    below_N = (cumulative_NM.gather(1, (index_N1 - 1).clamp(min=0)) / total_N1)[:, 0]
    # A token that enters or leaves the nucleus moves later boundaries by at most its probability.
    to_above_N = (above_N - uniform_N - unsure_N) / (4 * above_N * (1 - above_N) + LEAST_MOVE)
    to_below_N = (uniform_N - below_N - unsure_N) / (4 * below_N * (1 - below_N) + LEAST_MOVE)
    # There is no token before the first one.
    to_below_N[(index_N1[:, 0] == 0) | (below_N == 0)] = math.inf
    return index_N1[:, 0], torch.minimum(to_above_N, to_below_N)


def _nucleus(id_NK: Tensor, share_NK: Tensor, *, top_p: float, amplified: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the most probable tokens [N, K], by descending probability, to the nucleus. Returns ids [N, K] in ascending order,
    their probabilities [N, K] (0 outside the nucleus), and the total probability [N] of tokens whose membership rounding could
    change. amplified: factor by which the temperature amplifies rounding errors."""
    width = id_NK.shape[1]
    before_NK = share_NK.cumsum(-1) - share_NK
    inside_NK = before_NK < top_p
    kept_N1 = inside_NK.sum(-1, keepdim=True)
    last_N1, next_N1 = (share_NK.gather(1, (kept_N1 - back).clamp(max=width - 1)) for back in (1, 0))
    # Tokens that rounding could include or exclude: near-equal at the border, or where the sum just reaches top_p.
    alike_NK = (share_NK / last_N1 - 1).abs() < RELATIVE_TIE * amplified
    unsure_NK = (before_NK - top_p).abs() < TIE_MARGIN_NUCLEUS * amplified
    unsure_NK |= alike_NK & ((next_N1 / last_N1 - 1).abs() < RELATIVE_TIE * amplified) & (kept_N1 < width)
    sorted_NK, order_NK = id_NK.sort(dim=-1)
    inside = torch.where(inside_NK, share_NK, 0.0).gather(1, order_NK)
    return sorted_NK, inside, torch.where(unsure_NK, share_NK, 0.0).sum(-1)
