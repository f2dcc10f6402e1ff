"""Models, tokenizers and templates that people brought: what is wrong with them is said, what can be used is used rightly."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cft.annotation.annotator import Annotator
from cft.annotation.counterfactual import ListSource, alternatives
from cft.engines.factory import EngineError
from cft.engines.reference import ReferenceEngine
from cft.engines.refusals import require_decodes
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.models.architecture import context_length, require_packable, require_room
from cft.models.export import export, require_exportable
from cft.models.lazy import LazyModel
from cft.models.load import (
    ModelError,
    ModelSpec,
    eos_ids,
    load_causal_lm,
    load_tokenizer,
)
from cft.models.text import decode
from cft.prompts.chat import Chat, Plain, PromptError, TextError, encoded, prompting, response_ids
from cft.types import GREEDY, Budget, Completion, Decision, Engine, Fork, Problem, TokenSequence, TopTokens, Verdict
from cft.verifiers.grader import Grader
from tests.conftest import CHAT_TEMPLATE, WORDS, make_llama, make_tokenizer
from tests.fakes import ScriptedEngine, random_llama

PAD, BOS, EOS = (WORDS.index(word) for word in ("<pad>", "<bos>", "<eos>"))
CHAT = Chat(system="", template="{question}")
ENDED = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %} END {% else %} : {% endif %}{% endfor %}"
)

Edit = Callable[[Path], None]


def spec(path: Path, **changes: Any) -> ModelSpec:
    return ModelSpec(name="tiny", path=str(path), **changes)


def edit_json(path: Path, **changes: Any) -> None:
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value != "absent"}))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model folder, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, so that it can spell anything, and control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.add_tokens([AddedToken("<answer>", special=True, normalized=False)])
    tokenizer.chat_template = ENDED.replace("END", "<eos>")
    return tokenizer


# What a prompt renders


def set_day(monkeypatch: pytest.MonkeyPatch, day: int) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(2026, 1, day, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def test_a_template_that_writes_the_date_gives_the_same_prompt_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for c in strftime_now('%Y%m%d') %}{{ c }} {% endfor %}" + CHAT_TEMPLATE
    turns = [{"role": "user", "content": "What"}]
    made, unpinned = [], []
    for day in (3, 4):
        set_day(monkeypatch, day)
        made.append((CHAT.ids(tokenizer, "What is 2 ?"), prompting(CHAT, tokenizer)))
        unpinned.append(tokenizer.apply_chat_template(turns, tokenize=False))
    assert unpinned[0] != unpinned[1]  # the clock was changed indeed
    assert made[0] == made[1]
    digits = [WORDS.index(digit) for digit in "20240726"]
    assert made[0][0][: len(digits)] == digits
    later = Chat(system="", template="{question}", date="2025-12-31")
    assert later.ids(tokenizer, "What")[:8] == [WORDS.index(digit) for digit in "20251231"]
    assert later.fingerprint() != CHAT.fingerprint()
    with pytest.raises(PromptError, match=r"prompt\.date='soon'.*YYYY-MM-DD"):
        Chat(system="", template="{question}", date="soon")


def test_what_is_compared_holds_the_ids_of_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal texts of template and prompt, other ids: a library that renders otherwise is noticed."""
    from transformers.utils import chat_template_utils

    tokenizer = make_tokenizer()
    before = prompting(CHAT, tokenizer)
    compiled = chat_template_utils._compile_jinja_template  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", lambda text: compiled(text + "so"))
    after = prompting(CHAT, tokenizer)
    assert after["prompt"]["probe"] != before["prompt"]["probe"]
    assert {k: v for k, v in after["prompt"].items() if k != "probe"} == {
        k: v for k, v in before["prompt"].items() if k != "probe"
    }


# Of the kind of Qwen3's and SmolLM3's: what is thought stands between two tokens, and a switch closes it beforehand.
THINKS = (
    "{%- set first = messages[0] %}{%- if first.role == 'system' %}{{ first.content }} {% endif %}"
    "{%- for m in messages %}{%- if m.role != 'system' %}{{ m.content }} <eos> {% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'Answer : ' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}= = {% endif %}{%- endif %}"
)
THINKS_BY_MODE = (
    "{#- reasoning_effort is not read: this is a comment -#}"
    "{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{%- set mode = 'so' if enable_thinking else 'then' %}{{ mode }} "
    "{% if custom_instructions %}{{ custom_instructions }} {% endif %}"
    "{%- for m in messages %}{{ m.content }} {% endfor %}{%- if not enable_thinking %}= {% endif %}"
)


