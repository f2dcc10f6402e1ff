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


@pytest.mark.parametrize(
    ("name", "place", "fields"), [pytest.param(*case, id=f"{case[0]}-{' -- '.join(case[2])[:60]}") for case in cases()]
)
def test_a_verdict_is_the_one_in_the_table(name: str, place: str, fields: list[str]) -> None:
    gold, response, expected, *extracted = fields
    verdict = VERIFIERS[name](PLACES[place] % response, gold)
    decision = str(verdict.decision)
    assert decision in (("wrong", "undecided") if expected == "not right" else (expected,)), verdict.reason
    assert extracted in ([], [verdict.extracted])


@pytest.mark.parametrize(
    "gold", sorted({fields[0] for name, place, fields in cases() if (name, place) == ("math", "boxed")})
)
def test_every_gold_answer_is_right_for_itself(gold: str) -> None:
    assert str(VERIFIERS["math"](f"\\boxed{{ {gold} }}", gold).decision) == "right"
