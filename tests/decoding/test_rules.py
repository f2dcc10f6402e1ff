"""Decoding rules: the hook is the same in both engines, near ties included, and each rule does what its formula says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cft.annotation.counterfactual import ListSource
from cft.decoding import (
    Bound,
    BudgetForcing,
    Context,
    MinLength,
    Rule,
    StopScaling,
    Tcd,
    ThinkBrake,
    Words,
    bound,
    fingerprint,
    no_rule,
)
from cft.engines.continuous import Continuous
from cft.engines.factory import EngineError
from cft.engines.reference import Ids, ReferenceEngine
from cft.engines.refusals import require_adjusts
from cft.engines.sampling import adjusted, choose, uniforms
from cft.engines.server import Server
from cft.engines.shared_prefix import SharedPrefix, SharedPrefixEngine
from cft.engines.vllm import Vllm
from cft.errors import BadValue
from cft.types import GREEDY, Budget, Completion, Fork, Sampling, ThinkingTags, TokenSequence
from tests.command_lines import mistakes
from tests.fakes import random_llama

EOS = (1, 2)
OPEN, CLOSE, STOP = 3, 4, 5
LETTERS = {"A": 10, "B": 11, "C": 12}
BUDGET = Budget(12)
MODEL, EXACT = random_llama(), random_llama().double()


class Vocabulary:
    """60 tokens: two ends, two tags, a sentence end, letters with and without a space; the others are words."""

    name_or_path, unk_token_id = "vocabulary", 0

    def __init__(self) -> None:
        self.texts = {i: f" w{i}" for i in range(60)} | {OPEN: "<think>", CLOSE: "</think>", STOP: ".\n\n", 0: "<unk>"}
        self.texts |= {i: text for text, i in LETTERS.items()} | {i + 10: f" {text}" for text, i in LETTERS.items()}
        self.ids = {text: i for i, text in self.texts.items()}

    def convert_tokens_to_ids(self, text: str) -> int:
        return self.ids.get(text, 0)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.texts[i] for i in ids)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [self.ids[text]] if text in self.ids else [6, 7]}


def words(*, choices: str = "", tags: tuple[str, str] = ("<think>", "</think>")) -> Words:
    return Words(Vocabulary(), EOS, ThinkingTags(*tags), choices)  # type: ignore[arg-type]


def forks(rule: Rule | None, count: int = 8) -> list[Fork]:
    rng, adjustment, found = np.random.default_rng(0), bound(rule, words()), []
    for i in range(count):
        ids = rng.integers(5, 60, int(rng.integers(2, 12))).astype(np.int32)
        if i % 3:
            ids[-1] = OPEN  # thinking from the start
        how = Sampling(adjustment=adjustment)
        if i % 2:
            how = Sampling(1.0, 0.9 if i % 4 == 1 else 1.0, 7, f"fork{i}", adjustment=adjustment)
        found.append(Fork(TokenSequence(ids, len(ids)), len(ids), None, how, i))
    return found


def decoded(kind: Any, given: list[Fork], **options: Any) -> dict[Any, Completion]:
    return dict(kind(MODEL, EOS, **options).run(ListSource(given), budget=BUDGET))


def float64(formula: Callable[[Tensor, list[int], int], Tensor]) -> dict[Any, list[int]]:
    """Ids of all forks by passes without a cache in float64, a formula for probabilities of one row (any scale) and the
    definition of sampling, nothing of which is the engines'."""
    model, found = EXACT, {}
    for fork in forks(None):
        ids, prompt_len = fork.sequence.ids.tolist(), fork.sequence.prompt_len
        random = uniforms(fork.sampling, BUDGET.max_new_tokens)
        while len(ids) - prompt_len < BUDGET.max_new_tokens and (ids[-1] not in EOS or len(ids) == prompt_len):
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, -1].clone()
                score = formula(logits, ids, prompt_len)
            if fork.sampling.temperature == 0:
                ids.append(int(score.argmax()))
                continue
            p = score.clamp(min=0) / score.clamp(min=0).sum()
            order = p.argsort(descending=True, stable=True)
            outside = p[order].cumsum(0) - p[order] >= fork.sampling.top_p
            p[order[outside]] = 0
            ids.append(int(torch.searchsorted(p.cumsum(0) / p.sum(), random[len(ids) - prompt_len], right=True)))
        found[fork.key] = ids[prompt_len:]
    return found


