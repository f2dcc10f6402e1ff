"""Weightings: how much each eligible token counts, from live log-probs. Dynamic, flattened over the batch.

    weight_N = weighting(scores)          loss = sum_n  static_n * weight_n * token_loss_n

Here: the protocol, and weights that are a function of one token's prediction. Weights that look at the whole row are in
`cft/weightings/row.py`. Which tokens are eligible at all is a mask (`cft/masks/base.py`). To add a weighting, write a
class with a keyword-only constructor and `__call__`, a yaml in conf/weighting/ that names it, and a line in
tests/losses/test_oracle.py.

The loss is divided by all eligible tokens, so a weight of 0 takes a token out of the sum and not out of the count.
p_t is the probability of the target token; sg(x) has the value of x and no gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from cft.errors import BadValue
from cft.ranges import AboveZero, AtLeastZero, Finite, Fraction, FractionBelowOne, in_range
from cft.weightings.statistics import TokenScores


class TokenWeighting(Protocol):
    """needs: names of what `scores.known` must hold (`cft/weightings/statistics.py`). detached: whether weights are
    constants to the gradient. Both are class or instance attributes."""

    needs: tuple[str, ...]
    detached: bool

    def __call__(self, scores: TokenScores) -> Tensor: ...


class Weighting:
    """Base of most weightings: they need log-probs only and are constants to the gradient.

    selects: description of what a selection by rank keeps, "" for none. A class attribute, also read by the config check.
    """

    needs: tuple[str, ...] = ()
    detached: bool = True
    selects: str = ""


class Uniform(Weighting):
    """Every eligible token counts the same."""

    def __call__(self, scores: TokenScores) -> Tensor:
        return torch.ones_like(scores.logprob_N)


class Probability(Weighting):
    """w = sg(p_t)^exponent.

    Exponent 1 is Dynamic Fine-Tuning (DFT, arXiv 2508.05629), whose loss becomes -sg(p_t) log p_t. Any exponent has the
    gradient of (1 - p_t^exponent) / exponent (Beyond Log Likelihood, arXiv 2510.00526).

    Args:
        exponent: at least 0; 0 is plain fine-tuning.
    """

    @in_range
    def __init__(self, *, exponent: AtLeastZero = 1.0) -> None:
        self.exponent = exponent

    def __call__(self, scores: TokenScores) -> Tensor:
        return (self.exponent * scores.logprob_N).exp()


class ThresholdedProbability(Weighting):
    """w = 1[lowest <= p_t <= highest] sg(p_t)^exponent (Beyond Log Likelihood, arXiv 2510.00526).

    Args:
        exponent: at least 0.
        lowest: probability, 0 to 1. The paper compares several thresholds; those of the yaml are ours.
        highest: probability, at least `lowest`.

    Raises:
        BadValue: `lowest` is above `highest`.
    """

    @in_range
    def __init__(self, *, exponent: AtLeastZero, lowest: Fraction, highest: Fraction) -> None:
        if lowest > highest:
            raise BadValue(f"ThresholdedProbability.lowest: expected at most highest, {highest}, found {lowest}")
        self.exponent, self.lowest, self.highest = exponent, lowest, highest

    def __call__(self, scores: TokenScores) -> Tensor:
        p_N = scores.logprob_N.exp()
        inside_N = (p_N >= self.lowest) & (p_N <= self.highest)
        return inside_N * (self.exponent * scores.logprob_N).exp()


class ProFiT(Weighting):
    """w = 1[sg(p_t) > threshold] (ProFiT, arXiv 2601.09195).

    As in the paper the sum is divided by the full length, not by the number of tokens that pass.

    Args:
        threshold: probability, at least 0 and below 1. The paper uses 0.1 or 0.5.
    """

    @in_range
    def __init__(self, *, threshold: FractionBelowOne) -> None:
        self.threshold = threshold

    def __call__(self, scores: TokenScores) -> Tensor:
        return (scores.logprob_N.exp() > self.threshold).to(scores.logprob_N.dtype)


class Focal(Weighting):
    """w = (1 - p_t)^gamma (focal loss, arXiv 1708.02002).

    Args:
        gamma: at least 0; the paper's is 2.
        detached: false is the published loss. true keeps the weights constant, so that the gradient is (1 - p_t)^gamma times
            that of plain fine-tuning.
    """

    @in_range
    def __init__(self, *, gamma: AtLeastZero, detached: bool) -> None:
        self.gamma, self.detached = gamma, detached

    def __call__(self, scores: TokenScores) -> Tensor:
        # Not 1 - p: its derivative at p = 1 is infinite for gamma < 1, and rounding may put p above 1.
        return (-torch.expm1(scores.logprob_N)).clamp_min(torch.finfo(scores.logprob_N.dtype).tiny).pow(self.gamma)


class TrimSFT(Weighting):
    """w = exp(-(D - center)^2 / (2 width^2)), D = logit of the target minus the best other logit (TrimSFT, arXiv 2609.09707).

    Tokens already mastered and tokens out of reach both fade; weights are not renormalized.

    Args:
        center: logits; the paper's is 1.5.
        width: logits, above 0; the paper's is 0.8.
    """

    needs: tuple[str, ...] = ("margin",)

    @in_range
    def __init__(self, *, center: Finite, width: AboveZero) -> None:
        self.center, self.width = center, width

    def __call__(self, scores: TokenScores) -> Tensor:
        return (-((scores.known["margin"] - self.center) ** 2) / (2 * self.width**2)).exp()


class EAFT(Weighting):
    """w = (H_20 / scale)^exponent, H_20 = entropy of the 20 most probable tokens, renormalized (EAFT, arXiv 2601.02151).

    Args:
        exponent: at least 0; the paper's is 1.
        scale: nats, above 0; 3.0 is the constant of the authors' code for log 20.
    """

    needs: tuple[str, ...] = ("top_entropy",)

    @in_range
    def __init__(self, *, exponent: AtLeastZero, scale: AboveZero) -> None:
        self.exponent, self.scale = exponent, scale

    def __call__(self, scores: TokenScores) -> Tensor:
        return (scores.known["top_entropy"] / self.scale).pow(self.exponent)


class Product(Weighting):
    """The product of several weightings, each detached or not as it is alone.

    At most one of them may select by rank: each would rank all eligible tokens for itself and scale its n / k as if it
    were alone, so that what two keep together may be anything from no token of a row to k of them, with the wrong sum.

    Args:
        factors: the weightings, by any name.

    Raises:
        BadValue: several of them select by rank.
    """

    def __init__(self, *, factors: Mapping[str, TokenWeighting]) -> None:
        self.factors = dict(factors)
        selecting = {name: f.selects for name, f in self.factors.items() if isinstance(f, Weighting) and f.selects}
        if len(selecting) > 1:
            raise BadValue(f"Product.factors: expected at most one selection by rank, found {', '.join(selecting)}")
        self.selects = next(iter(selecting.values()), "")
        self.needs: tuple[str, ...] = tuple(sorted({need for f in self.factors.values() for need in f.needs}))
        self.detached: bool = all(f.detached for f in self.factors.values())

    def __call__(self, scores: TokenScores) -> Tensor:
        weight_N = torch.ones_like(scores.logprob_N)
        constant = dataclasses.replace(scores, logprob_N=scores.logprob_N.detach())
        for factor in self.factors.values():
            weight_N = weight_N * factor(constant if factor.detached else scores)
        return weight_N
