"""Each format holds the tokens and weights that it was given, in the schema that its library documents, or refuses them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.formats import TRL, Axolotl, Labels, LlamaFactory, MsSwift, Preferences, ShareGPT, Tinker, Verl
from cft.formats.base import Example, Format, FormatError, Source, write_table
from cft.masks import Critical, Turning
from cft.types import AnnotatedResponse, Outcome


@pytest.fixture(scope="module")
def stored() -> list[AnnotatedResponse]:
    return AnnotationStore(SHIPPED / "tiny_arith").rows()[:12]


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(AnnotationStore(SHIPPED / "tiny_arith").manifest())


def example(row: AnnotatedResponse, weights: Any) -> Example:
    ids = np.concatenate([row.prompt_ids, row.response_ids]).astype(np.int64)
    return Example(row, ids, np.concatenate([np.zeros(len(row.prompt_ids)), weights]).astype(np.float32))


@pytest.fixture(scope="module")
def critical(stored: list[AnnotatedResponse]) -> list[Example]:
    mask = Critical()
    return [example(row, mask(row)) for row in stored]


@pytest.fixture(scope="module")
def weighted(stored: list[AnnotatedResponse]) -> list[Example]:
    """Weights of a third, which no decimal rounds to, the end token's among them."""
    made = []
    for row in stored:
        weights = np.where(np.arange(len(row.response_ids)) % 3 == 1, 1 / 3, 0)
        weights[-1] = 1 / 3
        made.append(example(row, weights))
    return made


def written(made: Format, examples: list[Example], source: Source, folder: Path) -> Path:
    path = folder / made.place("train")
    made.require(examples, source)
    write_table(path, made.table(examples, source, split="train"), suffix=made.suffix)
    for name, text in made.beside(["train"], source).items():
        (folder / name).write_text(text)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels_of(one: Example) -> list[int]:
    return [int(token) if weight > 0 else -100 for token, weight in zip(one.ids, one.weight, strict=True)]


@pytest.mark.parametrize(
    "made", [TRL(), Axolotl(), LlamaFactory(), ShareGPT(), Preferences(alternatives="all", text=False)]
)
def test_what_has_no_weights_of_tokens_refuses_them_and_names_what_has(
    made: Format, weighted: list[Example], source: Source
) -> None:
    with pytest.raises(FormatError, match=r"12 of 12 rows have weights .* 0\.333333.*format=labels or format=tinker"):
        made.require(weighted, source)


def test_labels_keep_weights_to_the_last_bit(weighted: list[Example], source: Source, tmp_path: Path) -> None:
    rows = pq.read_table(written(Labels(), weighted, source, tmp_path)).to_pylist()
    for row, one in zip(rows, weighted, strict=True):
        assert (row["input_ids"], row["labels"]) == (one.ids.tolist(), labels_of(one))
        assert row["completion_mask"] == [0] * len(one.row.prompt_ids) + [1] * len(one.row.response_ids)
        assert np.array_equal(np.float32(row["weights"]), one.weight)


def test_axolotl_finds_exactly_its_three_columns(critical: list[Example], source: Source, tmp_path: Path) -> None:
    rows = lines(written(Axolotl(), critical, source, tmp_path))
    for row, one in zip(rows, critical, strict=True):
        assert row == {
            "input_ids": one.ids.tolist(),
            "attention_mask": [1] * len(one.ids),
            "labels": labels_of(one),
        }


