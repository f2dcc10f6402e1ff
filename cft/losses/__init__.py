"""The training objective: token losses, regularizers, aggregation, eligible tokens."""

from cft.losses.aggregation import Aggregation, SoftmaxGroups, TokenMean, WorstGroup
from cft.losses.coefficient import Coefficient
from cft.losses.divergence import FDivergence
from cft.losses.group import DPO, CriticalDPO, Discriminative, GroupLoss, MeanDiscriminative
from cft.losses.objective import Objective
from cft.losses.regularizers import KLFromReference, KLToReference, MaskedQuadratic, NegativeEntropy, Regularizer
from cft.losses.target import GEM, Distillation, LabelSmoothing, TargetSFT
from cft.losses.token import NLL, ClippedRatio, Power, Prediction, SymmetricCE, TokenLoss

__all__ = [
    "DPO",
    "GEM",
    "NLL",
    "Aggregation",
    "ClippedRatio",
    "Coefficient",
    "CriticalDPO",
    "Discriminative",
    "Distillation",
    "FDivergence",
    "GroupLoss",
    "KLFromReference",
    "KLToReference",
    "LabelSmoothing",
    "MaskedQuadratic",
    "MeanDiscriminative",
    "NegativeEntropy",
    "Objective",
    "Power",
    "Prediction",
    "Regularizer",
    "SoftmaxGroups",
    "SymmetricCE",
    "TargetSFT",
    "TokenLoss",
    "TokenMean",
    "WorstGroup",
]
