"""Rollouts: every response of a problem, drawn as brute force draws it, with the model's own log-probs; and what of them is
trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cft.annotation.rollouts import RolloutDesign, pass_rate, pass_rates
from cft.annotation.store import AnnotationStore, StoreError, table_hash
from cft.data.annotated import AnnotatedDataModule, annotated_rows, in_validation
from cft.data.chosen import Choice, PassRates, chosen
from cft.data.module import RowsRequest
from cft.masks import All, Critical, Mask, MaskError, RandomLike
from cft.report.show import shown
from cft.types import GREEDY, AnnotatedResponse, ResponseVerdict
from tests.fakes import row
from tests.stage import annotate

MAX_NEW_TOKENS = 40
TEMPERATURE = 0.6
TOP_P = 0.95
ARGUMENTS = (
    "responses=rollouts",
    "num_samples=2",
    f"temperature={TEMPERATURE}",
    f"top_p={TOP_P}",
    "seed=3",
    "limit=7",
    "unit_size=3",
    "data.max_steps=2",
    f"max_new_tokens={MAX_NEW_TOKENS}",
    "annotation=drawn",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AnnotationStore:
    return AnnotationStore(annotate(*ARGUMENTS, f"annotations_dir={tmp_path_factory.mktemp('annotations')}"))


@pytest.fixture(scope="module")
def rows(store: AnnotationStore) -> list[AnnotatedResponse]:
    return store.rows()


@pytest.fixture(scope="module")
def exact(tiny_arith_path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_arith_path, dtype=torch.float64).eval()


@torch.inference_mode()
def drawn_by_brute_force(model: PreTrainedModel, prompt: list[int], problem_id: str, sample: int) -> list[int]:
    """One token at a time, each by a pass over all ids: its nucleus, then the inverse distribution in the order of ids."""
    key = hashlib.blake2b(f"3\x1frollout\x1f{problem_id}\x1f{sample}".encode(), digest_size=16).digest()
    uniform = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64))).random(MAX_NEW_TOKENS)
    end = model.generation_config.eos_token_id
    ids: list[int] = []
    while len(ids) < MAX_NEW_TOKENS and (not ids or ids[-1] not in (end if isinstance(end, list) else [end])):
        logits = model(torch.tensor([prompt + ids])).logits[0, -1]
        share = torch.softmax(logits / TEMPERATURE, -1)
        falling = share.sort(descending=True)
        nucleus = falling.indices[(falling.values.cumsum(0) - falling.values) < TOP_P]
        kept = torch.zeros_like(share)
        kept[nucleus] = share[nucleus]
        ids.append(int((kept.cumsum(0) / kept.sum() <= uniform[len(ids)]).sum()))
    return ids


def test_the_samples_are_those_of_brute_force(rows: list[AnnotatedResponse], exact: PreTrainedModel) -> None:
    assert Counter(row.problem_id for row in rows) == dict.fromkeys({row.problem_id for row in rows}, 2)
    assert [row.sample for row in rows[:4]] == [0, 1, 0, 1]
    assert len({row.response_id for row in rows}) == len(rows) == 14
    for one in rows[::6]:
        expected = drawn_by_brute_force(exact, one.prompt_ids.tolist(), one.problem_id, one.sample)
        assert one.response_ids.tolist() == expected, (one.problem_id, one.sample)


def test_log_probs_are_the_models_own_whatever_the_temperature(
    rows: list[AnnotatedResponse], exact: PreTrainedModel
) -> None:
    for one in rows[:3]:
        ids = torch.tensor([[*one.prompt_ids.tolist(), *one.response_ids.tolist()]])
        with torch.inference_mode():
            logprob = torch.log_softmax(exact(ids).logits[0, len(one.prompt_ids) - 1 : -1], -1)
        own = logprob.gather(1, torch.from_numpy(one.response_ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(one.logprob, own.numpy(), atol=1e-4)
        np.testing.assert_allclose(one.entropy, -(logprob.exp() * logprob).sum(-1).numpy(), atol=1e-4)


def test_problems_have_the_pass_rates_of_their_rows(store: AnnotationStore, rows: list[AnnotatedResponse]) -> None:
    records = {record.problem_id: record for record in store.problems()}
    assert {name: record.pass_rate for name, record in records.items()} == pass_rates(rows)
    assert {record.responses for record in records.values()} == {2}
    counted = Counter(row.verdict for row in rows)
    assert sum(record.right for record in records.values()) == counted["right"] > 0
    assert counted["wrong"] + counted["cut off"] > 0
    counts = store.manifest()["counts"]
    assert counts["rollouts"] == 14
    assert counts["rollouts_right"] == counted["right"]
    assert "sampled at temperature 0.6" in (store.folder / "README.md").read_text()


@pytest.mark.slow
def test_interrupted_and_in_shards_it_is_the_same_table(
    rows: list[AnnotatedResponse], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off behind the files of the second unit and before its record; then continued by three shards with another batch."""
    commit = AnnotationStore.commit

    def cut_off(self: AnnotationStore, unit: int, **parts: object) -> None:
        commit(self, unit, **parts)  # type: ignore[arg-type]
        if unit == 1:
            (self.folder / "units" / "00001.json").unlink()
            raise KeyboardInterrupt

    arguments = (*ARGUMENTS, f"annotations_dir={tmp_path}")
    with monkeypatch.context() as patched:
        patched.setattr(AnnotationStore, "commit", cut_off)
        with pytest.raises(KeyboardInterrupt):
            annotate(*arguments)
    assert list(AnnotationStore(tmp_path / "drawn").units()) == [0]
    for shard in (2, 0, 1):
        annotate(*arguments, "num_shards=3", f"shard={shard}", "engine.max_rows=3")
    assert table_hash(AnnotationStore(tmp_path / "drawn").rows()) == table_hash(rows)


