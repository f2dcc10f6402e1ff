"""Which tokens are critical: by kind, by place in the response, by entropy and by probability.

Counts over all annotated responses, the same for figure, page and CSV. A share within a bin is critical / tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cft.annotation.kinds import KINDS, kind_of, token_texts
from cft.types import AnnotatedResponse

POSITION_BINS = 10
# Nats; the entropy of a token that is all but certain is far below 0.01.
ENTROPY_EDGES = (0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.5, np.inf)
PROBABILITY_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Bin:
    """by: kind, position, entropy or probability. label: of the bin."""

    by: str
    label: str
    tokens: int
    critical: int

    @property
    def share(self) -> float:
        return self.critical / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True, slots=True)
class Profile:
    """rank_correlation: Spearman's, of being critical with entropy and with probability; NaN where undefined."""

    responses: int
    tokens: int
    critical: int
    bins: tuple[Bin, ...]
    rank_correlation: Mapping[str, float]

    def of(self, by: str) -> list[Bin]:
        """Bins that hold a token, in their order."""
        return [one for one in self.bins if one.by == by and one.tokens]


def profile(rows: Sequence[AnnotatedResponse], *, mask: Callable[[AnnotatedResponse], NDArray[np.float32]]) -> Profile:
    """mask: > 0 is critical."""
    critical = _joined([mask(row) > 0 for row in rows], bool)
    tenth = _joined([_tenths(len(row.response_ids)) for row in rows], int)
    entropy = _joined([row.entropy for row in rows], float)
    probability = np.exp(np.minimum(_joined([row.logprob for row in rows], float), 0.0))
    kinds = np.array([KINDS.index(kind_of(text)) for row in rows for text in token_texts(row)], dtype=int)
    tenths = [f"{at / POSITION_BINS:.0%}-{(at + 1) / POSITION_BINS:.0%}" for at in range(POSITION_BINS)]
    bins = [
        *_bins("kind", kinds, [*KINDS], critical),
        *_bins("position", tenth, tenths, critical),
        *_bins("entropy", _places(entropy, ENTROPY_EDGES), [_range(a, b) for a, b in _pairs(ENTROPY_EDGES)], critical),
        *_bins("probability", _places(probability, PROBABILITY_EDGES), _ranges(PROBABILITY_EDGES), critical),
    ]
    correlations = {"entropy": spearman(entropy, critical), "probability": spearman(probability, critical)}
    return Profile(len(rows), len(critical), int(critical.sum()), tuple(bins), correlations)


def records(found: Profile) -> Iterator[Mapping[str, object]]:
    """Rows of critical_tokens.csv."""
    for one in found.bins:
        yield {"by": one.by, "bin": one.label, "tokens": one.tokens, "critical": one.critical, "share": one.share}


def spearman(a: NDArray[np.float64], b: NDArray[np.bool_]) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where a side has one value only."""
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return float("nan")
    x, y = _ranks(a), _ranks(b)
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[index]


def _bins(by: str, index: NDArray[np.int_], labels: Sequence[str], critical: NDArray[np.bool_]) -> list[Bin]:
    tokens = np.bincount(index, minlength=len(labels))
    picked = np.bincount(index[critical], minlength=len(labels))
    return [Bin(by, label, int(n), int(c)) for label, n, c in zip(labels, tokens, picked, strict=True)]


def _tenths(tokens: int) -> NDArray[np.int_]:
    """Of each token of a response of so many: token t of n lies in tenth floor(10 t / n). In whole numbers, since the
    edge 0.6 of a float is not 6 / 10; the page's filter by place counts the same way."""
    return POSITION_BINS * np.arange(tokens) // max(tokens, 1)


def _places(values: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.int_]:
    """Bin of each value, lower edge included; the last bin holds its upper edge too."""
    return np.clip(np.searchsorted(np.asarray(edges), values, side="right") - 1, 0, len(edges) - 2)


def _pairs(edges: Sequence[float]) -> list[tuple[float, float]]:
    return list(pairwise(edges))


def _range(low: float, high: float) -> str:
    return f"{low:g}-{high:g}" if np.isfinite(high) else f"over {low:g}"


def _ranges(edges: Sequence[float]) -> list[str]:
    return [_range(low, high) for low, high in _pairs(edges)]


def _joined(parts: Sequence[NDArray[np.generic]], kind: type) -> NDArray:
    return np.concatenate(parts).astype(kind) if parts else np.zeros(0, dtype=kind)