def thinking(ids: list[int]) -> int | None:
    tags = [i for i, token in enumerate(ids) if token in (OPEN, CLOSE)]
    return len(ids) - 1 - tags[-1] if tags and ids[tags[-1]] == OPEN else None


def tcd(penalty: float | None, tokens: int | None) -> Callable[[Tensor, list[int], int], Tensor]:
    def formula(z: Tensor, ids: list[int], prompt_len: int) -> Tensor:
        if tokens is not None and len(ids) - prompt_len >= tokens:
            return torch.eye(60, dtype=z.dtype)[EOS[0]]
        s = z.softmax(-1)
        banned = torch.ones(60, dtype=torch.bool)
        banned[list(LETTERS.values())] = False
        s[banned] -= math.inf if penalty is None else penalty
        return s

    return formula


def scaled(end: str, scale: float, after: int) -> Callable[[Tensor, list[int], int], Tensor]:
    def formula(z: Tensor, ids: list[int], prompt_len: int) -> Tensor:
        length = len(ids) - prompt_len if end == "eos" else thinking(ids)
        for token in EOS if end == "eos" else (CLOSE,):
            z[token] += scale if length is not None and length >= after else 0
        return z.softmax(-1)

    return formula


def at_least(tokens: int) -> Callable[[Tensor, list[int], int], Tensor]:
    def formula(z: Tensor, ids: list[int], prompt_len: int) -> Tensor:
        return torch.where(
            torch.isin(torch.arange(60), torch.tensor(EOS)) & (len(ids) - prompt_len < tokens), 0, z.softmax(-1)
        )

    return formula


def closed(when: Callable[[Tensor, list[int], int], bool]) -> Callable[[Tensor, list[int], int], Tensor]:
    def formula(z: Tensor, ids: list[int], prompt_len: int) -> Tensor:
        length = thinking(ids)
        stop = length is not None and when(z.log_softmax(-1), ids, length)
        return torch.eye(60, dtype=z.dtype)[CLOSE] if stop else z.softmax(-1)

    return formula


def ends_sentence(token: int) -> bool:
    return token == STOP or (token > 12 and token % 10 in (4, 8))


