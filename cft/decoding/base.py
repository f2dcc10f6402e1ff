"""Decoding rules: one change of the logits before a token is chosen, greedily or sampled (`cft/engines/sampling.py`).

    logits of all rows -> rule.adjust -> greedy or sampled choice -> near to another? -> the same with logits of a pass alone
                                                                                          (`ReferenceEngine.rescore`)

A rule is a frozen dataclass named in conf/decoding/*.yaml. It has no state between tokens and depends only on the ids of a row
so far, so a row that is decoded again, in another batch or by another engine gets the same ids.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cft.decoding.words import Words
from cft.ranges import show
from cft.types import Written

End = Literal["eos", "thinking"]


class Context(NamedTuple):
    """Inputs of a rule besides the logits.

    rows: the ids of every row so far, prompt included, with the length of the prompt. words: the tokenizer's ids and texts.
    """

    rows: Sequence[Written]
    words: Words

    def step(self, row: int) -> int:
        """Number of response tokens so far."""
        return len(self.rows[row].ids) - self.rows[row].prompt_len

    def thought(self, row: int) -> int | None:
        """Number of thinking tokens so far, None if the row is not thinking (`Words.thought`)."""
        return self.words.thought(self.rows[row])

    def since(self, row: int, end: End) -> int | None:
        """Number of tokens so far of the part that `end` ends, None if it is not in that part."""
        return self.step(row) if end == "eos" else self.thought(row)


class Rule(ABC):
    """Base of the options of `decoding`.

    name, version: its identity in results and fingerprints. Any change of decoded ids is a new version.
    """

    __slots__ = ()

    name: ClassVar[str]
    version: ClassVar[str] = "1"

    def check(self, words: Words) -> None:  # noqa: B027  (most rules name nothing)
        """Called before a model is loaded; raises BadValue if the tokenizer lacks something that the rule names."""

    @abstractmethod
    def adjust(self, logits_NV: Tensor, context: Context) -> Tensor:
        """New logits, -inf for forbidden tokens; `logits_NV` is not modified."""

    def unsure(self, logits_NV: Tensor, context: Context, *, tie_margin: float) -> Tensor | None:
        """[N] bool: rows where an error of `tie_margin` in a logit could change the choice although the adjusted logits differ
        by more, because the rule has a threshold there or magnifies errors. None: no row."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A rule with its tokenizer, as carried by forks (`cft.types.Sampling.adjustment`)."""

    rule: Rule
    words: Words

    def adjust(self, logits_NV: Tensor, rows: Sequence[Written]) -> Tensor:
        return self.rule.adjust(logits_NV, Context(rows, self.words))

    def unsure(self, logits_NV: Tensor, rows: Sequence[Written], *, tie_margin: float) -> Tensor | None:
        return self.rule.unsure(logits_NV, Context(rows, self.words), tie_margin=tie_margin)


def bound(rule: Rule | None, words: Words) -> Bound | None:
    """Raises BadValue if the tokenizer lacks something that the rule names."""
    if rule is None:
        return None
    rule.check(words)
    return Bound(rule, words)


def fingerprint(rule: Rule) -> str:
    """Name, version and every value, as recorded in results."""
    values = ", ".join(f"{name}={show(value)}" for name, value in sorted(asdict(rule).items()))  # type: ignore[call-overload]
    return f"{rule.name} {rule.version} ({values})"


def forced(logits_NV: Tensor, rows: Sequence[int], token: int) -> Tensor:
    """Logits under which only `token` can come next."""
    found = logits_NV.clone()
    if rows:
        found[rows] = -math.inf
        found[rows, token] = 0.0
    return found


def forbidden(logits_NV: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Logits under which none of `tokens` can come next."""
    return moved(logits_NV, rows, tokens, by=-math.inf)


def moved(logits_NV: Tensor, rows: Sequence[int], tokens: Sequence[int], *, by: float) -> Tensor:
    """Logits with `by` added for `tokens`."""
    found = logits_NV.clone()
    if rows:
        found[torch.tensor(rows)[:, None], torch.tensor(tokens)[None]] += by
    return found
