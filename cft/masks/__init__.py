"""Which response tokens carry loss: static, computed from stored rows."""

from cft.masks.base import Mask, MaskError, MaskOf, RowMask, TooLittleEvidence, Weights, mask_weights
from cft.masks.controls import Complement, RandomLike
from cft.masks.critical import Critical, Deciding, Turning
from cft.masks.projected import Projected
from cft.masks.ranked import Excess, HighEntropy, Reasoning, TfIdf, TokenCleaning, TopScore
from cft.masks.sampled import CriticalSampled
from cft.masks.spans import All, AnswerSpan, Numeric, Prefix
from cft.masks.thinking import AfterThinking, Thinking

__all__ = [
    "AfterThinking",
    "All",
    "AnswerSpan",
    "Complement",
    "Critical",
    "CriticalSampled",
    "Deciding",
    "Excess",
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
    "Thinking",
    "TokenCleaning",
    "TooLittleEvidence",
    "TopScore",
    "Turning",
    "Weights",
    "mask_weights",
]
