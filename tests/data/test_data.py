"""Rows as training sees them: masks and columns at their tokens, other problems' prompts, and facts that tell runs apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.annotation.store import SHIPPED, AnnotationStore, StoreError
from cft.data.annotated import AnnotatedDataModule, annotated_rows, in_validation, to_token_row
from cft.data.columns import GroupColumn
from cft.data.module import RowsRequest
from cft.data.pairing import other_prompts
from cft.errors import BadValue
from cft.masks import All, Critical, Mask, MaskError, Numeric, RowMask, Weights
from cft.masks.ranked import TokenCleaning, TopScore
from cft.scores.column import GROUP, Column, StoredColumn
from cft.scores.store import write_score
from cft.types import AnnotatedResponse
from tests.fakes import row
from tests.stage import annotate


class Position(RowMask):
    """Weight = place in the response, from 1: shows every shift."""

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return np.arange(1, len(row.response_ids) + 1, dtype=np.float32)


def test_weights_probe_and_columns_stand_at_their_tokens() -> None:
    one = dataclasses.replace(
        row([7, 8, 9], prompt_ids=[1, 2], outcomes=[[0, 0], [1, -1], [0, 0]]),
        scores={"x": np.array([0.1, 0.2, 0.3], np.float32)},
    )
    columns: dict[str, Column] = {"x": StoredColumn("x"), GROUP: GroupColumn(Critical())}
    found = to_token_row(one, mask=Position(), group_mask=Critical(), columns=columns)
    assert found.ids.tolist() == [1, 2, 7, 8, 9]
    assert found.weight.tolist() == [0, 0, 1, 2, 3]
    assert found.token_group.tolist() == [-1, -1, 1, 0, 1]
    np.testing.assert_array_equal(found.scores["x"], np.array([0, 0, 0.1, 0.2, 0.3], np.float32))
    assert found.scores[GROUP].tolist() == [0, 0, 1, 0, 1]


# ---- shuffled pairs


@st.composite
def many_rows(draw: st.DrawFn) -> list[AnnotatedResponse]:
    """Problems with one to three responses each, no problem having more than half of the rows."""
    counts = draw(st.lists(st.integers(1, 3), min_size=6, max_size=12))
    made = []
    for problem, count in enumerate(counts):
        for k in range(count):
            one = row([50 + problem, k, 2], prompt_ids=[problem, 100], number=10 * problem + k)
            made.append(dataclasses.replace(one, problem_id=f"q{problem}", problem=f"question {problem}"))
    return draw(st.permutations(made))


def everything(row: AnnotatedResponse) -> bool:
    return False


@given(rows=many_rows(), seed=st.integers(0, 9))
def test_no_response_keeps_its_problem_and_every_prompt_is_used_once(rows: list[AnnotatedResponse], seed: int) -> None:
    shuffled = other_prompts(rows, seed=seed, part=everything)
    assert [one.response_id for one in shuffled] == [one.response_id for one in rows]
    for one, before in zip(shuffled, rows, strict=True):
        assert one.prompt_ids[0] != before.prompt_ids[0]
        assert one.problem == f"question {one.prompt_ids[0]}"
        np.testing.assert_array_equal(one.response_ids, before.response_ids)
    assert sorted(r.prompt_ids[0] for r in shuffled) == sorted(r.prompt_ids[0] for r in rows)


@given(rows=many_rows(), seed=st.integers(0, 9))
def test_pairs_depend_on_seed_and_ids_alone(rows: list[AnnotatedResponse], seed: int) -> None:
    def pairs(order: list[AnnotatedResponse]) -> dict[str, int]:
        return {one.response_id: int(one.prompt_ids[0]) for one in other_prompts(order, seed=seed, part=everything)}

    assert pairs(rows) == pairs(rows[::-1])


def test_another_seed_draws_other_pairs_and_parts_stay_apart() -> None:
    rows = [row([5, 2], prompt_ids=[n], number=n) for n in range(40)]
    of = [[int(r.prompt_ids[0]) for r in other_prompts(rows, seed=s, part=everything)] for s in (0, 1)]
    assert of[0] != of[1]
    parted = other_prompts(rows, seed=0, part=lambda one: one.response_id in {"r1", "r2", "r3"})
    assert {int(r.prompt_ids[0]) for r in parted[1:4]} == {1, 2, 3}


def test_a_problem_with_most_of_the_rows_is_refused() -> None:
    rows = [dataclasses.replace(row([5, 2], number=n), problem_id="same") for n in range(3)] + [row([5], number=7)]
    with pytest.raises(BadValue, match="one problem has 3 of 4 training rows"):
        other_prompts(rows, seed=0, part=everything)


# ---- the data module


def annotation(folder: Path, *, rows: list[AnnotatedResponse]) -> None:
    made = AnnotationStore(folder)
    with made.writing(fingerprint={"tokenizer": "t"}, info={"model_name": "m"}):
        made.commit(0, rows=rows, problems=[], facts={})


def module(
    tmp_path: Path,
    *,
    mask: Mask | None = None,
    columns: dict[str, Column] | None = None,
    seed: int = 0,
    exclude: frozenset[str] = frozenset(),
    **options: Any,
) -> AnnotatedDataModule:
    settings: dict[str, Any] = {
        "annotation": "mine",
        "dir": "",
        "batch_size": 4,
        "micro_batch_assignment": "in_order",
        "max_rows": -1,
        "part": 0,
        "parts": 1,
        "validation_fraction": 0.2,
        "max_tokens": 64,
        "shuffle_responses": False,
        **options,
    }
    return annotated_rows(
        RowsRequest(mask or All(), Critical(), columns or {}, str(tmp_path), "t", seed, exclude), **settings
    )


@pytest.fixture
def mine(tmp_path: Path) -> list[AnnotatedResponse]:
    rows = [row([50 + n, 9, 2], prompt_ids=[n, 1], number=n) for n in range(30)]
    annotation(tmp_path / "mine", rows=rows)
    return rows


def test_problems_of_the_benchmark_are_dropped_however_they_are_spelt(
    tmp_path: Path, mine: list[AnnotatedResponse]
) -> None:
    problems = [dataclasses.replace(one, problem=f"  Question\n{n} ") for n, one in enumerate(mine)]
    annotation(tmp_path / "spelt", rows=problems)
    data = module(tmp_path, annotation="spelt", exclude=frozenset({"question 3", "question 7"}))
    kept = {one.row_id for one in (*data.train_rows, *data.validation_rows)}
    assert kept == {f"r{n}" for n in range(30)} - {"r3", "r7"}
    assert data.facts()["rows_dropped_as_benchmark_problems"] == 2


def test_parts_of_an_annotation_share_no_problem_and_lack_none(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    parts = [
        {one.row_id for one in (*data.train_rows, *data.validation_rows)}
        for data in (module(tmp_path, part=part, parts=3) for part in range(3))
    ]
    assert sorted(row_id for part in parts for row_id in part) == sorted(f"r{n}" for n in range(30))
    assert all(len(part) > 3 for part in parts)


def test_shuffled_training_pairs_rows_within_their_split(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    plain, shuffled = module(tmp_path), module(tmp_path, shuffle_responses=True)
    for before, after in (
        (plain.train_rows, shuffled.train_rows),
        (plain.validation_rows, shuffled.validation_rows),
    ):
        assert len(before) > 1
        assert [one.ids[2:].tolist() for one in before] == [one.ids[2:].tolist() for one in after]
        assert all(one.ids[0] != other.ids[0] for one, other in zip(before, after, strict=True))
        assert sorted(one.ids[0] for one in before) == sorted(one.ids[0] for one in after)
    assert {int(one.ids[0]) for one in shuffled.validation_rows} == {
        n for n in range(30) if in_validation(f"p{n}", fraction=0.2)
    }
    assert plain.facts()["rows_sha256"] != shuffled.facts()["rows_sha256"]
    assert module(tmp_path, shuffle_responses=True, seed=1).facts()["rows_sha256"] != shuffled.facts()["rows_sha256"]


def test_shuffled_rows_are_measured_with_their_new_prompt(tmp_path: Path) -> None:
    rows = [row([5] * n, prompt_ids=[1] * (20 - n), number=n) for n in range(1, 20)]  # 20 tokens each
    annotation(tmp_path / "mine", rows=rows)
    kept = module(tmp_path, shuffle_responses=True, max_tokens=20, validation_fraction=0.0).train_rows
    assert 0 < len(kept) < 19
    assert max(len(one.ids) for one in kept) <= 20


def test_shuffled_pairs_refuse_columns_of_the_true_pairs(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    with pytest.raises(StoreError, match="reference_logprob would be those of the response after its own prompt"):
        module(tmp_path, columns={"reference_logprob": StoredColumn("logprob")}, shuffle_responses=True)


def store_score(tmp_path: Path, rows: list[AnnotatedResponse], *, seed: int) -> str:
    rng = np.random.default_rng(seed)
    values = {one.response_id: rng.normal(size=len(one.response_ids)).astype(np.float32) for one in rows}
    info = {"command": "cft score annotation=mine"}
    folder = tmp_path / "mine" / "scores"
    return write_score(folder, name="cleaner", method={"seed": seed}, rows=rows, values=values, info=info)[
        "fingerprint_sha256"
    ]


def test_runs_on_other_scores_of_the_same_name_are_told_apart(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    made = []
    for seed in (0, 1, 0):
        fingerprint = store_score(tmp_path, mine, seed=seed)
        data = module(tmp_path, mask=TopScore(score="cleaner", fraction=0.5))
        assert data.facts()["scores"] == {"cleaner": fingerprint}
        made.append((data.settings(), data.facts()["rows_sha256"], [one.weight.tolist() for one in data.train_rows]))
    assert made[0] == made[2]
    assert made[0][0] != made[1][0]
    assert made[0][1] == made[1][1]  # the rows are the same
    assert made[0][2] != made[1][2]


def test_statistics_are_of_the_training_rows_alone(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    store_score(tmp_path, mine, seed=0)
    mask = TokenCleaning(base="logprob", reference="cleaner", fraction=0.5)
    data = module(tmp_path, mask=mask)
    eligible = np.concatenate([one.weight[2:] for one in data.train_rows])
    assert eligible.sum() == np.ceil(len(eligible) / 2)
    assert data.facts()["learnt"] == {"mask": {"threshold_nats": mask.threshold}}
    assert module(tmp_path).facts()["learnt"] == {}
    assert module(tmp_path).settings() == {}


def test_a_missing_score_names_the_command(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    with pytest.raises(StoreError, match=r"cft score annotation=mine score=reference_logprob name=cleaner"):
        module(tmp_path, mask=TopScore(score="cleaner", fraction=0.5))


def test_a_batch_without_rows_has_the_columns_of_the_others(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    """The one empty batch of a validation without rows; the objective reads its columns as in every other batch."""
    columns: dict[str, Column] = {"reference_logprob": StoredColumn("logprob"), GROUP: GroupColumn(Half(0))}
    data = module(tmp_path, columns=columns, validation_fraction=0.0)
    assert data.validation_rows == []
    (empty,) = data.val_dataloader()
    assert empty.row_ids == ()
    assert empty.scores.keys() == next(iter(data.train_dataloader())).scores.keys() == columns.keys()
    assert all(column_BT.shape == empty.weight_BT.shape and not column_BT.any() for column_BT in empty.scores.values())


# ---- groups that are told apart


class Half(RowMask):
    """Every second token, from `start` on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return (np.arange(len(row.response_ids)) % 2 == self.start).astype(np.float32)


