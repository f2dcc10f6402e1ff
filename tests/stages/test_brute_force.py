"""Annotation against brute force: every cell recomputed with plain `transformers` generate, one continuation at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cft.annotation.store import AnnotationStore, table_hash
from cft.types import AnnotatedResponse
from tests.brute_force import BruteForce
from tests.stage import annotate

MAX_NEW_TOKENS = 38  # close enough to the lengths that some continuations are cut off
ARGUMENTS = (
    "limit=20",
    "unit_size=10",
    "data.max_steps=2",
    f"max_new_tokens={MAX_NEW_TOKENS}",
    "annotation=brute_force",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[AnnotatedResponse]:
    folder = annotate(*ARGUMENTS, f"annotations_dir={tmp_path_factory.mktemp('annotations')}")
    return AnnotationStore(folder).rows()


def codes(row: AnnotatedResponse) -> set[int]:
    return set(np.unique(row.alt_outcome).tolist())


def sample(rows: list[AnnotatedResponse], *, count: int) -> list[AnnotatedResponse]:
    """`count` rows, rows with rare outcome codes first, so that every code that occurs is among them."""
    everywhere = [code for row in rows for code in codes(row)]
    return sorted(rows, key=lambda row: (min(everywhere.count(code) for code in codes(row)), row.response_id))[:count]


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_every_outcome_of_responses(rows: list[AnnotatedResponse], tiny_arith_path: Path, count: int) -> None:
    chosen = sample(rows, count=count)
    assert len(chosen) == count
    assert set.union(*map(codes, chosen)) == set.union(*map(codes, rows)) >= {1, 0, -1, -2}
    brute = BruteForce(tiny_arith_path, max_new_tokens=MAX_NEW_TOKENS)
    for row in chosen:
        for t, alternatives, outcomes in brute.outcomes(row):
            assert row.alt_ids[t].tolist() == alternatives, (row.response_id, t)
            assert row.alt_outcome[t].tolist() == outcomes, (row.response_id, t)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10])
def test_the_batch_changes_nothing(rows: list[AnnotatedResponse], tmp_path: Path, limit: int) -> None:
    """Sixteen times fewer rows at a time than by default, and so little memory that forks have to wait."""
    tight = (f"limit={limit}", "engine.max_rows=16", "engine.kv_budget_mb=2")
    found = AnnotationStore(annotate(*ARGUMENTS, *tight, f"annotations_dir={tmp_path}")).rows()
    assert table_hash(found) == table_hash(of_the_same_problems(rows, found))


def of_the_same_problems(rows: list[AnnotatedResponse], found: list[AnnotatedResponse]) -> list[AnnotatedResponse]:
    assert len(found) > 1
    return [row for row in rows if row.problem_id in {other.problem_id for other in found}]


@pytest.mark.slow
def test_the_reference_engine_gives_the_same_table(rows: list[AnnotatedResponse], tmp_path: Path) -> None:
    folder = annotate(*ARGUMENTS, "limit=2", "engine=reference", f"annotations_dir={tmp_path}")
    found = AnnotationStore(folder).rows()
    expected = of_the_same_problems(rows, found)
    assert table_hash(found) == table_hash(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-4)