def test_a_rollout_is_shown_without_a_mark(rows: list[AnnotatedResponse]) -> None:
    assert repr(shown(rows[0])).startswith(rows[0].response)


def test_no_samples_are_one_greedy_response() -> None:
    design = RolloutDesign(0, 1.0, 1.0, seed=5)
    assert [design.sampling("p", sample) for sample in design.samples()] == [GREEDY]
    assert design.settings() == {"num_samples": 0}  # what draws nothing makes no other annotation


# ---- what of them is trained on


def made(
    number: int, verdict: ResponseVerdict, *, problem: str, ids: tuple[int, ...] = (), finish: str = "stop"
) -> AnnotatedResponse:
    one = row([*(ids or (10 + number,)), 2], number=number)
    return dataclasses.replace(one, problem_id=problem, response_id=f"r{number}", verdict=verdict, finish=finish)


TABLE = [
    made(0, "right", problem="even"),
    made(1, "wrong", problem="even"),
    made(2, "right", problem="all"),
    made(3, "right", problem="all", ids=(12,)),  # the same response again
    made(4, "right", problem="all", finish="length"),  # right, and went on until it was cut off
    made(5, "cut off", problem="third"),
    made(6, "wrong", problem="third"),
    made(7, "right", problem="third"),
    made(8, "undecided", problem="third"),
    made(9, "undecided", problem="unknown"),
    made(10, "wrong", problem="none"),
]


def test_a_pass_rate_is_of_decided_responses_and_counts_cut_off_ones() -> None:
    rates = pass_rates(TABLE)
    assert math.isnan(rates.pop("unknown"))
    assert rates == {"even": 1 / 2, "all": 1.0, "third": 1 / 3, "none": 0.0}
    assert math.isnan(pass_rate([]))


def names(verdicts: Any, *, lowest: float | None = None, highest: float | None = None, each: int = -1) -> set[int]:
    kept, left_out = chosen(TABLE, Choice(verdicts, PassRates(lowest, highest), each), rollouts=True, place="here")
    assert all(left_out.values())
    return {int(one.response_id[1:]) for one in kept}


def test_responses_are_chosen_by_verdict_by_pass_rate_and_by_number() -> None:
    assert names("right") == {0, 2, 7}
    assert names("wrong") == {1, 5, 6, 10}
    assert names("all") == {0, 1, 2, 4, 5, 6, 7, 8, 9, 10}
    assert names("right", lowest=0.5) == {0, 2}  # both bounds are included
    assert names("all", lowest=1 / 3, highest=0.5) == {0, 1, 5, 6, 7, 8}
    assert names("all", highest=0.0) == {10}  # of an unknown rate nothing is said
    compared = names("compared", each=1)  # of each kind, so that both sides of a problem stay
    assert compared - {5, 6} == {0, 1, 2, 7, 10}
    assert len(compared & {5, 6}) == 1
    assert len(names("wrong", each=1)) == 3
    assert names("wrong", each=1) < names("wrong")
    _, left_out = chosen(TABLE, Choice("right", PassRates(0.0), -1), rollouts=True, place="here")
    assert left_out == {
        "problems_outside_pass_rates": 1,
        "responses_not_right": 5,
        "right_responses_without_an_end": 1,
        "repeated_responses": 1,
    }


def test_what_leaves_nothing_or_cannot_be_known_is_refused() -> None:
    with pytest.raises(StoreError, match=r"none of its 11 responses remains .*responses not right"):
        names("right", highest=0.0)
    with pytest.raises(StoreError, match="cft annotate responses=rollouts"):
        chosen(TABLE[:1], Choice("right", PassRates(0.2), -1), rollouts=False, place="here")


def module(store: AnnotationStore, mask: Mask, **options: object) -> AnnotatedDataModule:
    tokenizer = store.manifest()["fingerprint"]["tokenizer"]
    settings = {
        "annotation": "drawn",
        "dir": "",
        "batch_size": 4,
        "micro_batch_assignment": "in_order",
        "max_rows": -1,
        "part": 0,
        "parts": 1,
        "validation_fraction": 0.5,
        "max_tokens": 512,
        "shuffle_responses": False,
        **options,
    }
    request = RowsRequest(mask, Critical(), {}, str(store.folder.parent), tokenizer, 0, frozenset())
    return annotated_rows(request, **settings)  # type: ignore[arg-type]


def test_responses_to_one_problem_are_all_held_out_or_none(
    store: AnnotationStore, rows: list[AnnotatedResponse]
) -> None:
    data = module(store, All(), responses="all")
    problem = {row.response_id: row.problem_id for row in rows}
    trained, held_out = ([problem[one.row_id] for one in part] for part in (data.train_rows, data.validation_rows))
    assert not {*trained} & {*held_out}
    assert {*held_out} == {name for name in problem.values() if in_validation(name, fraction=0.5)}
    assert max(Counter(trained).values()) == max(Counter(held_out).values()) == 2
    (first, *_) = data.train_rows
    assert (first.weight > 0).sum() == (first.token_group == 2).sum() > 0  # all of the response; of none is it known


@pytest.mark.parametrize("mask", [Critical(), RandomLike(like=Critical(), seed=0)], ids=["critical", "its control"])
def test_a_mask_that_needs_counterfactuals_is_refused_by_name(store: AnnotationStore, mask: Mask) -> None:
    with pytest.raises(MaskError, match=rf"mask: {type(mask).__name__} reads .*mask=all.*responses=solve"):
        module(store, mask)
