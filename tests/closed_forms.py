"""Closed-form gradients of every option of conf/weighting, conf/loss and conf/regularizer, independent of the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """Quantities at N tokens of all rows, in the order of rows and positions.

    p, r: [N, V] probabilities of policy and reference. py, ry: [N] of the target token. w: static weight. attention, ref:
    stored scores. n: number of tokens in the token's row.
    """

    p: Array
    r: Array
    hot: Array
    w: Array
    row: NDArray[np.int64]
    position: NDArray[np.int64]
    ref: Array
    attention: Array
    group: Array

    @property
    def py(self) -> Array:
        return (self.p * self.hot).sum(1)

    @property
    def nll(self) -> Array:
        return -np.log(self.py)

    @property
    def n(self) -> Array:
        return np.array([(self.row == b).sum() for b in self.row], dtype=float)

    @property
    def entropy(self) -> Array:
        return -(self.p * np.log(self.p)).sum(1)

    def top(self, score: Array, fraction: float) -> Array:
        """1 for the ceil(fraction * n) highest scores of each row, else 0."""
        chosen = np.zeros(len(score))
        for b in set(self.row.tolist()):
            (at,) = np.nonzero(self.row == b)
            keep = int(np.ceil(fraction * len(at) - 1e-9))
            chosen[at[np.argsort(-score[at], kind="stable")[:keep]]] = 1.0
        return chosen

    def mean_over(self, chosen: Array) -> Array:
        return chosen * self.n / np.array([chosen[self.row == b].sum() for b in self.row])


Gradient = Callable[[Known], Array]  # [N, V] of the term's sum with respect to the logits


def weighted(weight: Callable[[Known], Any]) -> Gradient:
    """Gradient toward the target distribution Q = w onehot + (1 - w) p."""

    def gradient(k: Known) -> Array:
        w = (weight(k) * np.ones(len(k.p)))[:, None]
        return k.w[:, None] * (k.p - (w * k.hot + (1 - w) * k.p))

    return gradient


def towards(target: Callable[[Known], Array]) -> Gradient:
    return lambda k: k.w[:, None] * (k.p - target(k))


def along_p(slope: Callable[[Known], Array]) -> Gradient:
    """For f(p_y): df/dz = f'(p_y) p_y (onehot - p)."""
    return lambda k: k.w[:, None] * (slope(k) * k.py)[:, None] * (k.hot - k.p)


def symmetric_ce(k: Known, *, floor: float) -> Array:
    """Of -log p_y + 0.1 A sum_{v != y} max(p_v, floor), A = -log 1e-4: a token at the floor adds no gradient."""
    moving = (k.p > floor) & (k.hot == 0)
    of_others = k.p * moving - k.p * (k.p * moving).sum(1, keepdims=True)
    return k.w[:, None] * (k.p - k.hot - 0.1 * np.log(1e-4) * of_others)


def entropy_of_20(k: Known) -> Array:
    top = np.sort(k.p, axis=1)[:, -20:]
    top = top / top.sum(1, keepdims=True)
    return -(top * np.log(top)).sum(1)


def margin(k: Known) -> Array:
    return np.log(k.py) - np.log(np.where(k.hot > 0, 0.0, k.p).max(1))


def sequence_ratio(k: Known, *, temperature: float = 1.0, largest: float = 16.0) -> Array:
    gain = np.log(k.py) - k.ref
    return np.minimum(np.exp([temperature * gain[k.row == b].mean() for b in k.row]), largest)


def ss_score(k: Known, *, gamma: float = 0.5) -> Array:
    gain = np.log(k.py) - k.ref
    low = np.array([gain[k.row == b].min() for b in k.row])
    high = np.array([gain[k.row == b].max() for b in k.row])
    return gamma * (gain - low) / (high - low) + (1 - gamma) * k.attention


def propagation(k: Known, *, detached: bool) -> Array:
    """g with weights n s_t / sum s, s_t = sum_{i >= t} 0.95^(i - t) l_i over positions of the row, token by token."""
    g = np.zeros_like(k.p)
    for b in set(k.row.tolist()):
        (at,) = np.nonzero(k.row == b)
        loss, where, static = k.nll[at], k.position[at], k.w[at]
        reach = np.where(where[None] >= where[:, None], 0.95 ** np.abs(where[None] - where[:, None]), 0.0)  # [t, i]
        s = reach @ loss
        total, n = s.sum(), len(at)
        slope = static * n * s / total
        if not detached:  # d/dl_i of sum_t static_t n s_t l_t / total, through s and through the total
            slope = slope + n * (static * loss) @ reach / total
            slope = slope - n * (static * s * loss).sum() / total**2 * reach.sum(0)
        g[at] = slope[:, None] * (k.p[at] - k.hot[at])
    return g


