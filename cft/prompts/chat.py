"""Converts a question to prompt ids, with the tokenizer's chat template or as plain text, and determines the end token.

Prompts are tokenized only here; all other code passes ids. The beginning-of-sequence token occurs once, at the front, if the
template or the tokenizer adds one. Control tokens (beginning, end, padding, and those a template writes around turns) come only
from templates: if the text of a problem contains the spelling of one, it is encoded as ordinary text.

    fingerprint     hash of the prompt's config
    prompting       what annotation, training and evaluation compare: tokenizer, prompt, template, and the ids of a probe
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from cft.errors import UserError
from cft.files import sha256_json
from cft.models.load import template_hash, tokenizer_hash
from cft.prompts.switches import switches, unread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "{question}"
DATE = "2024-07-26"  # the default date of the Llama 3.1 templates
PROBE = "What is 2 + 3?"
_REPLY = "\ue000reply\ue000"  # placeholder for an assistant's text; no template writes private-use characters
BREAK = "\ue001"  # inserted into the spelling of a control token, so that it is not recognized
_OURS = {"add_generation_prompt", "documents", "messages", "strftime_now", "tools"}


class PromptError(UserError, ValueError):
    """A prompt cannot be made; the message names the key to change."""


class TextError(PromptError):
    """The text of a problem cannot be encoded with this tokenizer.

    The message is the reason; its part before the first colon is the same for all texts with this reason.
    """

    def of(self, what: str) -> TextError:
        """The error as the status of a problem."""
        return TextError(f"{what} not encodable: {str(self).partition(':')[0]}")


class Prompt(Protocol):
    def ids(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]: ...

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The token that ends a response, None if neither template nor tokenizer defines one."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything but the tokenizer and its template, which have separate hashes (`cft/models/load.py`)."""
        ...