@pytest.mark.parametrize(
    "template, off, read",
    [(THINKS, "= =", "enable_thinking"), (THINKS_BY_MODE, "=", "custom_instructions, enable_thinking")],
)
def test_thinking_is_switched_off_and_unknown_switches_are_refused_with_those_there_are(
    template: str, off: str, read: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    default, on, without = (
        Chat(system="", template="{question}", template_kwargs=switch)
        for switch in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    )
    assert on.ids(tokenizer, "2") == default.ids(tokenizer, "2")
    equals = [WORDS.index("=")] * len(off.split())
    assert without.ids(tokenizer, "2")[-len(equals) :] == equals
    assert without.ids(tokenizer, "2") != on.ids(tokenizer, "2")
    assert len({prompt.fingerprint() for prompt in (default, on, without)}) == 3
    assert prompting(on, tokenizer)["prompt"]["probe"] != prompting(without, tokenizer)["prompt"]["probe"]
    for name in ("thinking", "reasoning_effort"):
        with pytest.raises(PromptError, match=rf"template_kwargs\.{name}.*reads no such variable.*it reads {read}"):
            Chat(system="", template="{question}", template_kwargs={name: False}).ids(tokenizer, "2")
    with pytest.raises(PromptError, match="did you mean enable_thinking"):
        Chat(system="", template="{question}", template_kwargs={"enable_thinkin": False}).ids(tokenizer, "2")
    with pytest.raises(PromptError, match="messages is set by the program"):
        Chat(system="", template="{question}", template_kwargs={"messages": []})


def test_a_template_that_refuses_or_is_damaged_is_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + CHAT_TEMPLATE
    )
    assert CHAT.ids(tokenizer, "2")
    with pytest.raises(PromptError, match=r"prompt\.system: .*no system turn here; remove the system turn"):
        Chat(system="so", template="{question}").ids(tokenizer, "2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }"
    with pytest.raises(PromptError, match=r"chat template of .* is damaged: .*line 1"):
        CHAT.ids(tokenizer, "2")


# How a response ends, and what its text may become


@pytest.mark.parametrize("end, expected", [("<pad>", PAD), ("<eos>", EOS), ("", EOS), (" so", EOS)])
def test_a_turn_ends_as_the_template_ends_it(end: str, expected: int) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = ENDED.replace("END", end)
    assert CHAT.end_id(tokenizer) == expected
    assert Plain(template="{question}").end_id(tokenizer) == EOS


def annotated(
    problems: Sequence[Problem],
    *,
    tokenizer: PreTrainedTokenizerFast,
    eos: tuple[int, ...] = (EOS,),
    engine: Engine | None = None,
    padding_ids: frozenset[int] = frozenset(),
    k: int = 1,
) -> Any:
    """A unit of given responses; every text is right, and nothing follows an alternative."""
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    engine = engine or Scored(vocabulary)
    verified: Callable[[Sequence[tuple[str, str]]], list[Verdict]] = lambda items: [  # noqa: E731
        Verdict(Decision.RIGHT, answer, explicit=True, reason="") for _, answer in items
    ]
    return Annotator(
        engine=engine,
        tokenizer=tokenizer,
        prompt=CHAT,
        grader=Grader(tokenizer, verified),
        budget=Budget(100),
        eos_ids=eos,
        max_positions=1000,
        num_alternatives=k,
        short_circuit=True,
        replay_fraction=0.0,
        responses="given",
        padding_ids=padding_ids,
    ).fresh(problems)


class Scored(ScriptedEngine):
    """Every position ranks the highest ids first."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(lambda fork: Completion(np.array([0], np.int32), "stop", 0))
        self.vocabulary, self.asked = vocabulary, []

    def score_all(self, sequences: Sequence[TokenSequence], *, k: int) -> Iterator[tuple[int, TopTokens]]:
        for index, sequence in enumerate(sequences):
            self.asked.append(k)
            length = len(sequence.ids) - sequence.prompt_len
            ids = np.tile(np.arange(self.vocabulary - 1, self.vocabulary - 1 - k, -1, dtype=np.int32), (length, 1))
            zeros = np.zeros(length, np.float32)
            yield index, TopTokens(zeros, zeros, ids, np.zeros((length, k), np.float32))


def problem(solution: str, question: str = "What is 2 ?") -> Problem:
    return Problem(f"{question}{solution}", question, "5", solution)


def test_a_given_response_ends_in_the_turn_s_end() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = ENDED.replace("END", "<pad>")
    unit = annotated([problem("so 5")], tokenizer=tokenizer, eos=(PAD, EOS))
    assert unit.rows[0].response_ids.tolist() == [WORDS.index("so"), WORDS.index("5"), PAD]
    assert unit.rows[0].finish == "stop"


def test_without_an_end_of_its_tokenizer_a_given_response_ends_in_the_model_s() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    unit = annotated([problem("so 5")], tokenizer=tokenizer, eos=(EOS,))
    assert unit.rows[0].response_ids.tolist()[-1] == EOS


def test_solutions_that_the_tokenizer_cannot_spell_are_skipped_and_counted() -> None:
    problems = [problem("so 5"), problem("seven"), problem("2 <eos> 5"), problem("")]
    unit = annotated(problems, tokenizer=make_tokenizer())
    statuses = [record.status for record in unit.problems]
    assert statuses == [
        "annotated",
        "solution not encodable: the tokenizer cannot spell this text",
        "solution not encodable: it spells a special token, which this tokenizer cannot encode as text",
        "no solution given",
    ]
    assert {unit.counts[status] for status in statuses} == {1}
    assert len(unit.rows) == 1


@pytest.mark.parametrize("text", ["a <eos> b", "<bos>x", "<pad><pad>", "é\N{GRINNING FACE}  \n<eos"])
def test_no_text_becomes_a_control_token_and_all_of_it_survives(text: str) -> None:
    tokenizer = byte_tokenizer()
    controls = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    ids = response_ids(tokenizer, text, ends=())
    assert not controls & set(ids)
    assert decode(tokenizer, ids) == text
    for prompt in (CHAT, Plain(template="Q: {question}\n")):
        plain, hostile = prompt.ids(tokenizer, "xy"), prompt.ids(tokenizer, f"x{text}y")
        for control in controls:
            assert hostile.count(control) == plain.count(control)
        assert f"x{text}y" in tokenizer.decode(hostile)
    assert encoded(tokenizer, "<eos>") == [tokenizer.eos_token_id]  # no setting of the last call stays behind


def test_special_tokens_that_are_part_of_answers_stay() -> None:
    tokenizer = byte_tokenizer()
    ids = response_ids(tokenizer, "<answer>5", ends=())
    assert ids[0] == tokenizer.convert_tokens_to_ids("<answer>")
    spelt = response_ids(tokenizer, "<answer>5", ends=ids[:1])  # one that ends responses is a control token
    assert ids[0] not in spelt


def test_a_question_whose_special_tokens_cannot_be_spelt_is_skipped_and_counted() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(TextError, match="special token"):
        CHAT.ids(tokenizer, "What <eos> is 2 ?")
    unit = annotated([problem("so 5", "What <eos> is 2 ?"), problem("so 5")], tokenizer=tokenizer)
    assert [record.status for record in unit.problems] == [
        "question not encodable: it spells a special token, which this tokenizer cannot encode as text",
        "annotated",
    ]


def test_padding_of_the_vocabulary_is_no_alternative() -> None:
    tokenizer = make_tokenizer()
    names = len(WORDS)
    engine = Scored(names + 6)
    unit = annotated(
        [problem("so 5")], tokenizer=tokenizer, engine=engine, padding_ids=frozenset(range(names, names + 6))
    )
    assert unit.rows[0].alt_ids.max() < names
    assert engine.asked == [2, 8]
    top = TopTokens(np.zeros(1), np.zeros(1), np.array([[9, 3, 8, 4]]), np.zeros((1, 4)))
    ids, _ = alternatives(np.array([3], np.int32), top, k=1, eos_ids=(), padding_ids={8, 9})
    assert ids.tolist() == [[4]]
    padded = random_llama(vocab=names + 6)
    facts = LazyModel.of(padded, tokenizer, spec=ModelSpec(name="padded", path="package:tiny_arith")).facts
    assert facts.unnamed_ids == frozenset(range(names, names + 6))


# Files of a model


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 3237824\n"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: (f / "model.safetensors").write_text(POINTER), r"model\.safetensors is a Git LFS pointer"),
        (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a Git LFS pointer"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1000]),
            r"model\.safetensors is damaged: [\d,]+ bytes where its header says [\d,]+; get the file again",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "3 bytes do not hold the header"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is damaged: not JSON"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one", "b": "two"}}'),
            "2 of the 2 weight files .* are missing, first: one",
        ),
    ],
    ids=["pointer", "pointer of the tokenizer", "cut off", "stump", "no JSON", "missing part"],
)
def test_a_damaged_file_is_named(folder: Path, spoil: Edit, message: str) -> None:
    spoil(folder)
    for load in (load_tokenizer, load_causal_lm):
        with pytest.raises(ModelError, match=message):
            load(spec(folder))


def test_a_token_without_a_row_is_refused_but_padding_needs_none(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(spec(folder)).pad_token_id == len(WORDS)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"ids up to {len(WORDS) + 1} \('<think>'\).*{len(WORDS)} rows"):
        load_tokenizer(spec(folder))


def test_a_generation_config_that_contradicts_itself_is_exported_all_the_same(folder: Path, tmp_path: Path) -> None:
    edit_json(
        folder / "generation_config.json", temperature=0.7, top_p=0.9, do_sample=False, _from_model_config="absent"
    )
    model = load_causal_lm(spec(folder, eos_tokens=["then"]))
    require_exportable(model, make_tokenizer())
    assert eos_ids(model, make_tokenizer()) == (EOS, WORDS.index("then"))
    again = load_causal_lm(spec(export(model, make_tokenizer(), folder=tmp_path / "export")))
    assert eos_ids(again, make_tokenizer()) == (EOS, WORDS.index("then"))


def test_what_cannot_be_exported_says_so_at_once() -> None:
    model = make_llama()
    model.generation_config.temperature = 0.7
    with pytest.raises(ValueError, match="could not be exported"):
        require_exportable(model, make_tokenizer())


def test_the_end_that_is_advised_can_be_given(folder: Path) -> None:
    """Where neither model nor tokenizer has an end, model.eos_tokens is the advice, and works."""
    edit_json(folder / "config.json", eos_token_id=None)
    edit_json(folder / "generation_config.json", eos_token_id="absent")
    edit_json(folder / "tokenizer_config.json", eos_token="absent")
    tokenizer = load_tokenizer(spec(folder))
    with pytest.raises(ModelError, match=r"name one in model\.eos_tokens"):
        eos_ids(load_causal_lm(spec(folder)), tokenizer)
    assert eos_ids(load_causal_lm(spec(folder, eos_tokens=["<eos>"])), tokenizer) == (EOS,)
    assert eos_ids(load_causal_lm(spec(folder), ends=[None, EOS]), tokenizer) == (EOS,)


def test_a_tokenizer_is_what_its_file_says_whatever_the_model_s_type(folder: Path) -> None:
    """For a Qwen2 model transformers builds Qwen2's rules around any vocabulary; nothing would be spelt right."""
    config = transformers.Qwen2Config(**SMALL | {"vocab_size": len(WORDS)}, **HEADS)
    config.save_pretrained(folder)
    with pytest.warns(UserWarning, match=r"Qwen2Tokenizer encodes text differently than tokenizer\.json"):
        tokenizer = load_tokenizer(spec(folder))
    assert encoded(tokenizer, "What is 2 + 3") == [WORDS.index(word) for word in ("What", "is", "2", "+", "3")]


# Architectures

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config, reason",
    [
        (transformers.Gemma2Config(**SMALL, **HEADS, sliding_window=8), r"soft-capping.*=eager engine=reference"),
        (
            transformers.BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2),
            "ALiBi.*=eager engine=reference",
        ),
        (
            transformers.GPTJConfig(vocab_size=32, n_embd=16, n_layer=1, n_head=2),
            "in its own code.*=eager engine=reference",
        ),
        (transformers.T5Config(vocab_size=32, d_model=16), "an encoder and a decoder"),
    ],
    ids=["gemma2", "bloom", "gpt-j", "t5"],
)
def test_a_model_is_refused_with_the_reason_before_its_weights_are_read(
    config: Any, reason: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=reason):
        load_causal_lm(spec(tmp_path))


