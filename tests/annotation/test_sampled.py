"""Sampled evidence against the reference engine, one sample at a time, and the mask that reads it against truth tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from cft.annotation.annotator import Annotator
from cft.annotation.sampled import COLUMNS, SampleDesign
from cft.config.build import build
from cft.engines.reference import ReferenceEngine
from cft.masks import CriticalSampled, MaskError
from cft.positions import Stride
from cft.stages.annotation_worker import Annotating
from cft.types import AnnotatedResponse, Fork, Outcome, Sampling, TokenSequence
from cft.verifiers import Numeric
from tests.fakes import row
from tests.stage import composed

EVERY, SAMPLES = 16, 2


@pytest.fixture(scope="module")
def working() -> Iterator[Annotator]:
    cfg = composed(
        "annotate",
        *("max_new_tokens=60", "verify.workers=1", "responses=given", "evidence=sampled", "seed=5"),
        *(f"num_samples={SAMPLES}", "temperature=1.0", "top_p=0.95"),
    )
    worker = Annotating(
        cfg, Numeric(fallback_last_number=True), positions=Stride(every=EVERY), every_outcome=False, device="cpu"
    )
    with closing(worker):
        assert worker.annotator.samples == SampleDesign(SAMPLES, 1.0, 0.95, 5)
        yield worker.annotator


@pytest.fixture(scope="module")
def rows(working: Annotator) -> list[AnnotatedResponse]:
    return working.fresh(build(composed("annotate", "data.max_steps=2").data).train[:1]).rows


@pytest.mark.slow
def test_counts_are_those_of_samples_drawn_one_by_one(working: Annotator, rows: list[AnnotatedResponse]) -> None:
    reference = ReferenceEngine(working.engine.model, working.eos_ids)  # type: ignore[attr-defined]
    seen: set[Outcome] = set()
    for one in rows:
        sequence = TokenSequence(np.concatenate([one.prompt_ids, one.response_ids]), len(one.prompt_ids))
        for t in range(len(one.response_ids)):
            tokens = [int(one.response_ids[t]), *one.alt_ids[t].tolist()]
            if t % EVERY:
                assert not one.sampled[t].any()
                continue
            for j, token in enumerate(tokens):
                outcomes = []
                for i in range(SAMPLES):
                    sampling = Sampling(1.0, 0.95, 5, f"counterfactual\x1f{one.response_id}\x1f{t}\x1f{token}\x1f{i}")
                    fork = Fork(sequence, len(one.prompt_ids) + t, token, sampling, 0)
                    ((outcome, _),) = working.grader([(reference.complete(fork, budget=working.budget), one.answer)])
                    outcomes.append(outcome)
                found = [int(getattr(one, name)[t, j]) for name in COLUMNS]
                counted = [outcomes.count(code) for code in (Outcome.RIGHT, Outcome.CUT_OFF, Outcome.UNDECIDED)]
                assert found == [SAMPLES, *counted], (one.response_id, t, j)
                seen |= set(outcomes)
    assert {Outcome.RIGHT, Outcome.WRONG} <= seen


@pytest.mark.slow
def test_more_alternatives_and_positions_change_no_sample_that_is_there(
    working: Annotator, rows: list[AnnotatedResponse], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "num_alternatives", 3)
    monkeypatch.setattr(working, "every_position", True)
    monkeypatch.setattr(working, "short_circuit", False)
    filled, tally, compute = working.filled(rows[:1])
    assert (filled[0].sampled == SAMPLES).all()
    assert filled[0].sampled.shape[1] == 4
    assert tally.samples == filled[0].sampled.sum() - rows[0].sampled.sum()
    assert compute["sample_tokens"] > 0
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(filled[0], name)[::EVERY, :3], getattr(rows[0], name)[::EVERY])
    assert not (filled[0].alt_outcome == Outcome.UNTRIED).any()


def sampled(right: list[list[int]], *, n: int = 4, cut_off: int = 0, undecided: int = 0) -> AnnotatedResponse:
    """right: [R][K + 1] of n samples each."""
    counts = np.array(right, np.int16)
    return dataclasses.replace(
        row(range(len(right)), k=len(right[0]) - 1),
        sampled=np.full_like(counts, n),
        sampled_right=counts,
        sampled_cut_off=np.full_like(counts, cut_off),
        sampled_undecided=np.full_like(counts, undecided),
    )


def test_the_mask_s_thresholds() -> None:
    one = sampled([[4, 0, 1], [4, 2, 2], [4, 3, 0], [1, 1, 1], [4, 4, 4]])
    assert CriticalSampled(max_success=0.5)(one).tolist() == [1, 1, 0, 1, 0]
    assert CriticalSampled(max_success=0.25)(one).tolist() == [1, 0, 0, 1, 0]
    assert CriticalSampled(max_success=0.25, rule="any")(one).tolist() == [1, 0, 1, 1, 0]
    assert CriticalSampled(max_success=0.5, min_drop=0.5)(one).tolist() == [1, 1, 0, 0, 0]
    assert CriticalSampled(max_success=0.5, weight="drop")(one).tolist() == [0.875, 0.5, 0, 0, 0]
    assert CriticalSampled(num_alternatives=1, max_success=0.25)(one).tolist() == [1, 0, 0, 1, 0]


def test_undecided_samples_are_none_and_cut_off_ones_are_wrong_by_choice() -> None:
    one = sampled([[2, 1, 1]], undecided=2)  # 1 of 2
    assert CriticalSampled(max_success=0.4)(one).tolist() == [0]
    assert CriticalSampled(max_success=0.5)(one).tolist() == [1]
    assert CriticalSampled(max_success=1.0)(sampled([[0, 0, 0]], undecided=4)).tolist() == [
        0
    ]  # nothing is known to fail
    cut = sampled([[3, 1, 1]], cut_off=2)  # 1 of 4, or 1 of 2
    assert CriticalSampled(max_success=0.4)(cut).tolist() == [1]
    assert CriticalSampled(max_success=0.4, cut_off="not_wrong")(cut).tolist() == [0]


def test_what_has_no_samples_is_refused() -> None:
    with pytest.raises(MaskError, match=r"holds no samples.*evidence=sampled"):
        CriticalSampled()(row([5]))
    partly = sampled([[4, 0, 0], [0, 0, 0]])
    partly.sampled[1] = 0
    with pytest.raises(MaskError, match=r"1 of 2 positions have no samples.*complete=true"):
        CriticalSampled()(partly)
    mask = CriticalSampled(untried="leave_out")
    assert mask(partly).tolist() == [1, 0]
    assert mask.known(partly).tolist() == [True, False]
    with pytest.raises(MaskError, match="ends wrong"):
        CriticalSampled()(dataclasses.replace(sampled([[4, 0, 0]]), verdict="wrong"))
