"""Options of `positions`: which positions of a response are tried. The others are recorded as untried."""

from cft.positions.base import Positions, PositionsError, ResponseView
from cft.positions.bisect import Bisect
from cft.positions.chosen import All, Spans, Stride, TopEntropy

__all__ = ["All", "Bisect", "Positions", "PositionsError", "ResponseView", "Spans", "Stride", "TopEntropy"]
