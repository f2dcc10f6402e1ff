"""Rows that someone brings: what may carry loss, masks within that, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cft.data.batches import UNKNOWN_GROUP
from cft.data.held_out import HeldOut
from cft.data.module import NothingToTrain, RowsDataModule, RowsRequest
from cft.data.problem_rows import BadRow, ProblemError, normalized
from cft.data.row_contents import RowFields
from cft.data.row_shapes import RowReader
from cft.data.rows import given_rows
from cft.masks import AfterThinking, All, Complement, Critical, Mask, Numeric, Prefix, RandomLike, TfIdf, Thinking
from cft.masks.base import mask_weights
from cft.prompts.chat import Chat, Plain
from cft.prompts.conversation import WhichTurns
from cft.types import StepCounts
from tests.chat_templates import CHATML, byte_tokenizer
from tests.given_rows import SHAPES, problems, rows, write

CHAT = Chat(system="", template="{question}")
OPTIONS: dict[str, Any] = {
    **dict.fromkeys(
        ("validation_path", "validation_split", "config", "revision", "id_field", "answer_field", "dir"), ""
    ),
    "split": "train",
    "shape": "auto",
    "prompt_field": "prompt",
    "completion_field": "completion",
    "messages_field": "messages",
    "roles": ["assistant"],
    "turns": "all",
    "max_bad_rows": 0.0,
    "batch_size": 4,
    "micro_batch_assignment": "in_order",
    "max_rows": -1,
    "validation_fraction": 0.0,
    "max_tokens": 512,
    "too_long": "skip",
}


@pytest.fixture(scope="module")
def arith(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(request.getfixturevalue("tiny_arith_path"))


def given(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mask: Mask | None = None,
    exclude: frozenset[str] = frozenset(),
    **options: Any,
) -> RowsDataModule:
    request = RowsRequest(mask or All(), Critical(), {}, "nowhere", "t", 0, exclude, tokenizer=tokenizer, prompt=CHAT)
    return given_rows(request, path=str(path), **{**OPTIONS, **options})


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_tokens_of_prompt_and_response(
    shape: str, arith: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Beside ids that are put together here: the prompt's, the solution's, and the end."""
    path = write(tmp_path / "rows.jsonl", rows(shape, tokenizer=arith))
    data = given(path, arith, answer_field="answer")
    assert len(data.train_rows) == 40
    assert data.facts()[f"rows_of_shape_{shape}"] == 40

    def asked(text: str) -> list[int]:
        return CHAT.ids(arith, text)

    def said(text: str) -> list[int]:
        return [*arith(text, add_special_tokens=False)["input_ids"], arith.eos_token_id]

    first, second = problems(80)[0], problems(80)[40]
    row, prompt, response = data.train_rows[0], asked(first.question), said(first.solution)
    if shape == "messages":
        tail = [*asked(second.question)[1:], *said(second.solution)]
        assert row.ids.tolist() == [*prompt, *response, *tail]
        size = len(tail) - len(said(second.solution))
        expected = [0.0] * len(prompt) + [0.5] * len(response) + [0.0] * size + [1.0] * (len(tail) - size)
    else:
        assert row.ids.tolist() == [*prompt, *response]
        steps = len(said(first.solution.rpartition("\n####")[0])) - 1
        weights = {
            "text": [1.0] * len(response),
            "tokens": [1.0 + (i % 4) / 4 for i in range(len(response))],
            "spans": [0.25] * steps + [1.0] * (len(response) - steps),
        }
        expected = [0.0] * len(prompt) + weights[shape]
    assert row.weight.tolist() == expected
    assert (row.token_group == np.where(np.array(expected) > 0, UNKNOWN_GROUP, -1)).all()


def test_given_weights_are_the_weights_of_a_cross_entropy(
    arith: PreTrainedTokenizerBase, tmp_path: Path, tiny_arith_path: Path
) -> None:
    """sum of w * -log p over the number of tokens with w, by hand, in float64; negative ones too where they are asked for."""
    from transformers import AutoModelForCausalLM

    from cft.config.build import build
    from cft.data.batches import collate
    from cft.training.selective_lm import SelectiveLM
    from tests.precision import float64
    from tests.stage import composed

    brought = rows("tokens", tokenizer=arith, count=4)
    brought[1]["weights"][-3] = -0.5
    data = given(write(tmp_path / "rows.jsonl", brought), arith)
    assert data.train_rows[1].weight[-3] == -0.5
    model = AutoModelForCausalLM.from_pretrained(tiny_arith_path).double().eval()
    cfg = composed("train", "mask=all", "loss.negative_weights=true")
    lm = SelectiveLM(model, build(cfg.loss)(build(cfg.weighting)))
    batch = collate(data.train_rows, step_counts=sum((row.counts() for row in data.train_rows), StepCounts()))
    with float64(), torch.no_grad():
        (term,) = lm(batch)
        ours = float(term.mean(batch.step_counts))
        total, count = 0.0, 0
        for row in brought:
            logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for t, weight in enumerate(row["weights"]):
                total -= weight * float(logits[t - 1, row["input_ids"][t]]) if weight else 0.0
                count += weight != 0
    assert ours == pytest.approx(total / count, rel=1e-10)


