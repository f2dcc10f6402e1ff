"""Which response tokens carry loss: static, computed from stored rows."""

from cft.masks.base import (
    All,
    AnswerSpan,
    Complement,
    Critical,
    Mask,
    MaskError,
    MaskOf,
    Numeric,
    Prefix,
    RandomLike,
    RowMask,
    TooLittleEvidence,
    Weights,
    mask_weights,
)
from cft.masks.projected import Projected
from cft.masks.ranked import HighEntropy, Reasoning, TfIdf, TokenCleaning, TopScore

__all__ = [
    "All",
    "AnswerSpan",
    "Complement",
    "Critical",
    "HighEntropy",
    "Mask",
    "MaskError",
    "MaskOf",
    "Numeric",
    "Prefix",
    "Projected",
    "RandomLike",
    "Reasoning",
    "RowMask",
    "TfIdf",
    "TokenCleaning",
    "TooLittleEvidence",
    "TopScore",
    "Weights",
    "mask_weights",
]