def gem(k: Known, h: Callable[[Array], Array]) -> Array:
    """Q = p + (sum of a) onehot - a, a_v = q_v h_v, q = p^(1 / 0.7) normalized, h of the logit over the target's."""
    q = k.p ** (1 / 0.7)
    a = q / q.sum(1, keepdims=True) * h(np.log(k.p) - np.log(k.py)[:, None])
    return k.p + a.sum(1, keepdims=True) * k.hot - a


def target_sft(k: Known) -> Array:
    blend = np.sqrt(k.p * k.r)
    return k.py[:, None] * k.hot + (1 - k.py)[:, None] * blend / blend.sum(1, keepdims=True)


def groups(k: Known) -> list[list[NDArray[np.int64]]]:
    """For each row, the indices of each non-empty group."""
    cells = [[np.nonzero((k.row == b) & (k.group == g))[0] for g in (0, 1)] for b in sorted(set(k.row.tolist()))]
    return [[cell for cell in row if len(cell)] for row in cells]


def cross_entropy(k: Known, at: NDArray[np.int64]) -> tuple[float, Array]:
    """Mean weighted loss of the given tokens and its gradient."""
    g = np.zeros_like(k.p)
    g[at] = (k.w[at] / len(at))[:, None] * (k.p[at] - k.hot[at])
    return float((k.w[at] * k.nll[at]).mean()), g


def worst_group(k: Known, *, share: float = 0.9) -> Array:
    g = np.zeros_like(k.p)
    for cells in groups(k):
        g += (1 - share) * cross_entropy(k, np.concatenate(cells))[1]
        g += share * max((cross_entropy(k, cell) for cell in cells), key=lambda pair: pair[0])[1]
    return g


def softmax_groups(k: Known, *, detached: bool) -> Array:
    g = np.zeros_like(k.p)
    for cells in groups(k):
        means, gradients = zip(*(cross_entropy(k, cell) for cell in cells), strict=True)
        share = np.exp(np.array(means) / 2.0) / np.exp(np.array(means) / 2.0).sum()
        mixed = (share * means).sum()
        slope = share if detached else share * (1 + (np.array(means) - mixed) / 2.0)
        g += sum(s * own for s, own in zip(slope, gradients, strict=True))
    return g


def f_divergence(slope: Callable[[float], float], *, beta: float = 0.1) -> Gradient:
    """Gradient of f*(-D) per row, D = beta times the sum of weighted log-ratios. slope: derivative with respect to D."""

    def gradient(k: Known) -> Array:
        g = np.zeros_like(k.p)
        for b in set(k.row.tolist()):
            (at,) = np.nonzero(k.row == b)
            delta = beta * (k.w[at] * (-k.nll[at] - k.ref[at])).sum()
            g[at] = slope(float(delta)) * beta * k.w[at, None] * (k.hot[at] - k.p[at])
        return g

    return gradient


def kl_to_reference(k: Known) -> Array:
    log_ratio = np.log(k.p / k.r)
    return k.p * (log_ratio - (k.p * log_ratio).sum(1, keepdims=True))


def sed(k: Known) -> Array:
    unsure = np.sort(k.p, axis=1)[:, -2:].sum(1) < 0.6
    return (unsure * 2 * (k.py - 0.5) * k.py)[:, None] * (k.hot - k.p)


def negative_entropy(k: Known) -> Array:
    return k.p * (np.log(k.p) + k.entropy[:, None])


@dataclass(frozen=True)
class Case:
    """Closed form of one option.

    gradient: of the main sum. count: its denominator. further: tokens, coefficient and gradient of each additional term, with
    static weight 1. progress: fraction of the steps done, for schedules. smooth: whether a weight is smooth in p, so that a
    gradient through it would be visible. limits: overrides that turn the method off, and the remaining method
    (tests/data/test_limits.py).
    """

    gradient: Gradient
    count: str = "eligible"
    further: tuple[tuple[str, float, Gradient], ...] = ()
    progress: float = 0.0
    smooth: bool = False
    limits: tuple[tuple[str, str], ...] = ()


def off(*overrides: str, becomes: str = "loss=nll") -> tuple[tuple[str, str], ...]:
    return tuple((override, becomes) for override in overrides)


SFT, PER_ROW, DFT = "loss=nll", "loss=nll loss.normalizer=sequence", "weighting=probability"


NLL = weighted(lambda k: 1.0)


KL_FROM = (("eligible", 0.1, lambda k: k.p - k.r),)


KL_TO = (("eligible", 0.1, kl_to_reference),)


SED = (("eligible", 1.0, sed),)


ENTROPY = (("other", 0.01, negative_entropy),)


EXTRA = "loss.regularizers.extra"