@pytest.mark.parametrize(
    ("mask", "grouping", "found"),
    [
        (Half(0), Half(0), r"all \d+ tokens with loss are in one group \(group 1"),
        (Half(1), Half(0), r"all \d+ tokens with loss are in one group \(group 0"),
        (All(), Critical(), r"all \d+ tokens with loss are in one group \(group 1"),  # every alternative is wrong here
        (All(), Numeric(), r"all \d+ tokens with loss are in one group \(group 0"),
    ],
)
def test_a_loss_over_groups_refuses_one_group_alone(
    tmp_path: Path, mine: list[AnnotatedResponse], mask: Mask, grouping: Mask, found: str
) -> None:
    with pytest.raises(BadValue, match=found + r".*set mask=all, or another groups=") as error:
        module(tmp_path, mask=mask, columns={GROUP: GroupColumn(grouping)})
    tokens = sum(int((mask(one) > 0).sum()) for one in mine if not in_validation(one.problem_id, fraction=0.2))
    assert f"all {tokens} tokens" in str(error.value)


def test_two_groups_among_the_tokens_with_loss_are_enough(tmp_path: Path, mine: list[AnnotatedResponse]) -> None:
    data = module(tmp_path, columns={GROUP: GroupColumn(Half(0))})
    assert {float(g) for one in data.train_rows for g in one.scores[GROUP][one.weight > 0]} == {0.0, 1.0}
    with pytest.raises(BadValue, match="one group"):  # what the other tokens are in does not matter
        module(tmp_path, mask=Half(0), columns={GROUP: GroupColumn(Half(0))})


