"""What every verifier of this package shares: how a verdict is made, what a gold answer states, a verifier's identity."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar, Literal

from cft.types import Decision, Verdict, Verifier
from cft.verifiers.extract import Found, explicit_answer
from cft.verifiers.numbers import ParsedNumber, agrees

MAX_EXTRACTED_CHARS = 200


class LastAnswer:
    """Base of a verifier for which the last answer of a text counts, so that more text can always change the verdict."""

    __slots__ = ()

    can_be_final: ClassVar[bool] = False

    def final(self, text: str) -> bool:
        """Not before the end: a later marker, phrase, number or line is the answer instead."""
        return False


def verifier_fingerprint(verifier: Verifier) -> str:
    """Name, version and arguments (a verifier among them likewise) as canonical JSON, for an annotation's manifest.

    No module path: a verifier that moves is the same one, and one whose verdicts change has another version.

    Raises:
        TypeError: the verifier is not a dataclass, so that its arguments are not known.
    """
    return json.dumps(_described(verifier), sort_keys=True, default=_described)


def _described(verifier: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(verifier) or isinstance(verifier, type):
        raise TypeError(
            f"{type(verifier).__qualname__} is not a dataclass, so its arguments cannot be fingerprinted; "
            "declare it with @dataclass(frozen=True, slots=True, kw_only=True)"
        )
    missing = [key for key in ("name", "version") if not isinstance(getattr(verifier, key, None), str)]
    if missing:
        raise TypeError(
            f"{type(verifier).__qualname__} has no {' and no '.join(missing)}: a verifier says both as text, "
            'such as version: ClassVar[str] = "1" (see cft.types.Verifier)'
        )
    arguments: dict[str, Any] = {field.name: getattr(verifier, field.name) for field in dataclasses.fields(verifier)}
    identity: Any = verifier
    return {"name": identity.name, "version": identity.version, "args": arguments}


def gold_text(answer: str) -> str:
    """A gold answer as it stands, or what its marker holds (GSM8K's worked solutions end in `#### 18`)."""
    found = explicit_answer(answer)
    return found.text if found else answer.strip()


def same_text(a: str, b: str) -> bool:
    return a.strip() != "" and " ".join(a.split()) == " ".join(b.split())


def by_number(read: ParsedNumber, gold: ParsedNumber, found: Found | None) -> Verdict:
    return make_verdict("right" if agrees(read, gold) else "wrong", read.text, found, "compared as numbers")


def shown(text: str) -> str:
    """Model text that can be stored and printed: short, valid Unicode, no NUL."""
    text = text if len(text) <= MAX_EXTRACTED_CHARS else text[: MAX_EXTRACTED_CHARS - 1] + "…"
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "")


def make_verdict(
    decision: Literal["right", "wrong", "undecided"], extracted: str, found: Found | None, reason: str
) -> Verdict:
    explicit = found is not None and found.explicit
    return Verdict(decision=Decision(decision), extracted=shown(extracted), explicit=explicit, reason=reason)