LIST = list(LETTERS)
CASES: dict[str, tuple[Rule, Callable[[Tensor, list[int], int], Tensor]]] = {
    "tcd_every_step": (Tcd(allowed=LIST, tokens=None), tcd(0.4, None)),
    "tcd_small_penalty": (Tcd(allowed=LIST, penalty=0.05, tokens=None), tcd(0.05, None)),
    "tcd_one_token": (Tcd(allowed=LIST), tcd(0.4, 1)),
    "tcd_hard": (Tcd(allowed=LIST, penalty=None, tokens=5), tcd(None, 5)),
    "stop_scaling": (StopScaling(scale=3.0, after=4), scaled("eos", 3.0, 4)),
    "stop_scaling_thinking": (StopScaling(end="thinking", scale=4.0), scaled("thinking", 4.0, 0)),
    "min_length": (MinLength(tokens=11), at_least(11)),
    "budget_forcing": (BudgetForcing(budget=6), closed(lambda p, ids, n: n >= 6)),
    "think_brake": (
        ThinkBrake(margin=9.0, sentence_ends=["4", "8", ".\n\n"]),
        closed(lambda p, ids, n: n > 0 and ends_sentence(ids[-1]) and float(p.max() - p[CLOSE]) <= 9.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_both_engines_do_what_the_formula_says_at_every_step(name: str) -> None:
    rule, formula = CASES[name]
    expected = float64(formula)
    plain = {key: c.ids.tolist() for key, c in decoded(SharedPrefixEngine, forks(None)).items()}
    assert expected != plain
    for kind in (ReferenceEngine, SharedPrefixEngine):
        assert {key: c.ids.tolist() for key, c in decoded(kind, forks(rule)).items()} == expected


def test_what_settles_a_near_tie_sees_the_adjusted_numbers() -> None:
    """With every token re-scored ids stay the same: the pass that settles a tie applies the rule, too."""
    for rule in (CASES["tcd_every_step"][0], CASES["stop_scaling"][0], CASES["think_brake"][0]):
        expected = decoded(SharedPrefixEngine, forks(rule))
        settled = decoded(SharedPrefixEngine, forks(rule), tie_margin=1e9)
        assert {k: c.ids.tolist() for k, c in settled.items()} == {k: c.ids.tolist() for k, c in expected.items()}
        assert sum(c.num_ties_rescored for c in settled.values()) > 8


def test_rows_with_and_without_a_rule_share_a_batch() -> None:
    rule = CASES["stop_scaling"][0]
    given, plain = forks(rule, 10), forks(None, 10)
    mixed = [given[i] if i % 2 else plain[i] for i in range(10)]
    ruled, free = decoded(SharedPrefixEngine, given), decoded(SharedPrefixEngine, plain)
    for key, completion in decoded(SharedPrefixEngine, mixed).items():
        np.testing.assert_array_equal(completion.ids, (ruled if key % 2 else free)[key].ids)


@dataclass(frozen=True, slots=True)
class Refusing(Rule):
    name: ClassVar[str] = "refusing"

    def adjust(self, logits_NV: Tensor, context: Context) -> Tensor:
        raise AssertionError("called")


def test_without_a_rule_logits_are_what_they_were() -> None:
    """The same choices from the same tensor, and no rule is asked: nothing is copied or looked at."""
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    tokens, _ = choose(logits, sampling=[GREEDY] * 3, uniform=[0.0] * 3, tie_margin=1e-3, written=())
    assert tokens == before.argmax(-1).tolist()
    assert torch.equal(logits, before)
    assert no_rule() is None
    assert bound(None, words()) is None
    with pytest.raises(AssertionError, match="called"):
        choose(
            logits,
            sampling=[Sampling(adjustment=Bound(Refusing(), words()))] * 3,
            uniform=[0.0] * 3,
            tie_margin=0.0,
            written=[Ids([7], 1)] * 3,
        )


def test_samples_follow_the_penalized_distribution() -> None:
    """Probabilities, not logits: a sample has the probability max(p - penalty, 0) over their sum."""
    z = torch.full((1, 60), -60.0, dtype=torch.float64)
    z[0, [LETTERS["A"], LETTERS["B"], 30, 31]] = torch.tensor([0.15, 0.05, 0.7, 0.1], dtype=torch.float64).log()
    how = Sampling(1.0, adjustment=bound(Tcd(allowed=["A", "B"]), words()))
    found, _ = adjusted(z, sampling=[how], written=[Ids([7], 1)], tie_margin=0.0)
    p = found.softmax(-1)[0]
    expected = torch.tensor([0.15, 0.05, 0.3, 0.0], dtype=torch.float64) / 0.5
    torch.testing.assert_close(p[[LETTERS["A"], LETTERS["B"], 30, 31]], expected, atol=1e-12, rtol=1e-12)


def test_a_choice_at_a_rule_s_threshold_is_near() -> None:
    """Adjusted logits are far apart there, and an error of 1e-4 in a logit turns the choice."""
    z = torch.full((2, 60), -20.0)
    z[0, [LETTERS["A"], 30, 31]] = torch.tensor([1e-4, 0.4002, 0.5997]).log()  # 30 is a little above the penalty
    z[1, [LETTERS["A"], 30]] = torch.tensor([0.2, 0.8]).log()
    how = [Sampling(adjustment=bound(Tcd(allowed=["A"]), words()))] * 2
    assert choose(z, sampling=how, uniform=[0.0] * 2, tie_margin=1e-3, written=[Ids([7], 1)] * 2)[1] == [True, False]
    assert choose(z, sampling=how, uniform=[0.0] * 2, tie_margin=0.0, written=[Ids([7], 1)] * 2)[1] == [False, False]
    z = torch.zeros(2, 60)
    z[:, 30], z[0, CLOSE] = 3.0, 2.0001
    how = [Sampling(adjustment=bound(ThinkBrake(margin=1.0, sentence_ends=[".\n\n"]), words()))] * 2
    assert choose(z, sampling=how, uniform=[0.0] * 2, tie_margin=1e-3, written=[Ids([OPEN, STOP], 1)] * 2)[1] == [
        True,
        False,
    ]


def test_a_sampled_choice_that_a_rule_forces_is_not_near() -> None:
    z, how = torch.randn(1, 60), Sampling(1.0, adjustment=bound(BudgetForcing(budget=0), words()))
    assert choose(z, sampling=[how], uniform=[0.5], tie_margin=1e-3, written=[Ids([OPEN], 1)]) == ([CLOSE], [False])


def test_broken_weights_are_not_hidden_by_a_rule() -> None:
    z, how = torch.full((1, 60), math.nan), Sampling(adjustment=bound(BudgetForcing(budget=0), words()))
    with pytest.raises(FloatingPointError):
        choose(z, sampling=[how], uniform=[0.0], tie_margin=0.0, written=[Ids([OPEN], 1)])


def test_answers_are_tokens_of_the_vocabulary() -> None:
    """Without a leading space, as the source has it, unless asked for; the verifier's letters where none are given."""
    assert Tcd(allowed=["A", "B"]).allowed_ids(words()) == [10, 11]
    assert Tcd(allowed=["A", "B"], spaced=True).allowed_ids(words()) == [10, 11, 20, 21]
    assert Tcd().allowed_ids(words(choices="ABC")) == [10, 11, 12]
    with pytest.raises(BadValue, match=r"decoding\.allowed=\[A,B,C,D\]"):
        bound(Tcd(), words())
    with pytest.raises(BadValue, match="'Z' is no token of the tokenizer of vocabulary"):
        bound(Tcd(allowed=["A", "Z"]), words())


def test_a_tag_of_several_tokens_is_refused_before_a_model_is_loaded() -> None:
    for rule in (BudgetForcing(budget=4), ThinkBrake(margin=1.0, sentence_ends=["."]), StopScaling(end="thinking")):
        with pytest.raises(BadValue, match=r"'\[/T\]' \(verify\.thinking\.close\) as one token.* writes it with 2"):
            bound(rule, words(tags=("<think>", "[/T]")))
    assert bound(StopScaling(), words(tags=("", ""))) is not None


def test_engines_that_choose_elsewhere_refuse_with_the_remedy() -> None:
    factories: tuple[Any, ...] = (
        Continuous,
        Vllm,
        Server,
    )  # their classes will do: vLLM's refuses to be made without it
    for factory in factories:
        with pytest.raises(
            EngineError, match=r"decoding=tcd: engine=\w+ .*expected engine=shared_prefix or engine=reference"
        ):
            require_adjusts(factory, rule="tcd")
        require_adjusts(factory, rule="")
        name = factory.name
        found = mistakes(
            "evaluate", f"engine={name}", "decoding=min_length", *["engine.url=[http://x]"] * (name == "server")
        )
        assert [m.partition(":")[0] for m in found] == ["engine._target_"]
    require_adjusts(SharedPrefix(), rule="tcd")


def test_a_rule_is_named_with_all_its_values() -> None:
    assert fingerprint(StopScaling(scale=2.0)) == "stop_scaling 1 (after=0, end='eos', scale=2.0)"
    assert len({fingerprint(rule) for rule, _ in CASES.values()}) == len(CASES)