@pytest.mark.parametrize(
    "config, shared, continuous, packed",
    [
        (transformers.MambaConfig(**SMALL), "a recurrent state", "a recurrent state", "a recurrent state"),
        (transformers.Gemma2Config(**SMALL, **HEADS, sliding_window=8), "soft-capping.*a window of 8 tokens", "", ""),
        (transformers.MistralConfig(**SMALL, **HEADS, sliding_window=64), "", "", ""),
        (transformers.Lfm2Config(**SMALL, **HEADS, layer_types=["conv", "full_attention"]), *["a recurrent state"] * 3),
        (transformers.BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2), *["ALiBi"] * 3),
        (transformers.GPTJConfig(vocab_size=32, n_embd=16, n_layer=1, n_head=2), "", "attention code of its own", ""),
        (
            transformers.Llama4TextConfig(
                **SMALL, **HEADS, attention_chunk_size=8, layer_types=["chunked_attention"] * 2
            ),
            *["chunks of 8 tokens"] * 3,
        ),
        (transformers.LlamaConfig(**SMALL, **HEADS), "", "", ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, transformers.PreTrainedConfig) else "",
)
def test_what_an_engine_or_a_layout_cannot_do_is_said_with_one_that_can(
    config: Any, shared: str, continuous: str, packed: str
) -> None:
    for engine, reason in (("shared_prefix", shared), ("continuous", continuous), ("reference", ""), ("vllm", "")):
        if reason:
            with pytest.raises(EngineError, match=rf"engine={engine} cannot decode.*{reason}.*use engine=reference"):
                require_decodes(engine, config)
        else:
            require_decodes(engine, config)
    if packed:
        with pytest.raises(ModelError, match=rf"compute\.layout=packed.*{packed}.*set compute\.layout=padded"):
            require_packable(config)
    else:
        require_packable(config)


