"""cft rl with TRL (make test-rl): the curves of TRL run by hand, resumed runs, exports, records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("trl")

from trl import GRPOTrainer

from cft.errors import Interrupted
from cft.models.load import locate
from cft.report.read import collect
from cft.rl.critical import CriticalTokens
from cft.stages.evaluate import evaluate
from cft.stages.rl import rl
from cft.training.callbacks.interruption import Interruption
from cft.types import Outcome
from cft.verifiers.grader import Grader
from experiments.rl_by_hand import by_command, by_hand, differences
from tests.stage import asked

pytestmark = pytest.mark.slow
FEW = ("rollout.problems_per_step=2", "rollout.num_generations=4", "micro_batch_size=8", "rollout.max_new_tokens=48")
UNTESTED = ("evaluation.problems=0", "device=cpu", "optimizer.lr=1e-4")


def curve(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        return [float(row[name]) for row in csv.DictReader(handle) if row.get(name)]


def run(folder: Path, *words: str) -> Path:
    rl(*asked("rl", *FEW, *words, folder=folder))
    return folder


def test_the_curves_are_those_of_trl_by_hand(tmp_path: Path) -> None:
    steps = 20
    ours = by_command(steps=steps, seed=0, folder=tmp_path / "cft")
    theirs = by_hand(steps=steps, seed=0, folder=tmp_path / "trl")
    assert max(curve(tmp_path / "cft", "train/undecided_rate")) > 0  # neither gives those a reward
    assert differences(ours, theirs) == {"reward": 0.0, "entropy": 0.0}
    assert len({entry["reward"] for entry in theirs}) > 3


def test_a_run_that_was_told_to_end_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", *UNTESTED, "steps=6")
    asked_times = iter([False, False, False, True])
    real = Interruption.reasons

    def reasons(self: Interruption) -> list[bool]:
        found = real(self)
        return [next(asked_times, True), *found[1:]]

    # The stage looks once before the first step, the callback after each one.
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "reasons", reasons)
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", *UNTESTED, "steps=6")
    assert len(curve(tmp_path / "cut", "train/reward")) == 3
    run(tmp_path / "cut", *UNTESTED, "steps=6")
    for name in ("train/reward", "train/entropy", "train/loss"):
        assert curve(tmp_path / "cut", name) == curve(whole, name)
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in (whole, tmp_path / "cut")]
    assert weights[0] == weights[1]


def test_the_loss_is_that_of_the_tokens_that_keep_their_advantage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[dict[str, Any], torch.Tensor]] = []
    real = CriticalTokens.spread

    def spread(self: CriticalTokens, found: dict[str, Any], *words: Any, **named: Any) -> torch.Tensor:
        advantages = real(self, found, *words, **named)
        steps.append((dict(found), advantages))
        return advantages

    monkeypatch.setattr(CriticalTokens, "spread", spread)
    folder = run(tmp_path / "run", *UNTESTED, "steps=2", "seed=3", "grpo.token_mask=critical", "max_grad_norm=1e9")
    found, advantages = steps[0]
    kept = found["completion_mask"]
    policy = AutoModelForCausalLM.from_pretrained(locate("package:tiny_arith"), dtype=torch.float32)
    ids = torch.cat([found["prompt_ids"], found["completion_ids"]], 1)
    seen = torch.cat([found["prompt_mask"], kept], 1)
    places = (seen.cumsum(1) - 1).clamp(min=0)  # prompts are padded on the left
    length = kept.shape[1]
    logits = policy(ids, attention_mask=seen, position_ids=places).logits[:, -length - 1 : -1]
    logp = logits.log_softmax(-1).gather(-1, found["completion_ids"][..., None])[..., 0]
    loss = -(advantages * (logp - logp.detach()).exp() * kept).sum() / kept.sum()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    right = found["advantages"] > 0
    assert right.any()
    assert 0 < (advantages[right] != 0).sum() < kept[right].sum() / 2
    assert ((advantages[~right & (found["advantages"] != 0)] != 0) == kept[~right & (found["advantages"] != 0)]).all()
    assert curve(folder, "train/loss")[0] == pytest.approx(loss.item(), rel=1e-4, abs=1e-7)
    assert curve(folder, "train/grad_norm")[0] == pytest.approx(norm.item(), rel=1e-4)
    assert curve(folder, "train/annotation_tokens")[0] > 0


def test_the_reward_is_reduced_by_the_level_of_the_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards by hand from what TRL decoded: a level from the prompt's last words, and 1 - 0.5 * scale * length / 48."""
    sentences = {" Now find the final number.": 1.0, " Then the final number.": 0.5, " Now compute so far.": 0.0}
    words = [
        f"reward.levels.{name}.{key}={value}"
        for name, (text, scale) in zip(("short", "moderate", "long"), sentences.items(), strict=True)
        for key, value in (("prompt", f"'{text}'"), ("penalty_scale", scale))
    ]
    batches: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    real, graded = GRPOTrainer._generate_and_score_completions, Grader.__call__

    def score(self: Any, inputs: Any) -> dict[str, Any]:
        batches.append(real(self, inputs))
        return batches[-1]

    def grade(self: Grader, items: Any) -> Any:
        found = graded(self, items)
        outcomes.extend(outcome for outcome, _ in found)
        return found

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", score)
    monkeypatch.setattr(Grader, "__call__", grade)
    options = ("reward/levels=tldr", "reward.length_penalty=0.5", "steps=4", "save_every_n_steps=4", "seed=1")
    folder = run(tmp_path / "run", *UNTESTED, *options, *words)
    tokenizer = AutoTokenizer.from_pretrained(locate("package:tiny_arith"))
    expected, scales = [], []
    for batch in batches:
        prompts = tokenizer.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
        lengths = batch["completion_mask"].sum(1).tolist()
        scales += [next(scale for text, scale in sentences.items() if text in prompt) for prompt in prompts]
        step = list(zip(outcomes[len(expected) * 8 :][:8], lengths, scales[-8:], strict=True))
        rewards = [1 - 0.5 * s * n / 48 if o == Outcome.RIGHT else 0.0 for o, n, s in step if o != Outcome.UNDECIDED]
        expected.append(sum(rewards) / len(rewards))
    assert len(set(scales)) == 3
    assert curve(folder, "train/reward") == pytest.approx(expected, rel=8 * torch.finfo(torch.float32).eps)
    assert len({value for value in expected if 0 < value < 1}) > 1
    assert "moderate 0.5 with ' Then the final number.'" in (folder / "export" / "README.md").read_text()


