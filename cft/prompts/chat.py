"""From a question to prompt ids: by the tokenizer's chat template, or as plain text.

Ids are made once, here, and travel as ids. The beginning-of-sequence token stands at the front once, where the template
or the tokenizer puts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from cft.errors import UserError
from cft.files import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{question}"


class PromptError(UserError, ValueError):
    """A prompt that cannot be made; the message names the key to change."""


class Prompt(Protocol):
    def ids(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]: ...

    def fingerprint(self) -> str:
        """Hash of everything but the tokenizer and its template, which have hashes of their own (`cft/models/load.py`)."""
        ...


class Chat:
    """One user turn in the tokenizer's chat template, open for the assistant's answer.

    system: text of the system turn, "" = none given, so that the template's own default applies.
    template: the user's text, with `{question}` once.
    """

    def __init__(self, *, system: str, template: str) -> None:
        self.system = system
        self.template = _checked(template)

    def ids(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        if not tokenizer.chat_template:
            raise PromptError(
                f"prompt=chat: the tokenizer of {tokenizer.name_or_path} has no chat template; use prompt=plain, or a "
                "model that was trained on chats"
            )
        turns = [{"role": "system", "content": self.system}] if self.system else []
        turns.append({"role": "user", "content": self.template.replace(SLOT, question)})
        # transformers 5 gives a BatchEncoding, whose length and iteration are those of a dict.
        encoding = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        return _one_bos(encoding["input_ids"], tokenizer)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def fingerprint(self) -> str:
        return sha256_json({"kind": "chat", "system": self.system, "template": self.template})


class Plain:
    """The text of `template` with the question in place of `{question}`, encoded as it stands, with BOS where the
    tokenizer adds one. For base models."""

    def __init__(self, *, template: str) -> None:
        self.template = _checked(template)

    def ids(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        text = self.template.replace(SLOT, question)
        ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        # Some tokenizers also close a text with EOS; an answer cannot follow that.
        if len(ids) > len(bare) and ids[-1] == tokenizer.eos_token_id and ids[-1:] != bare[-1:]:
            ids.pop()
        return _one_bos(ids, tokenizer)

    def fingerprint(self) -> str:
        return sha256_json({"kind": "plain", "template": self.template})


def prompt_conflict(
    then: Mapping[str, Any], now: Mapping[str, Any], *, then_config: Mapping[str, Any], now_config: Mapping[str, Any]
) -> str:
    """How two ways of making prompts differ, in words; "" where they do not.

    then, now: hashes under `tokenizer` and `prompt`. then_config, now_config: the nodes of `prompt`; the earlier may be {}.
    """
    said = []
    prompts = [part["prompt"] for part in (then, now)]
    if prompts[0]["prompt"] != prompts[1]["prompt"]:
        earlier, here = _settings(then_config), _settings(now_config)
        names = [name for name in {**earlier, **here} if earlier.get(name) != here.get(name)]
        changes = [f"{name} was {earlier.get(name)!r} and is {here.get(name)!r}" for name in names]
        said.append("the prompt" + (f" ({'; '.join(changes)})" if then_config and changes else ""))
    if prompts[0]["template"] != prompts[1]["template"]:
        said.append("the tokenizer's chat template")
    if then.get("tokenizer", now.get("tokenizer")) != now.get("tokenizer"):
        said.append("the tokenizer")
    return " and ".join(said)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a prompt's node, with its class as `kind`, wherever that lies."""
    named = {str(key): value for key, value in config.items() if key != "_target_"}
    return {"kind": str(config.get("_target_")).rpartition(".")[2].lower(), **named}


def _checked(template: str) -> str:
    if template.count(SLOT) != 1:
        raise PromptError(
            f"prompt.template={template!r}: {SLOT} stands there {template.count(SLOT)} times; expected once, where the "
            "question goes"
        )
    return template


def _one_bos(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Drop a second BOS at the front: a template that writes one and a tokenizer that adds one."""
    start = 1 if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id else 0
    if len(ids) == start:
        raise PromptError("the prompt has no tokens: the question and prompt.template are empty for this tokenizer")
    return [int(token) for token in ids[start:]]