@pytest.mark.parametrize(
    "mask", [Numeric(), Prefix(num_tokens=3), TfIdf(fraction=0.2), RandomLike(like=Numeric(), seed=0)], ids=type
)
def test_a_mask_picks_among_the_tokens_that_may_carry_loss(
    mask: Mask, arith: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """And it and its complement share these out; what it is a fraction of is the last turn."""
    path = write(tmp_path / "rows.jsonl", rows("messages", tokenizer=arith, count=6))
    whole = given(path, arith, turns="last").train_rows
    picked = given(path, arith, mask=mask, turns="last").train_rows
    rest = given(path, arith, mask=Complement(of=mask), turns="last").train_rows
    for all_of, one, other in zip(whole, picked, rest, strict=True):
        assert (one.weight + other.weight).tolist() == all_of.weight.tolist()
        assert 0 < one.weight.sum() < all_of.weight.sum()
        if isinstance(mask, TfIdf):
            assert one.weight.sum() == np.ceil(0.2 * all_of.weight.sum() - 1e-9)


def test_turns_roles_and_weights_of_messages_say_what_may_carry_loss() -> None:
    tokenizer = byte_tokenizer(CHATML)
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "no", "weight": 0},
    ]

    def learnt(*, roles: tuple[str, ...] = ("assistant",), turns: WhichTurns = "all") -> str:
        reader = RowReader(CHAT, tokenizer, RowFields(roles=roles), turns)
        row = reader({"messages": messages}, place="here")
        return row.response().response

    assert learnt() == "4"
    assert learnt(roles=("user",)) == "2 + 2?1?"
    assert learnt(roles=("user",), turns="last") == "1?"
    with pytest.raises(BadRow, match="no loss"):
        learnt(turns="last")


def test_thinking_and_what_follows_it_share_out_every_turn() -> None:
    tokenizer = byte_tokenizer(CHATML)
    said = ["<think>one</think>\nYes", "No", "two</think>So</think>", "<think>a</think>b<think>c"]
    messages = [m for text in said for m in ({"role": "user", "content": "?"}, {"role": "assistant", "content": text})]
    response = RowReader(CHAT, tokenizer)({"messages": messages}, place="here").response()
    thought, rest = (mask_weights(mask, response) for mask in (Thinking(), AfterThinking()))
    assert (thought + rest == 1).all()

    def text(weights: Any) -> str:
        return str(tokenizer.decode(response.response_ids[weights > 0]))

    assert text(thought) == "<think>one</think>two</think><think>a</think><think>c"
    assert text(rest) == "\nYes<|im_end|>No<|im_end|>So</think><|im_end|>b<|im_end|>"


def test_weighted_spans_of_a_plain_text() -> None:
    tokenizer = byte_tokenizer()
    reader = RowReader(Plain(template="{question}"), tokenizer)
    by_segment = {
        "segments": [{"text": "2+2=", "label": False}, {"text": "44", "weight": 2.0}, {"text": "!", "label": True}]
    }
    by_span = {
        "text": "2+2=44!",
        "spans": [{"start": 4, "end": 6, "weight": 2.0}, {"start": 6, "end": 7, "label": True}],
    }
    for value in (by_segment, by_span):
        row = reader(value, place="here")
        assert row.weight[row.allowed].tolist() == [2.0, 2.0, 1.0, 1.0]  # the end comes after what is learnt last
        assert tokenizer.decode(row.ids[row.allowed]) == "44!<|im_end|>"
    by_segment["segments"].append({"text": "?", "label": False})
    assert reader(by_segment, place="here").finish == "length"


def test_held_out_rows_with_a_training_prompt_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"prompt": prompt, "completion": said} for prompt, said in (("2?", "4"), ("2?", "5"), ("3?", "4"))]
    path, other = write(tmp_path / "a.jsonl", pairs[:1]), write(tmp_path / "b.jsonl", pairs[1:])
    given(path, byte_tokenizer(), validation_path=str(other))
    assert "Note: 1 validation rows have the prompt of a training row" in " ".join(capsys.readouterr().out.split())


