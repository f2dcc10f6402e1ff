"""Shared by all verifiers of this package: making verdicts, reading gold answers, the identity of a verifier."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from cft.errors import UserError
from cft.files import sha256_file
from cft.types import Decision, Verdict, Verifier
from cft.verifiers.extract import Found, explicit_answer
from cft.verifiers.numbers import ParsedNumber, agrees

MAX_EXTRACTED_CHARS = 200


class LastAnswer:
    """Base of a verifier for which the last answer of a text counts, so that more text can always change the verdict."""

    __slots__ = ()

    can_be_final: ClassVar[bool] = False

    def final(self, text: str) -> bool:
        """Never before the end: a later marker, phrase, number or line would replace the answer."""
        return False


class BadVerifier(UserError, TypeError):
    """A class that cannot serve as a verifier; the message names it and what it lacks."""


def verifier_fingerprint(verifier: Verifier) -> str:
    """Name, version and arguments (a verifier among them likewise) as canonical JSON, for an annotation's manifest.

    Without module paths: a moved verifier is the same one, and one whose verdicts change has another version. For a class from
    outside this package the hash of its source is included, since its version may not have been raised.

    Raises:
        BadVerifier: the class lacks a name, version or method, or is not a dataclass, so its arguments are unknown.
    """
    return json.dumps(_described(verifier), sort_keys=True, default=_described)


def require_ready(verifier: Verifier) -> None:
    """Checks that this machine can run a verifier and those nested in it; verifiers with requirements have `require_ready`.

    Raises:
        UserError: what is missing.
    """
    if ready := getattr(verifier, "require_ready", None):
        ready()
    for field in dataclasses.fields(verifier) if dataclasses.is_dataclass(verifier) else ():
        require_ready(getattr(verifier, field.name))


def other_verifier_note(annotated: str, now: str) -> str:
    """A note if accuracy is graded by another verifier than the annotation, else "". Both are results of
    `verifier_fingerprint`."""
    if annotated == now:
        return ""
    then, here = (_told(json.loads(fingerprint)) for fingerprint in (annotated, now))
    return (
        f"Note: the annotation was graded by {then}, accuracy is graded by {here}: a response that one of "
        "them takes for right the other may not. Choose the annotation's with verifier=..., if that is not meant"
    )


def _told(found: dict[str, Any]) -> str:
    values = {name: _told(value) if isinstance(value, dict) else value for name, value in found["args"].items()}
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(values.items()))
    return f"{found['name']}({arguments}), version {found['version']}"


def _described(verifier: Any) -> dict[str, Any]:
    kind = type(verifier)
    named = f"{kind.__module__}.{kind.__qualname__}"
    if not dataclasses.is_dataclass(verifier) or isinstance(verifier, type):
        raise BadVerifier(
            f"verifier: {named} is not a dataclass, so its arguments cannot be fingerprinted; "
            "declare it with @dataclass(frozen=True, slots=True, kw_only=True)"
        )
    for key in ("name", "version"):
        if not isinstance(value := getattr(verifier, key, None), str) or not value:
            raise BadVerifier(
                f'verifier: {named} has no {key}; give it one, such as `{key}: ClassVar[str] = "1"`, and raise the version '
                "whenever a verdict may change: annotations and results of different versions are never mixed"
            )
    if missing := [name for name in ("__call__", "final") if not callable(getattr(verifier, name, None))]:
        raise BadVerifier(f"verifier: {named} lacks {' and '.join(missing)}; see cft.types.Verifier")
    arguments: dict[str, Any] = {field.name: getattr(verifier, field.name) for field in dataclasses.fields(verifier)}
    identity: Any = verifier
    described = {"name": identity.name, "version": identity.version, "args": arguments}
    if kind.__module__.partition(".")[0] != __name__.partition(".")[0]:
        described["source"] = _source_hash(kind)
    return described


def _source_hash(kind: type) -> str:
    """Hash of the file that defines a class, helpers included; "" if there is none."""
    try:
        path = inspect.getsourcefile(kind)
    except TypeError:
        path = None
    return sha256_file(Path(path))[:16] if path else ""


def gold_text(answer: str) -> str:
    """A gold answer as it is, or the content of its marker (GSM8K's worked solutions end in `#### 18`)."""
    found = explicit_answer(answer)
    return found.text if found else answer.strip()


def same_text(a: str, b: str) -> bool:
    return a.strip() != "" and " ".join(a.split()) == " ".join(b.split())


def by_number(read: ParsedNumber, gold: ParsedNumber, found: Found | None) -> Verdict:
    return make_verdict("right" if agrees(read, gold) else "wrong", read.text, found, "compared as numbers")


def shown(text: str) -> str:
    """Model text made storable and printable: short, valid Unicode, no NUL."""
    text = text if len(text) <= MAX_EXTRACTED_CHARS else text[: MAX_EXTRACTED_CHARS - 1] + "…"
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "")


def make_verdict(
    decision: Literal["right", "wrong", "undecided"], extracted: str, found: Found | None, reason: str
) -> Verdict:
    explicit = found is not None and found.explicit
    return Verdict(decision=Decision(decision), extracted=shown(extracted), explicit=explicit, reason=reason)
