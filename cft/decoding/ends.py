"""Rules about the end of a response or of its thinking.

`end=eos` is the end of the response, `end=thinking` the closing tag of the thinking (`verify.thinking.close`), which is
changed only while the model is thinking: after the opening tag, in the prompt or in the response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cft.decoding.base import Context, End, Rule, forbidden, forced, moved
from cft.decoding.words import Words
from cft.errors import BadValue
from cft.ranges import AtLeastOne, AtLeastZero, Count, Finite, require_in_range


@dataclass(frozen=True, slots=True, kw_only=True)
class StopScaling(Rule):
    """Raises the logit of the end at every step (TS, arXiv 2505.07961).

    A reconstruction: no code is published. A constant is added to the logit, rather than a factor multiplied, since logits have
    no natural zero: softmax is invariant to a constant shift, but a multiplication is not.

    Args:
        end: eos or thinking.
        scale: added to the logit of each end token; 0 changes nothing, negative values delay the end.
        after: number of tokens, of the response or its thinking, before the rule applies.
    """

    name: ClassVar[str] = "stop_scaling"

    end: End = "eos"
    scale: Finite = 1.0
    after: Count = 0

    def __post_init__(self) -> None:
        require_in_range(self)

    def check(self, words: Words) -> None:
        words.end_ids(self.end)

    def adjust(self, logits_NV: Tensor, context: Context) -> Tensor:
        lengths = [context.since(row, self.end) for row in range(len(context.rows))]
        rows = [row for row, length in enumerate(lengths) if length is not None and length >= self.after]
        return moved(logits_NV, rows, context.words.end_ids(self.end), by=self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinLength(Rule):
    """Forbids the end before a number of tokens.

    Args:
        end: eos or thinking.
        tokens: minimal length of the response or its thinking, the end not counted.
    """

    name: ClassVar[str] = "min_length"

    end: End = "eos"
    tokens: AtLeastOne = 1

    def __post_init__(self) -> None:
        require_in_range(self)

    def check(self, words: Words) -> None:
        words.end_ids(self.end)

    def adjust(self, logits_NV: Tensor, context: Context) -> Tensor:
        lengths = [context.since(row, self.end) for row in range(len(context.rows))]
        rows = [row for row, length in enumerate(lengths) if length is not None and length < self.tokens]
        return forbidden(logits_NV, rows, context.words.end_ids(self.end))


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetForcing(Rule):
    """Ends the thinking after a number of tokens (s1, arXiv 2501.19393, its upper limit).

    Its lower limit is decoding=min_length with decoding.end=thinking, without the "Wait" that s1 writes in place of the end.

    Args:
        budget: number of thinking tokens, after which the closing tag is the next token.
    """

    name: ClassVar[str] = "budget_forcing"

    budget: Count

    def __post_init__(self) -> None:
        require_in_range(self)

    def check(self, words: Words) -> None:
        words.end_ids("thinking")

    def adjust(self, logits_NV: Tensor, context: Context) -> Tensor:
        lengths = [context.thought(row) for row in range(len(context.rows))]
        rows = [row for row, length in enumerate(lengths) if length is not None and length >= self.budget]
        return forced(logits_NV, rows, context.words.tags[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkBrake(Rule):
    """Ends the thinking at the end of a sentence if the closing tag is almost the best token (ThinkBrake, arXiv 2510.00546).

    The source also writes a few fixed characters around the tag, which are omitted here.

    Args:
        margin: the closing tag is chosen if it is at most this many nats below the best token.
        sentence_ends: strings that end a sentence.
    """

    name: ClassVar[str] = "think_brake"

    margin: AtLeastZero
    sentence_ends: list[str]

    def __post_init__(self) -> None:
        require_in_range(self)
        if not self.sentence_ends or "" in self.sentence_ends:
            raise BadValue(
                f"decoding.sentence_ends={self.sentence_ends}: expected texts that are not empty, such as "
                "'decoding.sentence_ends=[\".\\n\\n\"]'"
            )

    def check(self, words: Words) -> None:
        words.end_ids("thinking")

    def adjust(self, logits_NV: Tensor, context: Context) -> Tensor:
        stops_N = self._gap(logits_NV, context) <= self.margin
        stops_N &= self._at_sentence_end(logits_NV, context)
        return forced(logits_NV, stops_N.nonzero()[:, 0].tolist(), context.words.tags[1])

    def unsure(self, logits_NV: Tensor, context: Context, *, tie_margin: float) -> Tensor | None:
        near_N = (self._gap(logits_NV, context) - self.margin).abs() < tie_margin
        return near_N & self._at_sentence_end(logits_NV, context)

    def _gap(self, logits_NV: Tensor, context: Context) -> Tensor:
        return logits_NV.amax(-1) - logits_NV[:, context.words.tags[1]]

    def _at_sentence_end(self, logits_NV: Tensor, context: Context) -> Tensor:
        words, ends = context.words, self.sentence_ends
        found = [bool(context.thought(i)) and words.ends_with(row.ids, ends) for i, row in enumerate(context.rows)]
        return torch.tensor(found, dtype=torch.bool, device=logits_NV.device)