# ---- masks that need more than the shipped annotation holds


def shipped(mask: Mask, **options: Any) -> AnnotatedDataModule:
    tokenizer = AnnotationStore(SHIPPED / "tiny_arith").manifest()["fingerprint"]["tokenizer"]
    settings: dict[str, Any] = {
        "annotation": "tiny_arith",
        "dir": "",
        "batch_size": 4,
        "micro_batch_assignment": "in_order",
        "max_rows": 20,
        "validation_fraction": 0.0,
        "max_tokens": 512,
        "part": 0,
        "parts": 1,
        "shuffle_responses": False,
        **options,
    }
    return annotated_rows(RowsRequest(mask, All(), {}, "nowhere", tokenizer, 0, frozenset()), **settings)


@pytest.mark.parametrize(
    ("mask", "make"),
    [
        (Critical(rule="fraction"), "num_alternatives=2 short_circuit=false limit=3500"),
        (Critical(rule="any"), "num_alternatives=2 short_circuit=false limit=3500"),
        (Critical(num_alternatives=3), "num_alternatives=3 limit=3500"),
    ],
)
def test_the_shipped_annotation_is_not_to_be_completed_but_made_anew(mask: Mask, make: str) -> None:
    with pytest.raises(MaskError, match=f"cft annotate annotation=tiny_arith_complete {make} ") as error:
        shipped(mask)
    assert "cft train data.annotation=tiny_arith_complete" in str(error.value)
    assert "complete=true" not in str(error.value)


@pytest.mark.slow
def test_the_command_makes_what_the_mask_asks_for(tmp_path: Path) -> None:
    """The command of the message, for fewer problems."""
    with pytest.raises(MaskError) as error:
        shipped(Critical(rule="fraction"))
    command = str(error.value).partition("cft annotate ")[2].partition(" (fewer")[0].split()
    few = [word for word in command if not word.startswith("limit=")]
    annotate(*few, "limit=6", "data.max_steps=2", "replay_fraction=0.0", f"annotations_dir={tmp_path}")
    store = AnnotationStore(tmp_path / "tiny_arith_complete")
    weights = [Critical(rule="fraction")(one) for one in store.rows()]
    assert {float(w) for one in weights for w in one} <= {0.0, 0.5, 1.0}
    assert len(weights) > 0


def test_an_annotation_of_ones_own_is_completed(tmp_path: Path) -> None:
    annotation(tmp_path / "mine", rows=[row([5, 6], outcomes=[[1, -1], [0, 0]])])
    with pytest.raises(MaskError, match=r"cft annotate annotation=<name> complete=true"):
        module(tmp_path, mask=Critical(rule="fraction"), validation_fraction=0.0)
