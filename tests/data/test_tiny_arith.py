"""The model that ships with the package: small, exact in decoding, right on a part of its problems."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cft.data import word_problems as arithmetic
from cft.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer(tiny_arith_path: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_arith_path)


def sample(count: int) -> list[Problem]:
    splits = ("train", "validation", "test")
    return [p for split in splits for _, p in islice(arithmetic.problems(seed=5, split=split), count)]


def test_it_is_small_and_holds_no_pickle(tiny_arith_path: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in tiny_arith_path.iterdir()}
    assert sizes["model.safetensors"] <= 4 * 2**20
    assert sum(sizes.values()) <= 4.1 * 2**20
    assert {Path(name).suffix for name in sizes} <= {".safetensors", ".json", ".jinja", ".md"}


def test_every_generated_text_is_in_the_vocabulary_and_decodes_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    for problem in sample(300):
        for text in (problem.question, problem.solution):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text


def test_decoding_a_prefix_gives_a_prefix_of_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for problem in sample(20):
        ids = [*tokenizer.encode(problem.solution, add_special_tokens=False), tokenizer.eos_token_id]
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        assert whole == problem.solution + tokenizer.eos_token
        for t in range(len(ids)):
            prefix = tokenizer.decode(ids[:t], skip_special_tokens=False)
            assert whole.startswith(prefix)
            assert (
                tokenizer.decode(ids[t], skip_special_tokens=False)
                == whole[len(prefix) :][: len(tokenizer.decode(ids[t]))]
            )


def test_the_chat_template_is_begin_question_newline(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = sample(1)[0]
    messages = [{"role": "user", "content": problem.question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == f"<bos>{problem.question}\n"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    expected = tokenizer.encode(problem.question + "\n", add_special_tokens=False)
    assert ids == [tokenizer.bos_token_id, *expected]
    answered = [*messages, {"role": "assistant", "content": problem.solution}]
    assert tokenizer.apply_chat_template(answered, tokenize=False) == f"{text}{problem.solution}<eos>"


@pytest.mark.slow
def test_responses_are_short_and_end_and_are_right_on_a_part(
    tiny_arith_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_arith_path)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    tests = [p for _, p in islice(arithmetic.problems(seed=0, split="test"), 150)]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.question}], add_generation_prompt=True, return_dict=False
        )
        for p in tests
    ]
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**batch, do_sample=False, max_new_tokens=64)[:, batch["input_ids"].shape[1] :]
    right = ended = 0
    for ids, problem in zip(output.tolist(), tests, strict=True):
        ended += tokenizer.eos_token_id in ids
        right += tokenizer.decode(ids, skip_special_tokens=True).partition("####")[2].strip() == problem.answer
    assert ended == len(tests)
    assert 0.45 < right / len(tests) < 0.8  # 0.5 to 0.75 on many, give or take the error of 150
