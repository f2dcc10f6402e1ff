"""Annotation against brute force: every cell recomputed with plain `transformers` generate, one continuation at a time.

Nothing of cft.engines or cft.annotation.counterfactual is imported here: alternatives, cutting, limits, EOS and
cut-offs are written down a second time, from the method's description in the paper and README.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft.annotation.store import AnnotationStore, table_hash
from cft.types import AnnotatedResponse
from cft.verifiers import Numeric
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


class BruteForce:
    """The method, one fork at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.verifier = Numeric(fallback_last_number=True)
        eos = self.model.generation_config.eos_token_id
        self.eos = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.eos_token_id}

    @torch.inference_mode()
    def outcomes(self, row: AnnotatedResponse) -> Iterator[tuple[int, list[int], list[int]]]:
        """(position, alternatives, outcomes), ranks tried in order until one is right."""
        prompt, response = row.prompt_ids.tolist(), row.response_ids.tolist()
        logits = self.model(torch.tensor([prompt + response])).logits[0]
        for t, own in enumerate(response):
            before = logits[len(prompt) + t - 1]
            ranked = sorted(range(len(before)), key=lambda i: (-float(before[i]), i))
            banned = self.eos if own in self.eos else {own}
            alternatives = [i for i in ranked if i not in banned][:2]
            outcomes = [-1, -1]
            for k, alternative in enumerate(alternatives):
                outcomes[k] = self.outcome(prompt, [*response[:t], alternative], row.answer)
                if outcomes[k] == 1:
                    break
            yield t, alternatives, outcomes

    def outcome(self, prompt: list[int], kept: list[int], answer: str) -> int:
        room = MAX_NEW_TOKENS - len(kept)
        if kept[-1] not in self.eos and room > 0:
            whole = self.model.generate(
                torch.tensor([prompt + kept]),
                max_new_tokens=room,
                do_sample=False,
                eos_token_id=sorted(self.eos),
                pad_token_id=0,
            )
            kept = whole[0, len(prompt) :].tolist()
        verdict = self.verifier(self.tokenizer.decode(kept, skip_special_tokens=True), answer)
        if kept[-1] not in self.eos and not verdict.explicit:
            return -2
        return {"right": 1, "wrong": 0, "undecided": -3}[verdict.decision.value]


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_every_outcome_of_responses(rows: list[AnnotatedResponse], tiny_arith_path: Path, count: int) -> None:
    chosen = sample(rows, count=count)
    assert len(chosen) == count
    assert set.union(*map(codes, chosen)) == set.union(*map(codes, rows)) >= {1, 0, -1, -2}
    brute = BruteForce(tiny_arith_path)
    for row in chosen:
        for t, alternatives, outcomes in brute.outcomes(row):
            assert row.alt_ids[t].tolist() == alternatives, (row.response_id, t)
            assert row.alt_outcome[t].tolist() == outcomes, (row.response_id, t)


def test_the_batch_changes_nothing(rows: list[AnnotatedResponse], tmp_path: Path) -> None:
    """Sixteen times fewer rows at a time than by default, and so little memory that forks have to wait."""
    tight = ("limit=10", "engine.max_rows=16", "engine.kv_budget_mb=2")
    found = AnnotationStore(annotate(*ARGUMENTS, *tight, f"annotations_dir={tmp_path}")).rows()
    assert table_hash(found) == table_hash(of_the_same_problems(rows, found))


def of_the_same_problems(rows: list[AnnotatedResponse], found: list[AnnotatedResponse]) -> list[AnnotatedResponse]:
    assert len(found) > 1
    return [row for row in rows if row.problem_id in {other.problem_id for other in found}]


def test_the_reference_engine_gives_the_same_table(rows: list[AnnotatedResponse], tmp_path: Path) -> None:
    folder = annotate(*ARGUMENTS, "limit=2", "engine=reference", f"annotations_dir={tmp_path}")
    found = AnnotationStore(folder).rows()
    expected = of_the_same_problems(rows, found)
    assert table_hash(found) == table_hash(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-4)