class Chat:
    """One user turn in the tokenizer's chat template, followed by the header of the assistant's turn.

    Args:
        system: text of the system turn; "" = none, so that the template's default applies.
        template: the user's text, with `{question}` once.
        template_kwargs: variables of the chat template, such as `{enable_thinking: false}`.
        date: the date for templates that write today's date, so that prompts do not depend on the day.

    Raises:
        PromptError: `template` does not contain the slot once, a variable is set by the program, or `date` is not a date.
    """

    def __init__(
        self, *, system: str, template: str, template_kwargs: Mapping[str, Any] | None = None, date: str = DATE
    ) -> None:
        self.system = system
        self.template = _checked(template)
        self.template_kwargs = dict(template_kwargs or {})
        self.date = date
        try:
            self._day = datetime.strptime(date, "%Y-%m-%d")
        except ValueError:
            raise PromptError(f"prompt.date={date!r}: expected a date as YYYY-MM-DD, such as {DATE}") from None
        if taken := sorted(_OURS & set(self.template_kwargs)):
            raise PromptError(f"prompt.template_kwargs: {', '.join(taken)} is set by the program; remove it")

    def ids(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        return _one_bos(_question_ids(tokenizer, question, lambda text: self._text(tokenizer, text)), tokenizer)

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The special token that the template writes after an assistant's text; if there is none, the tokenizer's EOS."""
        after = self._text(tokenizer, PROBE, reply=_REPLY).rpartition(_REPLY)[2].strip()
        first = encoded(tokenizer, after)[:1] if after else []
        return first[0] if first and first[0] in special_tokens(tokenizer).values() else _eos_id(tokenizer)

    def fingerprint(self) -> str:
        further = {"template_kwargs": self.template_kwargs} if self.template_kwargs else {}
        further |= {"date": self.date} if self.date != DATE else {}
        return sha256_json({"kind": "chat", "system": self.system, "template": self.template, **further})

    def _text(self, tokenizer: PreTrainedTokenizerBase, question: str, *, reply: str | None = None) -> str:
        """The rendered conversation, with the assistant's `reply` or, without one, with the header of its turn."""
        messages = self.asked(question) + ([{"role": "assistant", "content": reply}] if reply is not None else [])
        return self.rendered(tokenizer, messages, answer=reply is None)[0]

    def asked(self, question: str) -> list[dict[str, Any]]:
        """The messages of a question: the system turn, if there is one, and the user's turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.template.replace(SLOT, question)}]

    def rendered(
        self,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        answer: bool,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render a conversation with the chat template.

        Args:
            tokenizer: the tokenizer with the chat template.
            messages: the conversation.
            tools: JSON schemas of tools.
            answer: whether the text ends with the header of the assistant's next turn.

        Returns:
            (text, character ranges that the template marks as the assistant's with `{% generation %}`).

        Raises:
            PromptError: there is no template, or it refuses the conversation.
        """
        template = tokenizer.chat_template
        if not template:
            raise PromptError(
                f"prompt=chat: the tokenizer of {tokenizer.name_or_path} has no chat template; use prompt=plain, or a "
                "model that was trained on chats"
            )
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        blocks: list[str] = []
        marked: list[tuple[int, int]] = []
        try:
            # apply_chat_template does not accept functions, so it cannot replace the clock that templates read.
            source: Any = tokenizer.get_chat_template(tools=list(tools) if tools else None)  # type: ignore[arg-type]
            compiled: Any = chat_template_utils._compile_jinja_template(source)
            read = switches(compiled.environment, source) - _OURS
            if problem := unread(self.template_kwargs, read, of=f"the chat template of {tokenizer.name_or_path}"):
                raise PromptError(problem)
            with compiled.environment.activate_tracker(blocks, marked):
                pieces = compiled.generate(
                    messages=messages,
                    tools=tools or None,
                    documents=None,
                    add_generation_prompt=answer,
                    strftime_now=self._day.strftime,
                    **{**tokenizer.special_tokens_map, **self.template_kwargs},
                )
                for piece in pieces:  # one by one, since the tracker measures the length of `blocks`
                    blocks.append(piece)
        except (TemplateError, TypeError) as error:
            raise PromptError(_template_problem(error, tokenizer, system=self.system)) from error
        return "".join(blocks), marked


class Plain:
    """Plain text without a chat template, for base models. The tokenizer's BOS is added if the tokenizer adds one.

    Args:
        template: the text, with `{question}` once.

    Raises:
        PromptError: `template` does not contain the slot once.
    """

    def __init__(self, *, template: str) -> None:
        self.template = _checked(template)

    def ids(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        bare = _question_ids(tokenizer, question, lambda text: self.template.replace(SLOT, text))
        # Only BOS is added: some tokenizers also append EOS, after which no answer can follow.
        bos: Any = tokenizer.bos_token_id
        opened = list(tokenizer(self.template, add_special_tokens=True)["input_ids"])[:1] == [bos]
        return _one_bos([bos, *bare] if opened else bare, tokenizer)

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        return _eos_id(tokenizer)

    def fingerprint(self) -> str:
        return sha256_json({"kind": "plain", "template": self.template})


def prompt_conflict(
    then: Mapping[str, Any], now: Mapping[str, Any], *, then_config: Mapping[str, Any], now_config: Mapping[str, Any]
) -> str:
    """Describe how prompts differ between then and now.

    Args:
        then: earlier hashes, as from `prompting`.
        now: current hashes, as from `prompting`.
        then_config: earlier config of the prompt, may be {}.
        now_config: current config of the prompt.

    Returns:
        The differences as text; "" if there are none.
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
    if not said and prompts[0] != prompts[1]:  # the texts are equal, but the ids of the probe differ
        said.append("the rendered chat template (due to, e.g., today's date or another version of a library)")
    return " and ".join(said)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a prompt's config, with the class name, without its module, as `kind`."""
    named = {str(key): value for key, value in config.items() if key != "_target_"}
    return {"kind": str(config.get("_target_")).rpartition(".")[2].lower(), **named}


def prompting(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Hashes that must be equal in all stages that prompt a model: tokenizer, prompt, template, and the ids of a probe.

    The probe detects differences that hashes of the texts cannot, such as a date or another version of a library.

    Raises:
        PromptError: the prompt cannot be made with this tokenizer.
    """
    probe = [*prompt.ids(tokenizer, PROBE), prompt.end_id(tokenizer)]
    return {
        "tokenizer": tokenizer_hash(tokenizer),
        "prompt": {
            "prompt": prompt.fingerprint(),
            "template": template_hash(tokenizer),
            "probe": sha256_json(probe),
        },
    }


def response_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, *, ends: Collection[int], written: Collection[str] = ()
) -> list[int]:
    """Ids of a given response, without the end token.

    The text is never encoded as control tokens: those with a role (beginning, end, padding, unknown), those that the chat
    template writes, and `ends`. Special tokens that are part of answers, such as `<answer>`, are allowed.

    Args:
        tokenizer: the tokenizer.
        text: the response.
        ends: ids of the end tokens.
        written: texts of tokens that are allowed although the chat template writes them, such as thinking tags.

    Raises:
        TextError: the tokenizer cannot represent the text.
    """
    texts = {text: i for text, i in control_tokens(tokenizer, ends=ends).items() if text not in written}
    controls = {*texts.values()}
    ids = encoded(tokenizer, text)
    if controls & set(ids):
        ids = encoded(tokenizer, text, special=False)
    spelt = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if controls & set(ids) or compared(str(spelt)) != compared(text):
        if any(control in text for control in texts):
            raise TextError("it spells a special token, which this tokenizer cannot encode as text")
        raise TextError("the tokenizer cannot spell this text")
    return ids


def control_tokens(tokenizer: PreTrainedTokenizerBase, *, ends: Collection[int]) -> dict[str, int]:
    """Text -> id of the special tokens that no response may contain."""
    roles = {str(content) for content in tokenizer.special_tokens_map.values()}
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    return {
        content: token
        for content, token in special_tokens(tokenizer).items()
        if content in roles or content in template or token in ends
    }


def encoded(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    """Ids of a text, without added tokens. special: whether text that spells a special token is encoded as that token."""
    further: dict[str, Any] = {} if special else {"split_special_tokens": True}
    return [int(token) for token in tokenizer(text, add_special_tokens=False, **further)["input_ids"]]


def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    eos: Any = tokenizer.eos_token_id
    return eos


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text -> id of the special tokens."""
    return {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def _question_ids(tokenizer: PreTrainedTokenizerBase, question: str, render: Callable[[str], str]) -> list[int]:
    """Ids of `render(question)`, in which only `render` contributes special tokens. Raises TextError."""
    special = special_tokens(tokenizer)
    spelt = re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)) or "(?!)")
    if not spelt.search(question):
        return encoded(tokenizer, render(question))
    # With BREAK in the question, only the template's special tokens match; everything between these is encoded as text.
    broken = spelt.sub(lambda found: found[0][:1] + BREAK + found[0][1:], question.replace(BREAK, ""))
    without = render(spelt.sub("", question))
    if _between(tokenizer, without, spelt, special) != encoded(tokenizer, without):
        raise TextError("it spells a special token, which this tokenizer cannot encode as text")
    ids = _between(tokenizer, render(broken), spelt, special)
    allowed = Counter(encoded(tokenizer, without))
    if any(Counter(ids)[token] > allowed[token] for token in special.values()):
        raise TextError("it spells a special token, which this tokenizer cannot encode as text")
    return ids


def _between(
    tokenizer: PreTrainedTokenizerBase, text: str, spelt: re.Pattern[str], special: Mapping[str, int]
) -> list[int]:
    """Ids of a text that is split at its special tokens, so that the pieces between them are encoded as ordinary text."""
    ids: list[int] = []
    start = 0
    for found in spelt.finditer(text):
        ids += encoded(tokenizer, text[start : found.start()].replace(BREAK, ""), special=False)
        ids.append(special[found[0]])
        start = found.end()
    return ids + encoded(tokenizer, text[start:].replace(BREAK, ""), special=False)


def compared(text: str) -> str:
    """The text in the form in which it must survive encoding: tokenizers may normalize to NFC and strip white space."""
    return unicodedata.normalize("NFC", text).strip()


def _template_problem(error: Exception, tokenizer: PreTrainedTokenizerBase, *, system: str) -> str:
    from jinja2 import TemplateSyntaxError

    of = f"the chat template of {tokenizer.name_or_path}"
    if isinstance(error, TemplateSyntaxError):
        return f"prompt=chat: {of} is damaged: {error.message} (line {error.lineno}); repair it, or use prompt=plain"
    remedy = "remove the system turn (prompt.system='')" if system else "use prompt=plain"
    return f"prompt{'.system' if system else '=chat'}: {of} refuses the conversation: {error}; {remedy}"


def _checked(template: str) -> str:
    if template.count(SLOT) != 1:
        raise PromptError(
            f"prompt.template={template!r}: contains {SLOT} {template.count(SLOT)} times; expected once, in the place of "
            "the question"
        )
    return template


def _one_bos(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Drop a duplicate BOS at the front, if both the template and the tokenizer add one."""
    start = 1 if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id else 0
    if len(ids) == start:
        raise PromptError("the prompt has no tokens: the question and prompt.template are empty for this tokenizer")
    return [int(token) for token in ids[start:]]