EXTRA_OFF = off(f"{EXTRA}.coefficient.initial=0.0")


A_QUARTER_OF_COSINE = (1 - np.sqrt(0.5)) / 2


def focal_slope(k: Known) -> Array:
    return 2 * (1 - k.py) * np.log(k.py) - (1 - k.py) ** 2 / k.py


TABLE: dict[str, Case] = {
    "weighting=uniform": Case(NLL, limits=off("")),
    "weighting=probability": Case(weighted(lambda k: k.py), smooth=True, limits=off("weighting.exponent=0.0")),
    "weighting=beyond_log": Case(
        weighted(lambda k: np.sqrt(k.py)),
        smooth=True,
        limits=off("weighting.exponent=0.0") + off("weighting.exponent=1.0", becomes=DFT),
    ),
    "weighting=thresholded": Case(weighted(lambda k: k.py >= 0.1), limits=off("weighting.lowest=0.0")),
    "weighting=thresholded weighting.exponent=2.0 weighting.highest=0.8": Case(
        weighted(lambda k: ((k.py >= 0.1) & (k.py <= 0.8)) * k.py**2), smooth=True
    ),
    "weighting=profit": Case(weighted(lambda k: k.py > 0.1), limits=off("weighting.threshold=0.0")),
    "weighting=focal": Case(along_p(focal_slope), smooth=True, limits=off("weighting.gamma=0.0")),
    "weighting=focal weighting.detached=true": Case(
        weighted(lambda k: (1 - k.py) ** 2), smooth=True, limits=off("weighting.gamma=0.0")
    ),
    "weighting=trim_sft": Case(
        weighted(lambda k: np.exp(-((margin(k) - 1.5) ** 2) / (2 * 0.8**2))), limits=off("weighting.width=1.0e+6")
    ),
    "weighting=eaft": Case(weighted(lambda k: entropy_of_20(k) / 3.0), limits=off("weighting.exponent=0.0")),
    "weighting=high_entropy": Case(weighted(lambda k: k.top(k.entropy, 0.2)), limits=off("weighting.fraction=1.0")),
    "weighting=excess_loss": Case(
        weighted(lambda k: k.mean_over(k.top(k.ref + k.nll, 0.6))), limits=off("weighting.fraction=1.0")
    ),
    "weighting=sstoken": Case(
        weighted(lambda k: k.mean_over(k.top(ss_score(k), 0.6))), limits=off("weighting.fraction=1.0")
    ),
    "weighting=sstoken weighting.gamma=0.085": Case(
        weighted(lambda k: k.mean_over(k.top(ss_score(k, gamma=0.085), 0.6))),
    ),
    "weighting=propagation": Case(
        lambda k: propagation(k, detached=False), smooth=True, limits=off("weighting.gamma=0.0")
    ),
    "weighting=propagation weighting.detached=true": Case(lambda k: propagation(k, detached=True), smooth=True),
    "weighting=iw_sft": Case(weighted(sequence_ratio), smooth=True, limits=off("weighting.temperature=0.0")),
    "weighting=iw_sft weighting.temperature=0.5 weighting.largest=0.7": Case(
        weighted(lambda k: sequence_ratio(k, temperature=0.5, largest=0.7)), smooth=True
    ),
    "weighting=product": Case(
        weighted(lambda k: k.py * entropy_of_20(k) / 3.0),
        limits=off("weighting@weighting.factors.second=uniform", becomes=DFT)
        + off("weighting@weighting.factors.first=uniform weighting@weighting.factors.second=uniform"),
    ),
    "weighting=product weighting@weighting.factors.second=focal": Case(  # sg(p) (1 - p)^2 (-log p)
        along_p(lambda k: k.py * focal_slope(k))
    ),
    "loss=nll": Case(NLL, limits=off("")),
    "loss=nll loss.normalizer=sequence": Case(lambda k: NLL(k) / k.n[:, None], count="sequence"),
    "loss=nll loss.normalizer=response": Case(NLL, count="response"),
    "loss=power": Case(
        weighted(lambda k: np.sqrt(k.py)), limits=off("loss.token_loss.exponent=0.0", "loss.token_loss.exponent=1.0e-9")
    ),
    "loss=psft": Case(weighted(lambda k: np.where(k.py / np.exp(k.ref) < 1.28, k.py / np.exp(k.ref), 0.0))),
    "loss=label_smoothing": Case(
        towards(lambda k: 0.9 * k.hot + 0.1 / k.p.shape[1]), limits=off("loss.token_loss.smoothing=0.0")
    ),
    "loss=symmetric_ce": Case(lambda k: symmetric_ce(k, floor=1e-7), limits=off("loss.token_loss.rce_weight=0.0")),
    "loss=symmetric_ce loss.token_loss.prob_floor=0.0": Case(
        along_p(lambda k: -1 / k.py + 0.1 * np.log(1e-4)), limits=off("loss.token_loss.rce_weight=0.0")
    ),
    "loss=symmetric_ce loss.token_loss.prob_floor=0.02": Case(lambda k: symmetric_ce(k, floor=0.02)),
    "loss=distillation": Case(
        towards(lambda k: 0.5 * k.hot + 0.5 * k.r), limits=off("loss.token_loss.teacher_weight=0.0")
    ),
    "loss=target_sft": Case(towards(target_sft)),
    "loss=gem": Case(towards(lambda k: gem(k, np.ones_like))),
    "loss=gem loss.token_loss.h=log_sigmoid": Case(towards(lambda k: gem(k, lambda d: 1 / (1 + np.exp(-0.01 * d))))),
    "loss=nll_kl": Case(NLL, further=KL_FROM, limits=off("loss.regularizers.kl.coefficient.initial=0.0")),
    "loss=asft": Case(
        NLL,
        further=(("eligible", 0.05, lambda k: k.p - k.r),),
        limits=off("loss.regularizers.kl.coefficient.initial=0.0")
        + off("loss.regularizers.kl.coefficient.initial=0.0 weighting=probability", becomes=DFT),
    ),
    "loss=asft weighting=probability": Case(  # as published
        weighted(lambda k: k.py), further=(("eligible", 0.05, lambda k: k.p - k.r),)
    ),
    "loss=sed": Case(
        NLL,
        further=SED,
        limits=off("loss.regularizers.sed.coefficient.initial=0.0", "loss.regularizers.sed.token_loss.tau=0.0"),
    ),
    "loss=nll_entropy": Case(NLL, further=ENTROPY, limits=off("loss.regularizers.entropy.coefficient.initial=0.0")),
    "loss=sft_go": Case(
        worst_group, count="sequence", limits=off("loss.aggregation.weight.initial=0.0", becomes=PER_ROW)
    ),
    "loss=sft_go loss.aggregation.weight.final=0.3": Case(
        lambda k: worst_group(k, share=0.9 - 0.6 / 4), count="sequence", progress=0.25
    ),
    "loss=shad": Case(lambda k: softmax_groups(k, detached=True), count="sequence"),
    "loss=shad loss.aggregation.detached=false": Case(lambda k: softmax_groups(k, detached=False), count="sequence"),
    "loss=f_divergence": Case(f_divergence(lambda d: d / 2 - 1 if d < 2 else 0.0), count="sequence"),
    "loss=f_divergence loss.aggregation.beta=2.0": Case(  # also outside Pearson's domain
        f_divergence(lambda d: d / 2 - 1 if d < 2 else 0.0, beta=2.0), count="sequence"
    ),
    "loss=f_divergence loss.aggregation.divergence=hellinger loss.aggregation.beta=0.3": Case(
        f_divergence(lambda d: -1 / (1 + max(d, -0.5)) ** 2, beta=0.3), count="sequence"
    ),
    "loss=f_divergence loss.aggregation.divergence=forward_kl": Case(
        f_divergence(lambda d: -float(np.exp(-d - 1))), count="sequence"
    ),
    "loss=f_divergence loss.aggregation.divergence=total_variation": Case(
        f_divergence(lambda d: -1.0), count="sequence"
    ),
    "regularizer=kl_from_reference": Case(NLL, further=KL_FROM, limits=EXTRA_OFF),
    "regularizer=kl_to_reference": Case(NLL, further=KL_TO, limits=EXTRA_OFF),
    "regularizer=sed": Case(NLL, further=SED, limits=EXTRA_OFF + off(f"{EXTRA}.token_loss.tau=0.0")),
    "regularizer=entropy_bonus": Case(NLL, further=ENTROPY, limits=EXTRA_OFF),
    f"regularizer=entropy_bonus {EXTRA}.where=critical": Case(NLL, further=(("critical", 0.01, negative_entropy),)),
    f"regularizer=kl_to_reference {EXTRA}.where=critical": Case(NLL, further=(("critical", 0.1, kl_to_reference),)),
    f"regularizer=kl_to_reference {EXTRA}.coefficient.final=0.5 {EXTRA}.coefficient.shape=linear": Case(
        NLL, further=(("eligible", 0.1 + 0.4 / 4, kl_to_reference),), progress=0.25
    ),
    f"regularizer=kl_to_reference {EXTRA}.coefficient.final=0.5 {EXTRA}.coefficient.shape=cosine": Case(
        NLL, further=(("eligible", 0.1 + 0.4 * A_QUARTER_OF_COSINE, kl_to_reference),), progress=0.25
    ),
}
