"""How much each eligible token counts: dynamic, from live log-probs."""

from cft.weightings.row import ExcessLoss, HighEntropy, Propagation, SequenceRatio, SSToken, TopOfRow
from cft.weightings.statistics import TokenScores
from cft.weightings.token import (
    EAFT,
    Focal,
    Probability,
    Product,
    ProFiT,
    ThresholdedProbability,
    TokenWeighting,
    TrimSFT,
    Uniform,
    Weighting,
)

__all__ = [
    "EAFT",
    "ExcessLoss",
    "Focal",
    "HighEntropy",
    "ProFiT",
    "Probability",
    "Product",
    "Propagation",
    "SSToken",
    "SequenceRatio",
    "ThresholdedProbability",
    "TokenScores",
    "TokenWeighting",
    "TopOfRow",
    "TrimSFT",
    "Uniform",
    "Weighting",
]
