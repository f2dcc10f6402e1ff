"""Positions: what is tried is what a full annotation has there, and the rest is untried, in the table and in every count."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.annotation.annotator import Annotator
from cft.config.build import build
from cft.positions import Bisect, Positions, PositionsError, ResponseView, Spans, Stride, TopEntropy
from cft.stages.annotation_worker import Annotating
from cft.types import AnnotatedResponse, Outcome, Problem
from cft.verifiers import Numeric
from tests.brute_force import BruteForce
from tests.stage import composed

MAX_NEW_TOKENS = 60


@pytest.fixture(scope="module")
def working() -> Iterator[Annotator]:
    cfg = composed("annotate", f"max_new_tokens={MAX_NEW_TOKENS}", "replay_fraction=0", "verify.workers=1")
    worker = Annotating(
        cfg, Numeric(fallback_last_number=True), positions=Stride(every=1), every_outcome=False, device="cpu"
    )
    with closing(worker):
        yield worker.annotator


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    """Of which the model solves some: two steps."""
    return list(build(composed("annotate", "data.max_steps=3", "data.min_steps=3").data).train[:3])


def annotated(annotator: Annotator, problems: list[Problem], **changes: object) -> list[AnnotatedResponse]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(annotator, name, value)
        return annotator.fresh(problems).rows


@pytest.fixture(scope="module")
def whole(working: Annotator, problems: list[Problem]) -> list[AnnotatedResponse]:
    rows = annotated(working, problems, responses="given")
    assert len(rows) == 3
    return rows


def numbers(row: AnnotatedResponse) -> list[bool]:
    return [any(char.isdigit() for char in row.response[start:end]) for start, end in row.char_span.tolist()]


def most_uncertain(row: AnnotatedResponse, number: int) -> list[bool]:
    chosen = sorted(range(len(row.entropy)), key=lambda t: (-float(row.entropy[t]), t))[:number]
    return [t in chosen for t in range(len(row.entropy))]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        pytest.param(
            Stride(every=5, first=2),
            lambda row: [t % 5 == 2 for t in range(len(row.response_ids))],
            marks=pytest.mark.slow,
        ),
        pytest.param(Spans(pattern=r"\d+"), numbers, marks=pytest.mark.slow),
        (TopEntropy(number=4), lambda row: most_uncertain(row, 4)),
        pytest.param(
            TopEntropy(fraction=0.1),
            lambda row: most_uncertain(row, -(-len(row.response_ids) // 10)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["stride", "spans", "number", "fraction"],
)
def test_what_is_tried_is_what_a_whole_annotation_has_there(
    working: Annotator, problems: list[Problem], whole: list[AnnotatedResponse], positions: Positions, expected: object
) -> None:
    rows = annotated(working, problems, responses="given", positions=positions)
    for found, full in zip(rows, whole, strict=True):
        wanted = np.array(expected(full))  # type: ignore[operator]
        assert 0 < wanted.sum() < len(wanted)
        np.testing.assert_array_equal(found.tried_R, wanted)
        np.testing.assert_array_equal(found.alt_outcome[wanted], full.alt_outcome[wanted])
        assert (found.alt_outcome[~wanted] == Outcome.UNTRIED).all()
        assert not found.alt_tokens[~wanted].any()
        np.testing.assert_array_equal(found.alt_ids, full.alt_ids)  # known of all: they cost nothing


@pytest.mark.slow
def test_spans_of_a_file(
    working: Annotator, problems: list[Problem], whole: list[AnnotatedResponse], tmp_path: Path
) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_text(f'{{"id": "{problems[1].id}", "spans": [[0, 3], [10, 11]]}}\n')
    rows = annotated(working, problems, responses="given", positions=Spans(pattern="", file=str(file)))
    assert [int(row.tried_R.sum()) > 0 for row in rows] == [False, True, False]
    inside = [
        max(start, 0) < min(end, 3) or max(start, 10) < min(end, 11) for start, end in whole[1].char_span.tolist()
    ]
    assert rows[1].tried_R.tolist() == inside
    file.write_text(f'{{"id": "{problems[1].id}", "spans": [[0, 3000]]}}\n')
    with pytest.raises(PositionsError, match="ends behind its response"):
        annotated(working, problems, responses="given", positions=Spans(pattern="", file=str(file)))
    file.write_text('{"id": "x", "spans": [[3, 3]]}\n')
    with pytest.raises(PositionsError, match=r"line 1.*start < end"):
        Spans(pattern="", file=str(file))


def test_a_file_of_spans_is_read_by_lines_of_whole_numbers(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_text('\ufeff{"id": "a\u2028b", "spans": [[0, 3]]}\r\n', encoding="utf-8")
    assert Spans(pattern="", file=str(file)).of_problem == {"a\u2028b": [(0, 3)]}
    for spans in ("[[0, 3.7]]", '[["0", "3"]]', "[[false, true]]"):
        file.write_text(f'{{"id": "x", "spans": {spans}}}\n')
        with pytest.raises(PositionsError, match=r"line 1.*no whole numbers with 0 <= start < end"):
            Spans(pattern="", file=str(file))


@pytest.mark.slow
def test_bisection_finds_transitions_of_the_model_s_own_continuations(
    working: Annotator, problems: list[Problem], tiny_arith_path: Path
) -> None:
    """Against every beginning of the response continued by plain generate."""
    brute = BruteForce(tiny_arith_path, max_new_tokens=MAX_NEW_TOKENS)
    rows = annotated(working, problems, responses="given", positions=Bisect(segments=2))
    seen = 0
    for row in rows:
        prompt, response = row.prompt_ids.tolist(), row.response_ids.tolist()
        asked = np.flatnonzero(row.prefix_outcome != Outcome.UNTRIED)
        assert len(asked) < len(response) / 2  # else it saves nothing
        s = {int(t): brute.outcome(prompt, response[:t], row.answer) for t in asked}
        assert row.prefix_outcome[asked].tolist() == list(s.values())
        s[len(response)] = 1
        edges = [0, round(len(response) / 2), len(response)]
        differing = sum((s[a] == 1) != (s[b] == 1) for a, b in pairwise(edges))
        found = np.flatnonzero(row.tried_R).tolist()
        assert len(found) == differing
        assert all((s[t] == 1) != (s[t + 1] == 1) for t in found)
        seen += differing
    assert seen > 0


@given(
    outcomes=st.lists(st.sampled_from([1, 0, -2, -3]), min_size=1, max_size=40),
    last=st.sampled_from([Outcome.RIGHT, Outcome.WRONG]),
    segments=st.integers(1, 9),
)
def test_bisection_finds_one_transition_in_each_segment_whose_ends_differ(
    outcomes: list[int], last: Outcome, segments: int
) -> None:
    length = len(outcomes)
    view = ResponseView("p", "", np.zeros((length, 2), np.int32), np.zeros(length, np.float32), last)
    right = [outcome == 1 for outcome in outcomes] + [last == Outcome.RIGHT]
    search, asked = Bisect(segments=segments).search(view), 0
    places = next(search)
    try:
        while True:
            asked += len(places)
            places = search.send({t: Outcome(outcomes[t]) for t in places})
    except StopIteration as end:
        wanted = end.value
    edges = sorted({round(i * length / segments) for i in range(segments + 1)})
    pieces = list(pairwise(edges))
    for a, b in pieces:
        assert int(wanted[a:b].sum()) == (right[a] != right[b])
    assert all(right[t] != right[t + 1] for t in np.flatnonzero(wanted))
    assert asked <= len(edges) + len(pieces) * np.ceil(np.log2(max(2, max(b - a for a, b in pieces))))


def test_wrong_responses_have_the_outcomes_of_brute_force(
    working: Annotator, problems: list[Problem], tiny_arith_path: Path
) -> None:
    brute = BruteForce(tiny_arith_path, max_new_tokens=MAX_NEW_TOKENS)
    solved = annotated(working, problems, positions=Stride(every=9))
    rows = annotated(working, problems, responses="wrong", positions=Stride(every=9))
    assert {row.verdict for row in rows} == {"wrong"}
    assert {row.verdict for row in solved} == {"right"}
    assert {row.problem_id for row in rows}.isdisjoint(row.problem_id for row in solved)
    row = rows[0]
    assert brute.outcome(row.prompt_ids.tolist(), row.response_ids.tolist(), row.answer) == 0
    for t, alternatives, outcomes in brute.outcomes(row, every=9):
        assert row.alt_ids[t].tolist() == alternatives
        assert row.alt_outcome[t].tolist() == outcomes
    np.testing.assert_array_equal(row.tried_R, np.arange(len(row.response_ids)) % 9 == 0)


@pytest.mark.slow
def test_given_responses_that_end_wrong(working: Annotator, problems: list[Problem]) -> None:
    wrong = [
        dataclasses.replace(problem, answer=str(int(re.sub(r"\D", "", problem.answer)) + 1)) for problem in problems
    ]
    unit = working.fresh(problems[:1])
    assert unit.rows == [] or unit.rows[0].verdict == "right"
    rows = annotated(working, [problems[0], *wrong[1:3]], responses="given_wrong", positions=Stride(every=16))
    assert [row.problem_id for row in rows] == [problem.id for problem in wrong[1:3]]
    assert all(row.verdict == "wrong" for row in rows)


def test_entropies_that_the_engine_does_not_know_are_refused(working: Annotator, problems: list[Problem]) -> None:
    score_all = working.engine.score_all

    def without(sequences: object, *, k: int) -> Iterator[object]:
        for index, top in score_all(sequences, k=k):  # type: ignore[arg-type]
            yield index, dataclasses.replace(top, entropy_R=np.full_like(top.entropy_R, np.nan))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working.engine, "score_all", without)
        with pytest.raises(PositionsError, match="only the most probable tokens, not entropies"):
            annotated(working, problems[:1], responses="given", positions=TopEntropy(number=2))
