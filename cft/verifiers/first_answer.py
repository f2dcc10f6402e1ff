"""The first answer counts: wraps another verifier so that a rollout may stop as soon as it has answered.

Under the other verifiers the last marker counts, so a verdict is open until the text ends. Here the text is cut where
its first explicit marker is complete (`\\boxed{5}`, a `####` line with its newline, `<answer>5</answer>`), and later text,
corrections included, is ignored. That is a different rule, so it has its own name and fingerprint.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from cft.types import Verdict, Verifier
from cft.verifiers.extract import first_answer_end


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAnswer:
    """`inner` grades the text up to the end of its first closed marker that holds something; without one, all of it.

    Args:
        inner: any verifier.

    Once `final(text)` is true, the whole verdict on `text + more` is that on `text`, for every `more`: the end of the
    shortest prefix with a closed answer is found in that prefix alone (`first_answer_end`), so `inner`, which is
    deterministic, is given the same characters. Such a verdict is explicit: a cut-off does not change the outcome.

    An engine decodes ids to text, and must see to it that the text of more ids begins with the characters up to that
    end. Every marker ends in ASCII ("}", ">" or a newline). So under a byte-level decoder, or one that joins tokens,
    it is enough to decode all ids so far together, without a clean-up of spaces: the bytes of a half-finished character
    can only come after the end, and are not read. A decoder that falls back to bytes (`<0x7D>`) can take back an
    ASCII character that it gave, and one that cleans up spaces can move it; do not stop early under these.
    """

    name: ClassVar[str] = "first_answer"
    version: ClassVar[str] = "3"
    can_be_final: ClassVar[bool] = True
    inner: Verifier

    def __call__(self, response: str, answer: str) -> Verdict:
        end = first_answer_end(response)
        if end is None:
            return self.inner(response, answer)
        # Always explicit: the first answer is given, and later text is ignored.
        return dataclasses.replace(self.inner(response[:end], answer), explicit=True)

    def final(self, text: str) -> bool:
        """True from the end of the first closed marker on: no continuation changes any field of the verdict."""
        return first_answer_end(text) is not None