def test_llama_factory_loads_the_folder_as_its_tokenized_path(
    critical: list[Example], source: Source, tmp_path: Path
) -> None:
    """By `load_from_disk` to a DatasetDict with "train", as its loader does; the same rows are the same bytes."""
    from datasets import DatasetDict, load_from_disk

    path = written(LlamaFactory(), critical, source, tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    loaded = load_from_disk(str(tmp_path / "tokenized"))
    assert isinstance(loaded, DatasetDict)
    assert loaded["train"].column_names == ["input_ids", "attention_mask", "labels"]
    assert loaded["train"]["labels"][:] == [labels_of(one) for one in critical]
    written(LlamaFactory(), critical, source, tmp_path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_datum_of_tinker_has_each_target_with_its_own_weight(
    weighted: list[Example], source: Source, tmp_path: Path
) -> None:
    """What predicts token t is the input at t - 1, and only the first token is no target."""
    for row, one in zip(lines(written(Tinker(), weighted, source, tmp_path)), weighted, strict=True):
        (chunk,) = row["model_input"]["chunks"]
        targets, weights = (row["loss_fn_inputs"][name] for name in ("target_tokens", "weights"))
        assert chunk == {"type": "encoded_text", "tokens": one.ids.tolist()[:-1]}
        assert targets == {"data": one.ids.tolist()[1:], "dtype": "int64", "shape": [len(one.ids) - 1]}
        assert (weights["dtype"], weights["shape"]) == ("float32", targets["shape"])
        assert np.array_equal(np.float32([0, *weights["data"]]), one.weight)


@pytest.mark.skipif(importlib.util.find_spec("tinker") is None, reason="tinker is not installed")
def test_tinker_itself_reads_its_datums(weighted: list[Example], source: Source, tmp_path: Path) -> None:
    from tinker.types import Datum, ModelInput, TensorData  # pyright: ignore[reportMissingImports]

    for row, one in zip(lines(written(Tinker(), weighted, source, tmp_path)), weighted, strict=True):
        tokens = [token for chunk in row["model_input"]["chunks"] for token in chunk["tokens"]]
        inputs = {name: TensorData(**values) for name, values in row["loss_fn_inputs"].items()}
        datum = Datum(model_input=ModelInput.from_ints(tokens), loss_fn_inputs=inputs)
        assert datum.model_input.to_ints() == one.ids.tolist()[:-1]
        assert np.array_equal(datum.loss_fn_inputs["weights"].to_numpy(), one.weight[1:])


def test_messages_of_ms_swift_encode_to_the_tokens_and_weights(
    weighted: list[Example], source: Source, tmp_path: Path
) -> None:
    """Assistant messages in a row are one response, each encoded by itself with its loss_scale."""
    for row, one in zip(
        lines(written(MsSwift(response_end="refuse"), weighted, source, tmp_path)), weighted, strict=True
    ):
        user, *answer = row["messages"]
        assert user == {"role": "user", "content": one.row.problem}
        assert {message["role"] for message in answer} == {"assistant"}
        ids, weights = [], []
        for message in answer:
            found = source.tokenizer(message["content"], add_special_tokens=False)["input_ids"]
            ids += found
            weights += [message["loss_scale"]] * len(found)
        assert ids == one.row.response_ids.tolist()
        assert np.array_equal(np.float32(weights), one.weight[one.prompt_len :])


def test_ms_swift_puts_loss_on_an_end_only_where_that_was_accepted(
    stored: list[AnnotatedResponse], source: Source, tmp_path: Path
) -> None:
    last_word = np.zeros(len(stored[0].response_ids))
    last_word[-2] = 1
    examples = [example(stored[0], last_word)]
    with pytest.raises(FormatError, match=r"response_end=refuse: 1 of 1 rows .*format.response_end=train"):
        MsSwift(response_end="refuse").require(examples, source)
    (row,) = lines(written(MsSwift(response_end="train"), examples, source, tmp_path))
    assert [message["loss_scale"] for message in row["messages"][1:]] == [0, 1, 1]


def test_a_part_that_would_be_other_tokens_is_refused(stored: list[AnnotatedResponse], source: Source) -> None:
    """A response of two tokens whose text is one token, as sampling may give it."""
    encode = source.tokenizer
    first, rest = (encode(text, add_special_tokens=False)["input_ids"] for text in ("F", "irst"))
    assert len(encode("First", add_special_tokens=False)["input_ids"]) == 1
    ids = np.array([*first, *rest, 2], dtype=np.int32)
    spans = np.array([[0, 1], *([1, 5] for _ in rest), [5, 5]], dtype=np.int32)
    odd = dataclasses.replace(stored[0], response="First", response_ids=ids, char_span=spans)
    with pytest.raises(FormatError, match=r"1 of 1 rows .* would have other tokens .*format=labels"):
        MsSwift(response_end="refuse").require([example(odd, np.ones(len(ids)))], source)


def test_sharegpt_is_for_whole_responses_and_describes_itself(
    critical: list[Example], stored: list[AnnotatedResponse], source: Source, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=r"12 of 12 rows have loss on only a part .*mask=all.*format=llama_factory"):
        ShareGPT().require(critical, source)
    whole = [example(row, np.ones(len(row.response_ids))) for row in stored]
    path = written(ShareGPT(), whole, source, tmp_path)
    described = json.loads((tmp_path / "dataset_info.json").read_text())["train"]
    assert described == {
        "file_name": "data/train-00000-of-00001.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
    }
    assert tmp_path / described["file_name"] == path
    for row, one in zip(lines(path), stored, strict=True):
        turns = [{"from": "human", "value": one.problem}, {"from": "gpt", "value": one.response}]
        assert row == {"conversations": turns}


@pytest.mark.parametrize("alternatives", ["first", "all"])
def test_pairs_are_tokens_against_what_fails_in_their_place(
    alternatives: Any, critical: list[Example], stored: list[AnnotatedResponse], source: Source
) -> None:
    """By a loop of its own over the outcomes. Cut-off alternatives, which the mask counts, make no pair."""
    pairs = Preferences(alternatives=alternatives, text=False).table(critical, source, split="train").to_pylist()
    expected = []
    for row in stored:
        for t, outcomes in enumerate(row.alt_outcome.tolist()):
            if set(outcomes) <= {Outcome.WRONG, Outcome.CUT_OFF}:
                wrong = [k for k, outcome in enumerate(outcomes) if outcome == Outcome.WRONG]
                for k in wrong if alternatives == "all" else wrong[:1]:
                    prefix = [*row.prompt_ids.tolist(), *row.response_ids[:t].tolist()]
                    expected.append((row.response_id, t, prefix, [row.response_ids[t]], [row.alt_ids[t, k]]))
    assert len(expected) > 50
    assert [tuple(pair.values()) for pair in pairs] == expected


def test_in_a_wrong_response_the_token_that_turns_it_right_is_chosen(
    stored: list[AnnotatedResponse], source: Source
) -> None:
    outcomes = np.full_like(stored[0].alt_outcome, Outcome.WRONG)
    outcomes[3] = Outcome.WRONG, Outcome.RIGHT
    wrong = dataclasses.replace(stored[0], alt_outcome=outcomes, verdict="wrong")
    examples = [example(wrong, Turning()(wrong))]
    (pair,) = Preferences(alternatives="first", text=False).table(examples, source, split="train").to_pylist()
    assert pair["position"] == 3
    assert pair["chosen_ids"] == [wrong.alt_ids[3, 1]]
    assert pair["rejected_ids"] == [wrong.response_ids[3]]


def test_texts_of_pairs_come_where_they_are_asked_for(critical: list[Example], source: Source) -> None:
    (pair, *_) = Preferences(alternatives="first", text=True).table(critical, source, split="train").to_pylist()
    encode = source.tokenizer
    assert encode(pair["prompt"], add_special_tokens=False)["input_ids"] == pair["prompt_ids"]
    assert encode(pair["chosen"], add_special_tokens=False)["input_ids"] == pair["chosen_ids"]
    assert pair["chosen"] != pair["rejected"]


def rollouts(stored: list[AnnotatedResponse], verdicts: list[tuple[str, str, str]]) -> list[Example]:
    """One of each (verdict, finish, problem)."""
    made = []
    for number, (verdict, finish, problem) in enumerate(verdicts):
        row = stored[int(problem)]
        found: Any = {"verdict": verdict, "finish": finish, "response_id": f"r{number}", "problem_id": problem}
        made.append(example(dataclasses.replace(row, **found), np.ones(len(row.response_ids))))
    return made


def test_of_rollouts_a_right_response_is_paired_with_a_wrong_one_to_the_same_problem(
    stored: list[AnnotatedResponse], source: Source
) -> None:
    drawn = rollouts(
        stored,
        [
            *(("right", "stop", "0"), ("wrong", "stop", "0"), ("right", "stop", "0"), ("wrong", "stop", "0")),
            *(("right", "stop", "1"), ("cut off", "length", "1"), ("undecided", "stop", "1")),
            *(("wrong", "stop", "2"), ("right", "stop", "3"), ("right", "length", "2")),
        ],
    )
    of_rollouts = Source({**source.manifest, "fingerprint": {**source.manifest["fingerprint"], "rollouts": {}}})
    for alternatives, expected in (
        ("first", [("r0", "r1"), ("r2", "r3")]),
        ("all", [("r0", "r1"), ("r0", "r3"), ("r2", "r1"), ("r2", "r3")]),
    ):
        made = Preferences(alternatives=alternatives, text=None).of(of_rollouts)  # pyright: ignore[reportArgumentType]
        pairs = made.table(drawn, of_rollouts, split="train").to_pylist()
        assert [(pair["response_id"], pair["rejected_id"]) for pair in pairs] == expected
    pair = pairs[0]
    assert pair["prompt_ids"] == stored[0].prompt_ids.tolist()
    assert pair["chosen_ids"] == stored[0].response_ids.tolist()
    assert pair["prompt"] == [{"role": "user", "content": stored[0].problem}]
    assert pair["chosen"] == [{"role": "assistant", "content": stored[0].response}]
    chat = pair["prompt"] + pair["chosen"]
    whole = source.tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert whole == pair["prompt_ids"] + pair["chosen_ids"]  # what DPOTrainer encodes
    with pytest.raises(FormatError, match=r"\(right only\), so there is no pair; use both with data.responses=all"):
        made.table(drawn[:1], of_rollouts, split="train")
    tokens = Preferences(alternatives="first", text=None)
    assert tokens.of(source) is tokens


def test_no_pair_at_all_is_refused(stored: list[AnnotatedResponse], source: Source) -> None:
    nothing = [example(stored[0], np.zeros(len(stored[0].response_ids)))]
    with pytest.raises(FormatError, match="no pair"):
        Preferences(alternatives="first", text=False).table(nothing, source, split="train")


def test_verl_has_each_problem_once_with_its_answer_and_the_annotations_prompt(
    critical: list[Example], stored: list[AnnotatedResponse], source: Source, tmp_path: Path
) -> None:
    """The five columns of its documentation, as its own data set reads them: by datasets, then the chat template."""
    from datasets import load_dataset

    made = Verl(data_source="", ability="math")
    path = written(made, [*critical, critical[0]], source, tmp_path / "verl")
    loaded = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.column_names == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert len(loaded) == len({row.problem_id for row in stored})
    by_id = {row.problem_id: row for row in stored}
    for index, row in enumerate(loaded):
        of = by_id[row["extra_info"]["problem_id"]]
        assert (row["data_source"], row["ability"]) == ("arithmetic", "math")
        assert row["reward_model"] == {"style": "rule", "ground_truth": of.answer}
        assert row["extra_info"]["index"] == index
        ids = source.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert ids == of.prompt_ids.tolist()


def test_prompts_that_are_not_the_problems_are_refused(
    stored: list[AnnotatedResponse], source: Source, tmp_path: Path
) -> None:
    """As after data.shuffle_responses."""
    row = stored[0]
    ids = np.concatenate([stored[1].prompt_ids, row.response_ids]).astype(np.int64)
    weight = np.concatenate([np.zeros(len(stored[1].prompt_ids)), np.ones(len(row.response_ids))])
    with pytest.raises(FormatError, match=r"is not its problem .*data\.shuffle_responses"):
        ShareGPT().table([Example(row, ids, weight.astype(np.float32))], source, split="train")
