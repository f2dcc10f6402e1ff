"""Questions with options, `(B) text`: right by the letter or by the text, and by nothing in between."""

from __future__ import annotations

import pytest

from cft.verifiers import Numeric, Options

OPTIONS = Options(inner=Numeric(fallback_last_number=True))


@pytest.mark.parametrize(
    "response, answer, decision",
    [
        # Money, with or without its sign.
        ("The answer is $5.", "(B) $5", "right"),
        ("\\boxed{\\$5}", "(B) $5", "right"),
        ("The answer is (B) $5.", "(B) $5", "right"),
        ("The answer is $5.00.", "(B) $5", "right"),
        ("\\boxed{5}", "(B) $5", "right"),
        ("The answer is $6.", "(B) $5", "wrong"),
        ("The answer is (A) $5.", "(B) $5", "undecided"),
        # A sentence goes on behind the option.
        ("The answer is yes, he is.", "(A) yes", "right"),
        ("The answer is yes, he is.", "(B) no", "wrong"),
        ("The answer is no, but perhaps yes.", "(B) no", "wrong"),
        ("The answer is nobody.", "(B) no", "wrong"),
        # A sentence without the word answer.
        ("The correct option is B.", "(B) no", "right"),
        ("Therefore, B is correct.", "(B) no", "right"),
        ("Therefore, A is correct.", "(B) no", "wrong"),
        # Two letters are one too many.
        ("\\boxed{A,B}", "(A) yes", "undecided"),
        ("A or B", "(A) yes", "undecided"),
        ("\\boxed{A,B}", "(C) yes", "wrong"),
        # A fraction with space in it, where a fraction is asked for.
        ("\\boxed{1 / 3}", "1/3", "right"),
        ("#### 2 / 6", "1/3", "right"),
        ("The answer is 1 / 4.", "1/3", "wrong"),
        ("6 / 3 = 2", "2", "right"),
    ],
)
def test_options(response: str, answer: str, decision: str) -> None:
    assert OPTIONS(response, answer).decision == decision
