"""One table of verdicts (`cases.txt`): what each verifier says of a response, or of an answer in a box.

A line is `gold answer ;; response ;; verdict`, with the extracted answer behind it where that matters; ⏎ is a newline.
"not right" leaves wrong or undecided open, where the two say something else but whoever reads LaTeX may not know it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cft.types import Verifier
from cft.verifiers import Exact, Math, MultipleChoice, Numeric, Options

VERIFIERS: dict[str, Verifier] = {
    "numeric": Numeric(fallback_last_number=True),
    "exact": Exact(case_sensitive=False, fallback_last_line=True),
    "choice": MultipleChoice(choices="ABCDE"),
    "options": Options(inner=Numeric(fallback_last_number=True)),
    "math": Math(fallback_last_number=True, lists="set"),
}
PLACES = {"response": "%s", "boxed": "So \\boxed{%s}."}


def cases() -> Iterator[tuple[str, str, list[str]]]:
    name = place = ""
    for line in (Path(__file__).parent / "cases.txt").read_text(encoding="utf-8").split("\n"):
        if line.startswith("[") and line.endswith("]") and ";;" not in line:
            name, place = line[1:-1].split(", ")
        elif line and not line.startswith("# "):
            yield name, place, [field.strip(" ").replace("⏎", "\n") for field in line.split(" ;;")]


SECTIONS = sorted({(name, place) for name, place, _ in cases()})


@pytest.mark.parametrize(("name", "place"), SECTIONS)
def test_verdicts_are_those_in_the_table(name: str, place: str) -> None:
    """One test a section: a thousand tests of a millisecond would take longer to report than to run."""
    unlike = []
    for gold, response, expected, *extracted in (fields for *section, fields in cases() if section == [name, place]):
        verdict = VERIFIERS[name](PLACES[place] % response, gold)
        decision = str(verdict.decision)
        as_told = decision in (("wrong", "undecided") if expected == "not right" else (expected,))
        if not as_told or extracted not in ([], [verdict.extracted]):
            unlike.append(f"{gold} ;; {response} ;; {decision} ;; {verdict.extracted} ({verdict.reason})")
    assert not unlike, "\n".join(unlike)


def test_every_gold_answer_is_right_for_itself() -> None:
    golds = {fields[0] for name, place, fields in cases() if (name, place) == ("math", "boxed")}
    assert len(golds) > 400
    assert [gold for gold in golds if str(VERIFIERS["math"](f"\\boxed{{ {gold} }}", gold).decision) != "right"] == []
