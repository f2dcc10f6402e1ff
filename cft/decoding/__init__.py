"""Options of `decoding`: changes of the logits before a token is chosen."""

from cft.decoding.base import Bound, Context, Rule, bound, fingerprint
from cft.decoding.ends import BudgetForcing, MinLength, StopScaling, ThinkBrake
from cft.decoding.tcd import Tcd
from cft.decoding.words import Words

__all__ = [
    "Bound",
    "BudgetForcing",
    "Context",
    "MinLength",
    "Rule",
    "StopScaling",
    "Tcd",
    "ThinkBrake",
    "Words",
    "bound",
    "fingerprint",
    "no_rule",
]


def no_rule() -> None:
    """`decoding=none`: the model's logits as they are."""
