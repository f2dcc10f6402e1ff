"""Groups of rows: what is drawn of them, what is dropped, and preference rows that people bring."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cft.data.groups import Group, drawn, groups_of, whole_groups
from cft.data.module import NothingToTrain, RowsRequest
from cft.data.preference_rows import preference_rows
from cft.data.problem_rows import BadRow, ProblemError
from cft.data.row_shapes import RowReader
from cft.data.rows import given_rows
from cft.masks import All
from cft.prompts.chat import Chat
from tests.given_rows import write
from tests.group_rows import SIZES, batches_of, group_rows, sampler_of

CHAT = Chat(system="", template="{question}")
GROUP = Group("p", (3, 5), (0, 1, 2, 7, 9))


def test_every_row_of_a_group_comes_before_any_comes_again() -> None:
    seen = [drawn(GROUP, rejected=2, seed=0, epoch=epoch) for epoch in range(5)]
    assert all(row[0] in GROUP.chosen and len(set(row[1:])) == 2 for row in seen)
    assert Counter(i for row in seen for i in row[1:]) == dict.fromkeys(GROUP.rejected, 2)
    assert {row[0] for row in seen[:2]} == set(GROUP.chosen)
    assert drawn(GROUP, rejected=9, seed=0, epoch=4)[1:] == GROUP.rejected  # all there are


def test_what_is_drawn_is_told_by_seed_epoch_and_name_alone() -> None:
    one = [drawn(GROUP, rejected=2, seed=0, epoch=e) for e in range(4)]
    assert one == [drawn(GROUP, rejected=2, seed=0, epoch=e) for e in range(4)]
    assert one != [drawn(GROUP, rejected=2, seed=1, epoch=e) for e in range(4)]
    assert one != [drawn(Group("q", GROUP.chosen, GROUP.rejected), rejected=2, seed=0, epoch=e) for e in range(4)]


@pytest.mark.parametrize("by", ["in_order", "by_length", "by_tokens"])
def test_a_group_is_never_split(by: str) -> None:
    """Over micro-batches and ranks: each has one chosen row and its rejected ones, and every group comes once an epoch."""
    rows = group_rows()
    for world, accumulate, batch in ((1, 1, 5), (1, 2, 2), (2, 2, 1), (3, 1, 1)):
        seen: list[str] = []
        for rank in range(world):
            dealt = sampler_of(rows, batch_size=batch, accumulate=accumulate, rank=rank, world=world, by=by, epoch=1)
            for number, made in enumerate(batches_of(rows, dealt)):
                groups, names = made.groups, [row_id.split("r")[0] for row_id in made.row_ids]
                assert groups is not None
                by_id = {row.row_id: row for row in rows}
                assert [by_id[made.row_ids[i]].chosen for i in groups.chosen_G] == [True] * len(groups.chosen_G)
                of_group = [names[i] for i in groups.chosen_G]
                for row, group in zip(groups.rejected_M.tolist(), groups.group_M.tolist(), strict=True):
                    assert not by_id[made.row_ids[row]].chosen
                    assert names[row] == of_group[group]
                of_a_step = world * accumulate * batch
                assert made.step_counts.problem == min(of_a_step, len(SIZES) - number // accumulate * of_a_step)
                seen += of_group
        assert sorted(seen) == [f"g{g}" for g in range(len(SIZES))]


def test_what_is_held_out_stays_the_same() -> None:
    rows = group_rows()
    first, later = (
        [b.row_ids for b in batches_of(rows, sampler_of(rows, shuffle=False, epoch=e), held_out=True)] for e in (0, 3)
    )
    assert first == later


def test_groups_of_one_kind_are_dropped_and_counted() -> None:
    rows = group_rows(((1, 2), (2, 0), (0, 3), (0, 1)))
    kept, dropped = whole_groups(rows)
    assert {row.group for row in kept} == {"g0"}
    assert dropped == {"problems_without_a_rejected_response": 1, "problems_without_a_chosen_response": 2}
    assert [(g.name, len(g.chosen), len(g.rejected)) for g in groups_of(kept)] == [("g0", 1, 2)]


# ---- rows that people bring


@pytest.fixture(scope="module")
def arith(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(request.getfixturevalue("tiny_arith_path"))


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


ASKED, RIGHT, WRONG, WORSE = "Tom has 3 pens", "3", "4", "5"
CONVERSATIONS = {
    "chosen": [message("user", ASKED), message("assistant", RIGHT)],
    "rejected": [message("user", ASKED), message("assistant", WRONG)],
}


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": ASKED, "chosen": RIGHT, "rejected": WRONG},
        {"prompt": ASKED, "chosen": RIGHT, "rejected": [WRONG, WORSE]},
        {
            "prompt": [message("user", ASKED)],
            "chosen": [message("assistant", RIGHT)],
            "rejected": [message("assistant", WRONG)],
        },
        {
            "prompt": [message("user", ASKED)],
            "chosen": [message("assistant", RIGHT)],
            "rejected": [[message("assistant", WRONG)], [message("assistant", WORSE)]],
        },
        CONVERSATIONS,
        {**CONVERSATIONS, "prompt": ASKED, "messages": CONVERSATIONS["chosen"]},  # as UltraFeedback has it
    ],
)
def test_every_form_of_a_preference_gives_the_same_tokens(
    value: dict[str, Any], arith: PreTrainedTokenizerBase
) -> None:
    rows = preference_rows(RowReader(CHAT, arith), value, place="f:1")
    said = [RIGHT, WRONG, WORSE][: len(rows)]
    assert len(rows) >= 2
    for row, text in zip(rows, said, strict=True):
        response = [*arith(text, add_special_tokens=False)["input_ids"], arith.eos_token_id]
        assert row.ids.tolist() == [*CHAT.ids(arith, ASKED), *response]
        assert row.ids[row.allowed].tolist() == response
    assert [row.chosen for row in rows] == [True] + [False] * (len(rows) - 1)
    assert {(row.group, row.problem_id) for row in rows} == {("f:1", rows[0].problem_id)}
    assert len({row.row_id for row in rows}) == len(rows)


def test_pairs_of_tokens_are_read_as_they_are(arith: PreTrainedTokenizerBase) -> None:
    """What cft export format=dpo writes of the counterfactual evidence: nothing is put behind a token."""
    value = {"prompt_ids": [5, 6, 7], "chosen_ids": [8], "rejected_ids": [9], "response_id": "r", "position": 3}
    chosen, rejected = preference_rows(RowReader(CHAT, arith), value, place="f:1")
    assert (chosen.ids.tolist(), rejected.ids.tolist()) == ([5, 6, 7, 8], [5, 6, 7, 9])
    assert np.flatnonzero(chosen.allowed).tolist() == np.flatnonzero(rejected.allowed).tolist() == [3]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"chosen": RIGHT, "rejected": WRONG}, "no prompt"),
        ({"prompt": ASKED, "chosen": RIGHT}, "no preference: expected prompt, chosen and rejected"),
        ({"prompt": ASKED, "chosen": RIGHT, "rejected": []}, "rejected is empty"),
        ({"prompt": [message("user", ASKED)], "chosen": RIGHT, "rejected": WRONG}, "several kinds"),
        (
            {"chosen": CONVERSATIONS["chosen"], "rejected": [message("user", "no"), message("assistant", "x")]},
            "do not start with the same message",
        ),
        ({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": []}, "is empty"),
    ],
)
def test_a_row_that_is_no_preference_is_named(
    value: dict[str, Any], reason: str, arith: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(BadRow, match=reason):
        preference_rows(RowReader(CHAT, arith), value, place="f:1")


def read(path: Path, tokenizer: PreTrainedTokenizerBase, *, rejected: int, **options: Any) -> Any:
    request = RowsRequest(All(), All(), {}, "nowhere", "t", 0, frozenset(), rejected, tokenizer=tokenizer, prompt=CHAT)
    empty = ("validation_path", "validation_split", "config", "revision", "id_field", "answer_field", "dir")
    settings: dict[str, Any] = {
        **dict.fromkeys(empty, ""),
        "split": "train",
        "shape": "auto",
        "prompt_field": "prompt",
        "completion_field": "completion",
        "messages_field": "messages",
        "roles": ["assistant"],
        "turns": "all",
        "max_bad_rows": 0.0,
        "batch_size": 4,
        "micro_batch_assignment": "by_tokens",
        "max_rows": -1,
        "validation_fraction": 0.3,
        "max_tokens": 64,
        "too_long": "skip",
    }
    return given_rows(request, path=str(path), **{**settings, **options})


def test_a_file_of_preferences_is_held_out_by_prompt(arith: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Two pairs of one prompt are two groups, on the same side of the split."""
    values = [
        {"prompt": f"Tom has {n} pens", "chosen": str(n), "rejected": str(n + 1 + twice)}
        for n in range(20)
        for twice in range(2)
    ]
    data = read(write(tmp_path / "pairs.jsonl", values), arith, rejected=1)
    facts = data.facts()
    assert facts["rows_of_shape_preference"] == 40
    assert facts["train_groups"] + facts["validation_groups"] == 40
    assert facts["validation_groups"] % 2 == 0
    assert 0 < facts["validation_groups"] < 40
    train, held_out = ({row.ids[:-2].tobytes() for row in rows} for rows in (data.train_rows, data.validation_rows))
    assert not train & held_out


def test_preferences_without_a_loss_that_compares_them_are_refused(
    arith: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"prompt": ASKED, "chosen": RIGHT, "rejected": WRONG}])
    with pytest.raises(ProblemError, match="for a loss that compares them"):
        read(path, arith, rejected=0)


def test_rows_that_leave_nothing_to_compare_are_refused(arith: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The rejected response is too long, so that the group has one kind."""
    value = {"prompt": ASKED, "chosen": RIGHT, "rejected": "4 " * 80}
    path = write(tmp_path / "pairs.jsonl", [json.loads(json.dumps(value))])
    with pytest.raises(NothingToTrain, match="1 problems without a rejected response"):
        read(path, arith, rejected=1, validation_fraction=0.0)