def test_soft_capping_is_not_left_out_in_silence() -> None:
    """With small scores it changes next to nothing, so that no numerical check would see it."""
    config = transformers.Gemma2Config(**SMALL, **HEADS, head_dim=8, layer_types=["full_attention"] * 2)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(EngineError, match=r"soft-capping of the scores.*use engine=reference"):
        SharedPrefixEngine(model, (2,))


@pytest.mark.parametrize("window", [40, 64])
def test_forks_share_keys_up_to_the_length_of_a_window(window: int) -> None:
    """Up to there it hides nothing; a longer row is refused with its lengths, but by the reference engine."""
    config = transformers.MistralConfig(**SMALL, **HEADS, max_position_embeddings=64, sliding_window=window)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    engine = SharedPrefixEngine(model, (99,))
    assert greedy(engine, [[3, 4, 5]], new=37) == [plain_greedy(model, [3, 4, 5], new=37)]
    if window == 40:
        with pytest.raises(
            EngineError, match="attend to 40 at most: prompt and max_new_tokens add up to 53, expected at most 40"
        ):
            greedy(engine, [[3, 4, 5]], new=50)
        assert greedy(ReferenceEngine(model, (99,)), [[3, 4, 5]], new=50) == [plain_greedy(model, [3, 4, 5], new=50)]


