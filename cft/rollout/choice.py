"""Which token comes next: greedy or sampled, and how near the choice was to another.

Random numbers are counter-based: the uniform for response position i of a fork is the i-th number of a Philox stream
keyed by (seed, purpose), so a sample does not depend on the batch it was decoded in.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cft.types import Sampling

# A uniform this near to a boundary of the cumulative distribution could fall on its other side after rounding.
TIE_MARGIN_PROBABILITY = 1e-4


def uniforms(sampling: Sampling, count: int) -> NDArray[np.float64]:
    """[count] numbers in [0, 1), a pure function of (seed, purpose); empty for greedy decoding."""
    if sampling.temperature == 0:
        return np.zeros(0)
    digest = hashlib.blake2b(f"{sampling.seed}\x1f{sampling.purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def greedy(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable token [B] int64, equal logits to the lower id, and the margin [B] to the second, in logits."""
    top_B2 = logits_BV.topk(2, dim=-1).values
    return logits_BV.argmax(dim=-1), top_B2[:, 0] - top_B2[:, 1]


def sampled(logits_V: Tensor, *, sampling: Sampling, uniform: float) -> tuple[int, float]:
    """Token by inverse cumulative distribution, and the distance of `uniform` to the nearest boundary (probability).

    Nucleus (top-p): the smallest set of most probable tokens whose probability reaches top_p (arXiv 1904.09751).
    """
    probability_V = torch.softmax(logits_V.double() / sampling.temperature, dim=-1)
    edge = 1.0  # how far the nucleus is from holding other tokens
    if sampling.top_p < 1:
        sorted_V, order_V = probability_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(0) - sorted_V
        kept = int((before_V < sampling.top_p).sum())
        edge = float((before_V - sampling.top_p).abs().min())
        if kept < sorted_V.numel():
            edge = min(edge, float(sorted_V[kept - 1] - sorted_V[kept]))  # two equals, of which one is in
        nucleus_V = torch.zeros_like(probability_V)
        nucleus_V[order_V[:kept]] = sorted_V[:kept]
        probability_V = nucleus_V
    # In the order of ids, not of probabilities: near equals that swap ranks then change nothing.
    cumulative_V = probability_V.cumsum(0)
    point = uniform * float(cumulative_V[-1])
    token = int(torch.searchsorted(cumulative_V, point, right=True))
    token = min(token, int(probability_V.nonzero()[-1]))  # rounding at the very end
    above = float(cumulative_V[token]) - point
    below = point - (float(cumulative_V[token - 1]) if token else 0.0)
    first = not bool(probability_V[:token].any())
    # Low temperatures blow up rounding errors of the logits.
    return token, min(above, 1.0 if first else below, edge) * min(1.0, sampling.temperature)
