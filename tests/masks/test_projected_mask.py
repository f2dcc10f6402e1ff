"""Masks carried over to another tokenizer by characters: against a definition character by character, and there and back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cft.annotation.store import SHIPPED, AnnotationStore, StoreError
from cft.masks import Complement, Critical, MaskError
from cft.masks.projected import Projected, project
from cft.types import AnnotatedResponse
from tests.fakes import row

Spans = NDArray[np.int32]
TEXT_LENGTH = 24


def spans_of(cuts: set[int], *, length: int = TEXT_LENGTH) -> Spans:
    """Tokens between the cuts, and an end token."""
    edges = sorted({0, length, *cuts})
    return np.array([*pairwise(edges), (length, length)], np.int32)


SPANS = st.sets(st.integers(1, TEXT_LENGTH - 1)).map(spans_of)


@given(source=SPANS, target=SPANS, seed=st.integers(0, 999))
def test_a_token_weighs_what_the_heaviest_character_it_shares_does(source: Spans, target: Spans, seed: int) -> None:
    weight = np.random.default_rng(seed).choice([0.0, 0.5, 1.0], len(source)).astype(np.float32)
    of_char = {c: weight[s] for s, (start, end) in enumerate(source) for c in range(start, end)}
    expected = [max((of_char[c] for c in range(start, end)), default=0.0) for start, end in target]
    expected[-1] = weight[-1]
    found = project(weight, source_span=source, target_span=target, ends=True)
    assert found.tolist() == expected
    assert project(weight, source_span=source, target_span=target, ends=False)[-1] == 0


@given(spans=SPANS, seed=st.integers(0, 999))
def test_the_same_tokenizer_changes_nothing(spans: Spans, seed: int) -> None:
    weight = np.random.default_rng(seed).random(len(spans), dtype=np.float32)
    np.testing.assert_array_equal(project(weight, source_span=spans, target_span=spans, ends=True), weight)


@given(a=SPANS, b=SPANS, seed=st.integers(0, 999))
def test_there_and_back_loses_nothing(a: Spans, b: Spans, seed: int) -> None:
    weight = np.random.default_rng(seed).integers(0, 2, len(a)).astype(np.float32)
    there = project(weight, source_span=a, target_span=b, ends=True)
    back = project(there, source_span=b, target_span=a, ends=True)
    assert (back >= weight).all()


@pytest.fixture(scope="module")
def shipped() -> list[AnnotatedResponse]:
    return AnnotationStore(SHIPPED / "tiny_arith").rows()


def characters(text: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(text))]


def words(text: str) -> list[tuple[int, int]]:
    """A space belongs to the word behind it, as in byte-pair vocabularies."""
    return [m.span() for m in re.finditer(r"\s*\S+", text)]


def threes(text: str) -> list[tuple[int, int]]:
    return [(i, min(i + 3, len(text))) for i in range(0, len(text), 3)]


# Measured on the 1,868 shipped responses, critical mask: share of what comes back that was there, all of which comes back.
PRECISION = {characters: 1.0, words: 0.9332, threes: 0.6699}


@pytest.mark.parametrize("tokens", PRECISION, ids=lambda f: f.__name__)
def test_the_round_trip_of_the_shipped_mask(
    shipped: list[AnnotatedResponse], tokens: Callable[[str], list[tuple[int, int]]]
) -> None:
    mask = Critical()
    kept = picked = returned = 0.0
    for one in shipped:
        other = np.array([*tokens(one.response), (len(one.response),) * 2], np.int32)
        before = mask(one)
        there = project(before, source_span=one.char_span, target_span=other, ends=True)
        after = project(there, source_span=other, target_span=one.char_span, ends=True)
        kept, picked, returned = kept + (before * after).sum(), picked + before.sum(), returned + after.sum()
    assert kept / picked == 1.0  # recall
    assert kept / returned == pytest.approx(PRECISION[tokens], abs=5e-4)


def other_annotation(folder: Path, rows: list[AnnotatedResponse]) -> None:
    made = AnnotationStore(folder)
    with made.writing(fingerprint={"tokenizer": "other"}, info={"model_name": "other"}):
        made.commit(0, rows=rows, problems=[], facts={})


def in_letters(text: str, *, number: int, outcomes: list[list[int]]) -> AnnotatedResponse:
    spans = [[i, i + 1] for i in range(len(text))] + [[len(text)] * 2]
    return row(range(len(spans)), response=text, char_span=spans, number=number, outcomes=outcomes)


def test_rows_are_matched_by_problem_and_text(tmp_path: Path) -> None:
    """Source: letters, of which one is critical. Target: pairs of letters."""
    outcomes = [[1, -1], [0, 0], [1, -1], [1, -1], [0, 0]]
    other_annotation(tmp_path / "theirs", [in_letters("abcd", number=n, outcomes=outcomes) for n in range(3)])
    mine = [
        row([7, 8, 2], response="abcd", char_span=[[0, 2], [2, 4], [4, 4]], number=0),
        row([7, 8, 2], response="abcX", char_span=[[0, 2], [2, 4], [4, 4]], number=1),
        row([7, 8, 2], response="abcd", char_span=[[0, 2], [2, 4], [4, 4]], number=9),
    ]
    mask = Projected(from_annotation="theirs", annotations_dir=str(tmp_path), inner=Critical())
    mask.fit(mine)
    assert [mask(one).tolist() for one in mine] == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    facts = mask.facts()
    assert (facts["matched_rows"], facts["unmatched_rows"]) == (1, 2)
    manifest = AnnotationStore(tmp_path / "theirs").manifest()
    assert facts["from_annotation"] == manifest["fingerprint_sha256"]
    cut = dataclasses.replace(mine[0], finish="length")
    assert mask(cut).tolist() == [1, 0, 0]  # its last token is no end


@pytest.mark.parametrize("deep", [False, True])
def test_a_row_without_a_partner_has_no_token_in_the_complement_either(tmp_path: Path, *, deep: bool) -> None:
    """Source: three letters, the second critical. deep: a complement of the complement."""
    other_annotation(tmp_path / "theirs", [in_letters("abc", number=0, outcomes=[[1, -1], [0, 0], [1, -1], [1, -1]])])
    known, unknown = (row([7, 8, 9, 2], char_span=[[0, 1], [1, 2], [2, 3], [3, 3]], response=t) for t in ("abc", "abX"))
    projected = Projected(from_annotation="theirs", annotations_dir=str(tmp_path), inner=Critical())
    mask = Complement(of=Complement(of=projected) if deep else projected)
    assert mask(known).tolist() == ([0, 1, 0, 0] if deep else [1, 0, 1, 1])
    assert mask(unknown).tolist() == [0, 0, 0, 0]
    assert not mask.known(unknown).any()


def test_an_annotation_that_is_not_there_is_named_by_its_own_setting(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^mask\.from_annotation=nosuch: no manifest"):
        Projected(from_annotation="nosuch", annotations_dir=str(tmp_path), inner=Critical())


def test_no_partner_at_all_is_refused(tmp_path: Path) -> None:
    other_annotation(tmp_path / "theirs", [in_letters("ab", number=0, outcomes=[[0, 0]] * 3)])
    mask = Projected(from_annotation="theirs", annotations_dir=str(tmp_path), inner=Critical())
    with pytest.raises(MaskError, match="responses=given annotation=theirs"):
        mask.fit([row([1], response="x", char_span=[[0, 1]], number=5)])
