"""A response in color shows its tokens and what came of their alternatives, and none of its text is markup."""

from __future__ import annotations

import dataclasses
import re
from html import unescape

import numpy as np
import pytest

import cft
from cft.annotation.store import SHIPPED, AnnotationStore
from cft.masks import All, Critical
from cft.types import AnnotatedResponse, Outcome


@pytest.fixture(scope="module")
def row() -> AnnotatedResponse:
    return AnnotationStore(SHIPPED / "tiny_arith").rows()[0]


def test_html_has_every_token_in_order_with_critical_ones_on_red(row: AnnotatedResponse) -> None:
    html = cft.show(row)._repr_html_()
    found = re.findall(r'<span style="([^"]*)" title="([^"]*)">([^<]*)</span>', html)
    assert len(found) == len(row.response_ids)
    assert "".join(unescape(text) for *_, text in found).replace("⏎\n", "\n").removesuffix("⏹") == row.response
    assert ["#d9363e" in style for style, *_ in found] == (Critical()(row) > 0).tolist()
    failing = int(np.flatnonzero(Critical()(row) > 0)[0])
    assert f"alternative 1: wrong, answer {row.alt_answer[failing][0]}" in found[failing][1]


def test_text_of_a_model_is_no_markup(row: AnnotatedResponse) -> None:
    evil = '<img src=x onerror="alert(1)">'
    spans = np.zeros_like(row.char_span)
    spans[0] = 0, len(evil)
    spans[1:] = len(evil)
    answers = [[f'"{evil}'] * 2 for _ in row.alt_answer]
    hostile = dataclasses.replace(row, response=evil, char_span=spans, problem=evil, answer=evil, alt_answer=answers)
    html = cft.show(hostile)._repr_html_()
    assert "<img" not in html
    assert set(re.findall(r"<(\w+)", html)) == {"div", "span", "b"}
    assert html.count('="') == html.count('style="') + html.count('title="')


def test_another_mask_colors_and_text_has_brackets(row: AnnotatedResponse) -> None:
    assert repr(cft.show(row, All())).count("[") == len(row.response_ids)
    assert repr(cft.show(row)).count("[") == int((Critical()(row) > 0).sum())


def test_red_says_what_it_is_in_right_and_wrong_responses_and_of_a_mask(row: AnnotatedResponse) -> None:
    outcomes = np.full_like(row.alt_outcome, Outcome.WRONG)
    outcomes[3] = Outcome.RIGHT
    outcomes[4] = Outcome.UNTRIED
    wrong = cft.show(dataclasses.replace(row, alt_outcome=outcomes, verdict="wrong"))
    assert np.flatnonzero(wrong.weights).tolist() == [3]
    assert ">turning</span> with another token in its place the answer is right." in wrong._repr_html_()
    assert ">wavering<" not in wrong._repr_html_()
    assert ">untried<" in wrong._repr_html_()
    assert ">critical</span> every alternative that the mask counts" in cft.show(row)._repr_html_()
    assert ">picked</span> by mask All." in cft.show(row, All())._repr_html_()
