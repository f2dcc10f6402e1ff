"""grpo.token_mask=critical without TRL: which tokens of a step's responses keep their advantage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cft.cli.job import composed as inputs
from cft.config.build import build
from cft.models.lazy import LazyModel
from cft.models.load import load_tokenizer, locate
from cft.rl.critical import CriticalTokens, critical_tokens
from cft.rl.problems import Asked
from cft.types import AnnotatedResponse, Outcome
from cft.verifiers import Numeric
from cft.verifiers.grader import Grader
from tests.brute_force import BruteForce
from tests.command_lines import mistakes

EVERY = 5  # positions 0, 5, 10 ... are tried
RIGHT, WRONG = Outcome.RIGHT, Outcome.WRONG


@pytest.fixture(scope="module")
def rollouts() -> tuple[BruteForce, Asked, list[list[int]], list[Outcome]]:
    """Of two problems four sampled responses each, by plain generate."""
    cfg = inputs("rl", ["data.num_train=2"], check=False)[0]
    brute = BruteForce(Path(locate("package:tiny_arith")), max_new_tokens=cfg.rollout.max_new_tokens)
    problems = build(cfg.data).train[:2]
    prompt = build(cfg.prompt)
    prompts = {p.id: prompt.ids(brute.tokenizer, p.question) for p in problems}
    asked = Asked(problems, prompts, levels={}, left_out={})
    model: Any = brute.model
    torch.manual_seed(1)
    responses, outcomes = [], []
    for problem in problems:
        ids = torch.tensor([asked.prompts[problem.id]])
        for row in model.generate(ids, do_sample=True, num_return_sequences=4, max_new_tokens=80):
            response = row[ids.shape[1] :].tolist()
            response = response[: response.index(2) + 1]
            text = brute.tokenizer.decode(response, skip_special_tokens=True)
            responses.append(response)
            outcomes.append(RIGHT if brute.verifier(text, problem.answer).decision.value == "right" else WRONG)
    return brute, asked, responses, outcomes


def tokens_of(asked: Asked, outcomes: list[Outcome], *words: str) -> CriticalTokens:
    words_of = (
        *("grpo.token_mask=critical", "positions=stride", f"positions.every={EVERY}"),
        *("device=cpu", "rollout.num_generations=4", "rollout.problems_per_step=2", "micro_batch_size=8", *words),
    )
    cfg = inputs("rl", words_of, check=False)[0]  # its check asks for trl
    spec = build(cfg.model)
    tokenizer, prompt, verifier = load_tokenizer(spec), build(cfg.prompt), Numeric(fallback_last_number=True)
    grader = Grader(tokenizer, lambda items: [verifier(text, answer) for text, answer in items])
    policy = LazyModel(spec, tokenizer, ends=[prompt.end_id(tokenizer)], device="cpu")
    found = critical_tokens(cfg, policy, asked, prompt=prompt, grader=grader)
    found.set_outcomes(outcomes)
    return found


def spread(tokens: CriticalTokens, rollouts: Any, advantages: list[float], *, step: int = 0) -> torch.Tensor:
    brute, asked, responses, _ = rollouts
    length = max(map(len, responses))
    padded = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids in responses])
    kept = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in responses])
    found = {"completion_ids": padded, "completion_mask": kept, "advantages": torch.tensor(advantages)}
    names = [problem.id for problem in asked.problems for _ in range(4)]
    return tokens.spread(found, names, weights=brute.model.state_dict(), step=step)


def by_brute_force(brute: BruteForce, asked: Asked, i: int, ids: list[int]) -> list[float]:
    """1 for the tokens with loss of a right response."""
    problem = asked.problems[i // 4]
    prompt = asked.prompts[problem.id]
    row: Any = _Row(prompt, ids, problem.answer)
    weights = [0.0] * len(ids)
    for t, _, outcomes in brute.outcomes(row, every=EVERY):
        weights[t] = float(all(outcome in (0, -2) for outcome in outcomes))  # wrong, or cut off
    return weights


class _Row:
    def __init__(self, prompt: list[int], ids: list[int], answer: str) -> None:
        self.prompt_ids, self.response_ids, self.answer = torch.tensor(prompt), torch.tensor(ids), answer


def test_the_tokens_with_loss_are_those_of_brute_force(rollouts: Any) -> None:
    brute, asked, responses, outcomes = rollouts
    assert {RIGHT, WRONG} == set(outcomes)
    tokens = tokens_of(asked, outcomes)
    advantages = [0.5 if outcome == RIGHT else -0.25 for outcome in outcomes]
    found = spread(tokens, rollouts, advantages)
    with_loss = 0.0
    for i, (ids, outcome) in enumerate(zip(responses, outcomes, strict=True)):
        weights = by_brute_force(brute, asked, i, ids) if outcome == RIGHT else [1.0] * len(ids)
        with_loss += sum(weights) if outcome == RIGHT else 0
        expected = [advantages[i] * weight for weight in weights]
        assert found[i].tolist() == [*expected, *[0.0] * (found.shape[1] - len(ids))]
    right = outcomes.count(RIGHT)
    assert with_loss > right
    assert tokens.facts["train/annotated_responses"] == right
    assert tokens.facts["train/annotation_tokens"] > 0
    lengths = sum(len(ids) for ids, outcome in zip(responses, outcomes, strict=True) if outcome == RIGHT)
    assert tokens.facts["train/critical_fraction"] == pytest.approx(with_loss / lengths)


def test_what_is_not_tested_keeps_its_advantage(rollouts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked, responses, _ = rollouts
    outcomes = [RIGHT, RIGHT, WRONG, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT]
    advantages = [0.5, 0.5, -1.5, 0.5, 0.0, 0.0, 0.0, 0.0]  # the second group has no signal
    tokens = tokens_of(asked, outcomes, "critical.responses=2", "critical.every_n_steps=3", "critical.wrong=none")
    tested: list[list[int]] = []

    def stub(self: CriticalTokens, chosen: list[int], *_: Any, **__: Any) -> dict[int, AnnotatedResponse]:
        tested.append(list(chosen))
        return {}

    monkeypatch.setattr(CriticalTokens, "_tested", stub)
    found = spread(tokens, rollouts, advantages, step=3)
    assert tested == [[0, 1]]
    assert found[2].abs().sum() == 0  # wrong=none
    assert found[3].sum() == 0.5 * len(responses[3])
    spread(tokens, rollouts, advantages, step=4)
    assert len(tested) == 1
    assert tokens.facts == {}


def test_spans_of_a_file_are_refused() -> None:
    found = mistakes("rl", "positions=spans", "positions.file=spans.jsonl")
    assert [text.partition(":")[0] for text in found] == ["positions.file"]
