"""Responses that must follow instructions that a program can check, with the ids of IFEval (arXiv 2311.07911).

The gold answer is their list as JSON: [[id, {argument: value}], ...]. A response is right if it follows all of them, as in
the paper's strict prompt accuracy, and wrong if it breaks one. Undecided if it follows all exact ones and one is inexact:
languages and sentences are detected statistically there (`_INEXACT`).

Counting follows the original code, with two differences: a word in capitals is a run of letters, digits, apostrophes and
hyphens, and instructions about case do not check whether the text is English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cft.types import Decision, Verdict
from cft.verifiers.verdict import LastAnswer, shown

Arguments = Mapping[str, Any]

_INEXACT = ("language:response_language", "length_constraints:number_sentences")
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


@dataclass(frozen=True, slots=True)
class Instructions(LastAnswer):
    """The response follows every instruction of the gold answer."""

    name: ClassVar[str] = "instructions"
    version: ClassVar[str] = "1"

    def __call__(self, response: str, answer: str) -> Verdict:
        asked = _asked(answer)
        if asked is None:
            return Verdict(Decision.UNDECIDED, "", False, "the gold answer is no list of instructions")
        broken, open_ = [], []
        for name, arguments in asked:
            rule = RULES.get(name)
            try:
                follows = rule(response, arguments) if rule else None
            except (KeyError, TypeError, ValueError, AttributeError):
                return Verdict(Decision.UNDECIDED, "", False, shown(f"{name} has other arguments: {dict(arguments)}"))
            if follows is None:
                open_.append(name)
            elif not (follows and response.strip()):
                broken.append(name)
        if broken:
            return Verdict(
                Decision.WRONG, shown(f"breaks {', '.join(broken)}"), False, "an instruction is not followed"
            )
        if open_:
            inexact = all(name in _INEXACT for name in open_)
            why = "cannot be checked exactly" if inexact else "is not known"
            return Verdict(Decision.UNDECIDED, "", False, shown(f"{', '.join(open_)} {why}"))
        return Verdict(Decision.RIGHT, f"follows {len(asked)}", False, "all instructions are followed")


def _asked(answer: str) -> list[tuple[str, Arguments]] | None:
    try:
        found = json.loads(answer)
        asked: list[tuple[str, Arguments]] = [(str(name), dict(arguments)) for name, arguments in found]
    except (ValueError, TypeError):
        return None
    return asked or None


def _compared(count: int, expected: Any, relation: str) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(relation)
    return count >= expected if relation == "at least" else count < expected


def _frequency(text: str, a: Arguments) -> bool:
    return _compared(text.lower().count(a["keyword"].lower()), a["frequency"], a["relation"])


def _letter_frequency(text: str, a: Arguments) -> bool:
    return _compared(text.lower().count(a["letter"].lower()), a["let_frequency"], a["let_relation"])


def _forbidden(text: str, a: Arguments) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in a["forbidden_words"])


def _paragraphs(text: str, a: Arguments) -> bool:
    """Parted by ***; an empty one counts for nothing at the ends, and must not be between."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = parts[1:-1]
    return all(part.strip() for part in inner) and sum(bool(part.strip()) for part in parts) == a["num_paragraphs"]


def _first_word(text: str, a: Arguments) -> bool:
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != a["num_paragraphs"] or a["nth_paragraph"] > count:
        return False
    paragraph = parts[a["nth_paragraph"] - 1].split()
    if not paragraph:
        return False
    word = re.split(r"[.,?!'\"]", paragraph[0].lstrip("'").lstrip('"'))[0]
    return word.lower() == a["first_word"].lower()


def _postscript(text: str, a: Arguments) -> bool:
    marker: str = a["postscript_marker"]
    known: dict[str, str] = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.strip().lower())), text.lower()) is not None


def _bullets(text: str, a: Arguments) -> bool:
    return len(re.findall(r"^[ \t]*(?:\*[^*\n]|-).*$", text, re.MULTILINE)) == a["num_bullets"]


def _highlights(text: str, a: Arguments) -> bool:
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part.strip("*").strip()]
    return len(single) + len(double) >= a["num_highlights"]


def _sections(text: str, a: Arguments) -> bool:
    return len(re.findall(rf"{re.escape(a['section_spliter'].strip())}\s?[0-9]+", text)) >= a["num_sections"]


def _json(text: str, a: Arguments) -> bool:
    inside = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, a: Arguments) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, a: Arguments) -> bool:
    parts = text.split("******")
    said = [part.strip() for part in parts if part.strip()]
    return all(part.strip() for part in parts[1:-1]) and len(said) == 2 and said[0] != said[1]


def _capital_words(text: str, a: Arguments) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[\w'’-]+", text))
    return _compared(count, a["capital_frequency"], a["capital_relation"])


def _ends(text: str, a: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower())


def _quoted(text: str, a: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _all_in(text: str, words: Sequence[str]) -> bool:
    return all(word.lower() in text.lower() for word in words)


# A new instruction is a function above and an entry here.
RULES: dict[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda text, a: _all_in(text, a["keywords"]),
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda text, a: _compared(
        len(re.findall(r"\w+", text)), a["num_words"], a["relation"]
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, a: (
        len(re.findall(r"\[.*?\]", text)) >= a["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text, a: any(choice in text.strip() for choice in _CHOICES),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, a: text.isupper(),
    "change_case:english_lowercase": lambda text, a: text.islower(),
    "punctuation:no_comma": lambda text, a: "," not in text,
}
