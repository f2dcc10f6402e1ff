"""From question to prompt ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from cft.prompts.chat import Chat, Plain, PromptError
from tests.conftest import ROOT, WORDS, make_tokenizer

BOS, EOS = WORDS.index("<bos>"), WORDS.index("<eos>")


def words(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def test_chat_gives_ids_with_bos_once(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokenizer adds BOS and so does its template; the ids hold one."""
    ids = Chat(system="", template="Question {question}").ids(tiny_tokenizer, "What is 2 + 3 ?")
    assert type(ids) is list
    assert {type(token) for token in ids} == {int}
    assert words(tiny_tokenizer, ids) == ["<bos>", "Question", "What", "is", "2", "+", "3", "?", ":"]


def test_chat_with_a_system_turn(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = Chat(system="so", template="{question}").ids(tiny_tokenizer, "2")
    assert words(tiny_tokenizer, ids) == ["<bos>", "so", "2", ":"]


def test_the_chat_prompt_is_a_prefix_of_the_whole_dialogue(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """What is trained on is prompt ids and response ids, put together as they are; the template agrees with that."""
    tiny_tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}: {% endif %}{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}: {% endif %}"
    )
    prompt = Chat(system="", template="{question}").ids(tiny_tokenizer, "What is 2 + 3 ?")
    turns = [{"role": "user", "content": "What is 2 + 3 ?"}, {"role": "assistant", "content": "2 + 3 = 5"}]
    whole = tiny_tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    response = tiny_tokenizer("2 + 3 = 5", add_special_tokens=False)["input_ids"]
    assert whole == prompt + response


def test_chat_without_a_template_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template; use prompt=plain"):
        Chat(system="", template="{question}").ids(tiny_tokenizer, "2")


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<bos> $A <eos>", "$A <eos>"])
@pytest.mark.parametrize("template", ["Question : {question} Answer :", "<bos> Question : {question} Answer :"])
def test_plain_has_bos_at_most_once_and_no_eos(single: str, template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    ids = Plain(template=template).ids(tokenizer, "What is 2 ?")
    expected = ["Question", ":", "What", "is", "2", "?", "Answer", ":"]
    if "<bos>" in single or "<bos>" in template:
        expected = ["<bos>", *expected]
    assert words(tokenizer, ids) == expected


def test_braces_and_slots_in_a_question_stay_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[str] = []

    class Spy:
        bos_token_id = eos_token_id = None
        added_tokens_decoder: dict[int, object] = {}  # noqa: RUF012

        def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            seen.append(text)
            return {"input_ids": [5]}

    question = r"\frac{1}{2} {0} {question} %s"
    Plain(template=r"Q: {question} in \boxed{}").ids(Spy(), question)  # pyright: ignore[reportArgumentType]
    assert seen[0] == r"Q: \frac{1}{2} {0} {question} %s in \boxed{}"


@pytest.mark.parametrize("template", ["", "no slot", "{question} {question}", "{Question}"])
def test_a_template_without_one_slot_is_refused(template: str) -> None:
    for make in (lambda: Chat(system="", template=template), lambda: Plain(template=template)):
        with pytest.raises(PromptError, match=r"prompt\.template.*expected once"):
            make()


def test_an_empty_prompt_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(PromptError, match="no tokens"):
        Plain(template="{question}").ids(tokenizer, "")


def test_fingerprints_tell_prompts_apart() -> None:
    prompts = [
        Chat(system="", template="{question}"),
        Chat(system="so", template="{question}"),
        Chat(system="", template="{question} "),
        Plain(template="{question}"),
    ]
    assert len({prompt.fingerprint() for prompt in prompts}) == len(prompts)
    assert prompts[0].fingerprint() == Chat(system="", template="{question}").fingerprint()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "prompt").glob("*.yaml")))
def test_every_prompt_file_makes_a_prompt(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        prompt = instantiate(compose(overrides=[f"+prompt={name}"]).prompt, _convert_="all")
    ids = prompt.ids(tiny_tokenizer, "What is 2 ?")
    assert ids.count(BOS) == 1
    assert ids[0] == BOS
    if name == "boxed":
        assert prompt.template.endswith(r"\boxed{}.")


def test_boxed_is_read_by_yaml_as_meant() -> None:
    text = (Path(ROOT) / "conf" / "prompt" / "boxed.yaml").read_text()
    assert r"\\boxed{}" in text  # a double-quoted yaml string: one backslash after reading
