"""From a completion to an outcome, by the one verifier that annotation, accuracy and reward share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cft.models.text import decode, hidden_ids
from cft.prompts.chat import PROBE, Prompt, encoded
from cft.types import Completion, Decision, Outcome, ThinkingTags, Verdict, Verifier
from cft.verifiers.stripped import innermost
from cft.verifiers.thinking import AfterThinking

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
    before: tags of thinking that come before every response (`thinking_before`).
    shown: special tokens that tags are made of, which else are no text.
    """

    tokenizer: PreTrainedTokenizerBase
    verify_all: VerifyAll
    final: Callable[[str], bool] | None = None
    before: str = ""
    shown: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls, verifier: Verifier, *, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, verify_all: VerifyAll
    ) -> Grader:
        """verify_all: of a pool of `verifier`. prompt: what the responses answer."""
        final = verifier.final if innermost(verifier).can_be_final else None
        if not isinstance(verifier, AfterThinking):
            return cls(tokenizer, verify_all, final)
        before = thinking_before(verifier.tags, tokenizer=tokenizer, prompt=prompt)
        if before is None:
            before = "".join(verifier.tags) if final else ""
        in_tags = {token for tag in verifier.tags for token in _spelt(tokenizer, tag)}
        return cls(tokenizer, verify_all, final, before, hidden_ids(tokenizer) & in_tags)

    def decided(self, ids: Sequence[int]) -> bool:
        """Whether the verdict on a response that starts with these ids is already certain."""
        if self.final is None or ids[-1] not in closers(self.tokenizer):
            return False
        return self.final(self._text(ids))

    def __call__(self, completions: Sequence[tuple[Completion, str]]) -> list[tuple[Outcome, str]]:
        """completions: (completion, gold answer). Equal texts with equal answers are verified once."""
        items = [(self._text(completion.ids), answer) for completion, answer in completions]
        distinct = list(dict.fromkeys(items))
        verdicts = dict(zip(distinct, self.verify_all(distinct), strict=True))
        outcomes = [
            outcome_of(verdicts[item], finish=completion.finish)
            for item, (completion, _) in zip(items, completions, strict=True)
        ]
        # A cut-off text gave no answer; its last number does not vote.
        return [
            (outcome, "" if outcome == Outcome.CUT_OFF else verdicts[item].extracted)
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def _text(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        return self.before + decode(self.tokenizer, ids, shown=self.shown)


def thinking_before(tags: ThinkingTags, *, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str | None:
    """Where a response begins: in thinking that the prompt opened, behind one that it closed, or, "", who knows.

    None where nothing speaks of thinking: neither prompt nor template has a tag, and none is a token. Then what comes
    before a tag is an answer, and may be final before a tag has come.
    """
    ids = prompt.ids(tokenizer, PROBE)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert isinstance(text, str)
    if text.rstrip().endswith(tags.open):
        return tags.open
    if text.rstrip().endswith(tags.close):
        return "".join(tags)
    spoken_of = any(tag in f"{text}{tokenizer.chat_template}" for tag in tags)
    return "" if spoken_of or any(len(_spelt(tokenizer, tag)) == 1 for tag in tags) else None


def _spelt(tokenizer: PreTrainedTokenizerBase, tag: str) -> list[int]:
    """The tokens of a tag, none if the tokenizer cannot spell it."""
    ids = encoded(tokenizer, tag)
    return ids if str(tokenizer.decode(ids, skip_special_tokens=False)).strip() == tag.strip() else []


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