def test_bad_rows_are_named_and_counted_within_a_limit(arith: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    brought = [*rows("text", tokenizer=arith, count=9), {"prompt": "Anna has 2"}]
    path = write(tmp_path / "rows.jsonl", brought)
    with pytest.raises(ProblemError, match=r"1 of 10 rows cannot be used\. First: rows\.jsonl:10: no known shape"):
        given(path, arith)
    with pytest.warns(UserWarning, match=r"rows\.jsonl:10: no known shape"):
        data = given(path, arith, max_bad_rows=0.1)
    assert (len(data.train_rows), data.facts()["bad_rows"]) == (9, 1)


def test_long_rows_are_skipped_or_cut_and_counted(arith: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows("text", tokenizer=arith))
    lengths = [len(row.ids) for row in given(path, arith).train_rows]
    limit = sorted(lengths)[20]
    skipped = given(path, arith, max_tokens=limit)
    assert len(skipped.train_rows) + skipped.facts()["rows_too_long"] == 40
    assert max(len(row.ids) for row in skipped.train_rows) == limit
    cut = given(path, arith, max_tokens=limit, too_long="cut")
    assert [len(row.ids) for row in cut.train_rows] == [min(length, limit) for length in lengths]
    assert cut.facts()["rows_cut"] == sum(length > limit for length in lengths)
    with pytest.raises(
        NothingToTrain, match="of 40 rows, 0 have questions of the benchmark and 40 are longer"
    ):  # all of their loss is behind it
        given(path, arith, max_tokens=8, too_long="cut")


def test_questions_of_the_benchmark_are_dropped_wherever_they_stand(
    arith: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    held_out = frozenset({normalized(problems()[3].question)})
    for shape in SHAPES:
        path = write(tmp_path / f"{shape}.jsonl", rows(shape, tokenizer=arith))
        data = given(path, arith, exclude=held_out)
        assert (len(data.train_rows), data.leaked) == (39, 1)
    whole = [f"{problem.question}\n{problem.solution}" for problem in problems()]
    texts = [{"text": text, "spans": [{"start": 0, "end": len(text), "weight": 1}]} for text in whole]
    ids = [[arith.bos_token_id, *arith(text, add_special_tokens=False)["input_ids"]] for text in whole]
    for name, brought in (("texts", texts), ("ids", [{"input_ids": one, "labels": one} for one in ids])):
        data = given(write(tmp_path / f"{name}.jsonl", brought), arith, exclude=held_out)
        assert (len(data.train_rows), data.leaked) == (39, 1), name
    inside = HeldOut(held_out)
    assert inside.is_in([f"Question:\n{problems()[3].question}\nAnswer:"])
    assert not inside.is_in([problems()[4].question])
    assert not HeldOut({"what is 2?"}).is_in(["Anna says what is 2? and more"])


def test_rows_are_held_out_by_what_they_answer(arith: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    brought = rows("text", tokenizer=arith, count=20)
    again = [{**row, "completion": "2 + 2 = 4"} for row in brought]
    data = given(write(tmp_path / "rows.jsonl", [*brought, *again, brought[0]]), arith, validation_fraction=0.3)
    assert len(data.train_rows) + len(data.validation_rows) == 41
    prompts = [
        {tuple(row.ids[row.token_group < 0]) for row in part} for part in (data.train_rows, data.validation_rows)
    ]
    assert prompts[0]
    assert prompts[1]
    assert not prompts[0] & prompts[1]
    assert data.facts()["repeated_rows"] == 1
    other = given(tmp_path / "rows.jsonl", arith, validation_path=str(tmp_path / "rows.jsonl"))
    assert len(other.train_rows) == len(other.validation_rows) == 41


def test_parquet_gives_what_json_lines_give(arith: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shape in SHAPES:
        brought = rows(shape, tokenizer=arith, count=5)
        path = write(tmp_path / "rows.jsonl", brought)
        pq.write_table(pa.Table.from_pylist(brought), tmp_path / "rows.parquet")
        a, b = given(path, arith), given(tmp_path / "rows.parquet", arith)
        assert [row.row_id for row in a.train_rows] == [row.row_id for row in b.train_rows]
        assert a.rows_sha256 == b.rows_sha256


def test_the_first_rows_differ_in_nothing_but_their_number(arith: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows("spans", tokenizer=arith))
    first, every = given(path, arith, max_rows=3).train_rows, given(path, arith).train_rows
    for a, b in zip(first, every, strict=False):
        assert all(
            np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a) if f.name != "scores"
        )
