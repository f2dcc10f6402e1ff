"""Prefix rows, against a row made by hand: the suffix behind the question, the first words, the end token learnt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cft.annotation.store import StoreError
from cft.data.annotated import to_token_row
from cft.data.prefix import PrefixRows, require_nothing_stored
from cft.masks import All, Critical, HighEntropy
from cft.prompts import Chat
from cft.scores.column import StoredColumn
from cft.types import AnnotatedResponse
from tests.fakes import row

QUESTION = "At first Tom owns 9 stamps. He finds 6 more. What is the final number of stamps?"
RESPONSE = "First we see that 9 + 6 = 15 stamps so far.\n#### 15"
SUFFIX = " He finds 6."


@pytest.fixture(scope="module")
def tokenizer(tiny_arith_path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_arith_path)


def prompt() -> Chat:
    return Chat(system="", template="{question}")


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def whole(tokenizer: PreTrainedTokenizerBase) -> AnnotatedResponse:
    end = prompt().end_id(tokenizer)
    made = row([*ids_of(tokenizer, RESPONSE), end], prompt_ids=prompt().ids(tokenizer, QUESTION), response=RESPONSE)
    return dataclasses.replace(made, problem=QUESTION)


def cut(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> AnnotatedResponse:
    made = {"share": 1.0, "length": 5, "unit": "words", "end_with_eos": True, "prompt_suffix": SUFFIX, **settings}
    (found,) = PrefixRows(**made).of([whole(tokenizer)], tokenizer=tokenizer, prompt=prompt())
    return found


def test_a_prefix_row_is_the_first_words_and_an_end_that_is_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    found, end = cut(tokenizer), prompt().end_id(tokenizer)
    assert found.prompt_ids.tolist() == prompt().ids(tokenizer, QUESTION + SUFFIX)
    # As the authors do: five words joined by single spaces, of their ids the first five, and the end in place of the next.
    assert found.response_ids.tolist() == [*ids_of(tokenizer, "First we see that 9"), end]
    longer = cut(tokenizer, length=12).response_ids.tolist()
    assert longer == [*ids_of(tokenizer, "First we see that 9 + 6 = 15 stamps so far. #### 15")[:12], end]
    made = to_token_row(found, mask=All(), group_mask=Critical(), columns={})
    assert made.ids.tolist() == [*found.prompt_ids, *found.response_ids]
    assert made.weight.tolist() == [0.0] * len(found.prompt_ids) + [1.0] * 6
    assert np.isnan(found.logprob).all()
    assert not found.tried_R.any()


def test_tokens_are_kept_as_they_are_and_an_end_is_one_of_two_kinds(tokenizer: PreTrainedTokenizerBase) -> None:
    own, end = ids_of(tokenizer, RESPONSE), prompt().end_id(tokenizer)
    assert cut(tokenizer, unit="tokens", length=4).response_ids.tolist() == [*own[:4], end]
    unended = cut(tokenizer, unit="tokens", length=4, end_with_eos=False)
    assert unended.response_ids.tolist() == own[:4]
    assert unended.finish == "length"
    assert cut(tokenizer, unit="tokens", length=99).response_ids.tolist() == [*own, end]  # not twice


def test_the_share_is_of_responses_and_the_others_stay_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [dataclasses.replace(whole(tokenizer), response_id=f"r{number}") for number in range(400)]
    settings: dict[str, Any] = {"length": 3, "unit": "words", "end_with_eos": True, "prompt_suffix": ""}
    made = PrefixRows(share=0.9, **settings).of(rows, tokenizer=tokenizer, prompt=prompt())
    kept = {one.response_id for one, before in zip(made, rows, strict=True) if one is before}
    assert 20 <= len(kept) <= 60
    fewer = PrefixRows(share=0.5, **settings)
    assert kept < {one.response_id for one in rows if not fewer.picks(one)}  # a lower share cuts no other rows


def test_what_belongs_to_another_prompt_or_to_the_whole_response_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    other = Chat(system="Be brief.", template="{question}")
    rows = PrefixRows(share=1.0, length=3, unit="words", end_with_eos=True, prompt_suffix=SUFFIX)
    with pytest.raises(StoreError, match=r"not its question under this prompt"):
        rows.of([whole(tokenizer)], tokenizer=tokenizer, prompt=other)
    with pytest.raises(StoreError, match="cft train only"):
        rows.of([whole(tokenizer)], tokenizer=None, prompt=None)
    require_nothing_stored({"mask": All()})
    for sources in ({"mask": HighEntropy(fraction=0.2)}, {"mask": Critical()}, {"mask": All(), "x": StoredColumn("x")}):
        with pytest.raises(StoreError, match=r"data\.prefix: (mask|x) reads"):
            require_nothing_stored(sources)