def long_rope(kind: str) -> Any:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "dynamic":
        config = transformers.LlamaConfig(**SMALL, **HEADS, **ids, max_position_embeddings=32, rope_parameters=rope)
    else:
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 32}
        config = transformers.Phi3Config(
            **SMALL,
            **HEADS,
            **ids,
            max_position_embeddings=256,
            original_max_position_embeddings=32,
            sliding_window=None,
            rope_parameters=rope,
        )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    return model


def greedy(engine: Engine, prompts: Sequence[list[int]], *, new: int) -> list[list[int]]:
    sequences = [TokenSequence(np.array(prompt, np.int32), len(prompt)) for prompt in prompts]
    forks = [Fork(sequence, sequence.prompt_len, None, GREEDY, i) for i, sequence in enumerate(sequences)]
    found = dict(engine.run(ListSource(forks), budget=Budget(new)))
    return [found[i].ids.tolist() for i in range(len(prompts))]


def plain_greedy(model: Any, prompt: list[int], *, new: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("engine", [ReferenceEngine, SharedPrefixEngine])
def test_rotary_embeddings_that_depend_on_the_length_end_the_context(kind: str, engine: Any) -> None:
    """Up to the switch the engines compute what a plain pass does; a batch that would pass it is refused."""
    model = long_rope(kind)
    assert context_length(model.config) == 32
    prompts = [[5, 9, 11, 7], [3, 4, 8, 6, 12, 13, 14, 20, 21, 22, 23, 24]]
    assert greedy(engine(model, (99,)), prompts, new=20) == [plain_greedy(model, p, new=20) for p in prompts]
    with pytest.raises(ModelError, match=r"add up to 33 tokens, and the model takes 32 \(beyond 32 its rotary"):
        greedy(engine(model, (99,)), prompts, new=21)
    with pytest.raises(ModelError, match=r"response b and its prompt have 33 tokens, the model takes 32 .*; shorten"):
        require_room(model.config, lengths={"a": 32, "b": 33}, remedy="shorten")
