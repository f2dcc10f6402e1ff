"""Token constraint decoding: a soft penalty on every token that is not an answer (MarkCodering/Decoding-Strategy-Research,
tcd.py).

    s_v = p_v               v allowed           p = softmax(logits)
    s_v = p_v - penalty     v forbidden

The source passes s on as logits. For greedy decoding that is right; sampling from softmax(s) would be nearly uniform over the
vocabulary. Here the rule returns log s, and -inf where s <= 0, so that greedy choices equal the source's and samples are drawn
from s, normalized to sum 1. The penalty is soft: a forbidden token of p = 0.9 has s = 0.5 and beats an allowed one of 0.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cft.decoding.base import Context, Rule, forced
from cft.decoding.words import Words
from cft.errors import BadValue
from cft.ranges import AtLeastOne, AtLeastZero, require_in_range

STEEP = (
    0.05  # of probability above the penalty: there an error of a logit is magnified by p (1 - p) / 0.05 <= 5 in log s
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcd(Rule):
    """Token constraint decoding: forbidden tokens lose `penalty` of probability.

    Args:
        penalty: subtracted from the probability of each forbidden token; null = they are excluded. Default: the source's.
        allowed: answers, each a single token; null: the letters that the verifier names. Default: the source's.
        spaced: whether the token " A" is allowed as well as "A"; not allowed by the source.
        tokens: length of an answer in tokens, after which the response ends; the source has max_new_tokens=1. null = the model
            decides, and every token is under the penalty, the end token included.
    """

    name: ClassVar[str] = "tcd"

    penalty: AtLeastZero | None = 0.4
    allowed: list[str] | None = None
    spaced: bool = False
    tokens: AtLeastOne | None = 1

    def __post_init__(self) -> None:
        require_in_range(self)

    def check(self, words: Words) -> None:
        self.allowed_ids(words)

    def allowed_ids(self, words: Words) -> list[int]:
        """Raises BadValue if there are none, or an answer is not a single token."""
        texts = list(words.choices) if self.allowed is None else self.allowed
        if not texts:
            raise BadValue(
                "decoding.allowed: expected the answers that are allowed, such as decoding.allowed=[A,B,C,D]; this benchmark's "
                "verifier names none (only verifier=multiple_choice does)"
            )
        found = {text: words.token(text) for text in texts}
        if lacking := [text for text, token in found.items() if token is None]:
            raise BadValue(
                f"decoding.allowed: {', '.join(map(repr, lacking))} is no token of the tokenizer of "
                f"{words.tokenizer.name_or_path}; expected answers of one token each, such as the letters of the options"
            )
        after_space = [words.spaced(text) for text in texts] if self.spaced else []
        return sorted({token for token in (*found.values(), *after_space) if token is not None})

    def adjust(self, logits_NV: Tensor, context: Context) -> Tensor:
        allowed = self.allowed_ids(context.words)
        logprob_NV = torch.log_softmax(logits_NV, dim=-1)
        found_NV = (
            torch.full_like(logprob_NV, -math.inf)
            if self.penalty is None
            else (logprob_NV.exp() - self.penalty).clamp(min=0).log()
        )
        found_NV[:, allowed] = logprob_NV[:, allowed]
        return forced(found_NV, self._answered(context), context.words.end_ids("eos")[0])

    def unsure(self, logits_NV: Tensor, context: Context, *, tie_margin: float) -> Tensor | None:
        """Rows in which a forbidden token is, or could be, just above the penalty, where log s is steep."""
        if not self.penalty:
            return None
        above_NV = torch.softmax(logits_NV, dim=-1) - self.penalty
        above_NV[:, self.allowed_ids(context.words)] = -1.0
        found_N = ((above_NV > -tie_margin) & (above_NV < STEEP)).any(-1)
        found_N[self._answered(context)] = False
        return found_N

    def _answered(self, context: Context) -> list[int]:
        if self.tokens is None:
            return []
        return [row for row in range(len(context.rows)) if context.step(row) >= self.tokens]