def test_what_it_leaves_is_evaluated_and_reported(tmp_path: Path) -> None:
    first = run(tmp_path / "first", *UNTESTED, "steps=2", "reward.length_penalty=0.5", "grpo.beta=0.04")
    few = ("evaluation.problems=4", "evaluation.num_samples=2")
    settings = ("device=cpu", "steps=2", "grpo.loss_type=dr_grpo", "grpo.num_iterations=2", "grpo.epsilon_high=0.28")
    options = ("grpo.top_entropy_quantile=0.2", "save_every_n_steps=2", f"checkpoint={first}")
    second = run(tmp_path / "second", *few, *settings, *options)
    results: dict[str, Any] = json.loads((second / "results.json").read_text())
    (parent,) = results["lineage"]["inputs"]
    assert parent["came_from"]["run"] == "first"
    assert results["arm"]["rl"] == "dapo, dr_grpo"
    assert results["settings"]["start.reward.length_penalty"] == 0.5
    assert "cft rl" in (second / "export" / "README.md").read_text()
    tested = tmp_path / "tested"
    words = (f"checkpoint={second}", "limit=4", "num_samples=2", "device=cpu")
    accuracy = evaluate(*asked("evaluate", *words, folder=tested))
    assert accuracy == results["metrics"]["eval/accuracy"]["value"]
    runs = collect([second, tested])
    assert {entry.results.identity for entry in runs} == {results["identity"]}
    assert all(entry.logs == second for entry in runs)
    with pytest.raises(Exception, match=r"holds a run of another configuration that has finished"):
        run(second, *few, *settings, *options, "seed=3")
