"""From a completion to an outcome, by the one verifier that annotation, accuracy and reward share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cft.models.text import decode
from cft.types import Completion, Decision, Outcome, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VerifyAll = Callable[[Sequence[tuple[str, str]]], list[Verdict]]

_OUTCOME = {
    Decision.RIGHT: Outcome.RIGHT,
    Decision.WRONG: Outcome.WRONG,
    Decision.UNDECIDED: Outcome.UNDECIDED,
}


@dataclass(frozen=True, slots=True)
class Grader:
    """Text of a completion -> outcome and final answer, by the one verifier that accuracy uses too.

    final: of a verifier that can be final (see `cft.types.Verifier`), else None.
    """

    tokenizer: PreTrainedTokenizerBase
    verify_all: VerifyAll
    final: Callable[[str], bool] | None = None

    def decided(self, ids: Sequence[int]) -> bool:
        """Whether the verdict on a response that begins with these ids is known, whatever follows."""
        if self.final is None or ids[-1] not in closers(self.tokenizer):
            return False
        return self.final(decode(self.tokenizer, ids))

    def __call__(self, completions: Sequence[tuple[Completion, str]]) -> list[tuple[Outcome, str]]:
        """completions: (completion, gold answer). Equal texts with equal answers are verified once."""
        items = [(decode(self.tokenizer, completion.ids), answer) for completion, answer in completions]
        distinct = list(dict.fromkeys(items))
        verdicts = dict(zip(distinct, self.verify_all(distinct), strict=True))
        outcomes = [
            outcome_of(verdicts[item], finish=completion.finish)
            for item, (completion, _) in zip(items, completions, strict=True)
        ]
        # A cut-off text gave no answer: its last number is no vote.
        return [
            (outcome, "" if outcome == Outcome.CUT_OFF else verdicts[item].extracted)
            for item, outcome in zip(items, outcomes, strict=True)
        ]


def outcome_of(verdict: Verdict, *, finish: str) -> Outcome:
    """A cut-off text keeps the verdict of an explicit answer (boxed, ####) it already gave, else it is cut off. Where
    the verifier itself failed nothing is known, nor whether a right answer was there: undecided. So it is with a
    text that broke off for lack of memory."""
    if finish == "memory":
        return Outcome.UNDECIDED
    if finish == "length" and not verdict.explicit and not verdict.failed:
        return Outcome.CUT_OFF
    return _OUTCOME[verdict.decision]


@lru_cache(maxsize=1)
def closers(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens whose text could close a marker (`#### 8` and a new line, \\boxed{8}, <answer>8</answer>).

    None where decoding further ids could change what earlier ones gave: then no text is ever looked at early.
    """
    from transformers import PreTrainedTokenizerFast

    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not fast or b"ByteFallback" in tokenizer.backend_tokenizer.decoder.__getstate__():
        return frozenset()  # there a later byte can take back a sign that is in the text already
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, text in enumerate(texts) if any(sign in text for sign in "\n}>"))
