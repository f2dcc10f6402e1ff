"""Which positions of a response are tried: what `conf/positions/*.yaml` builds. What is left out is recorded as untried."""

from cft.positions.base import Positions, PositionsError, ResponseView
from cft.positions.bisect import Bisect
from cft.positions.chosen import All, Spans, Stride, TopEntropy

__all__ = ["All", "Bisect", "Positions", "PositionsError", "ResponseView", "Spans", "Stride", "TopEntropy"]
