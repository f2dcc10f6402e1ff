"""cft rl without TRL: what is refused, what the reward is, which problems are asked, which arm it is. With it: test_trl.py."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import yaml

from cft.config.build import ConfigError
from cft.config.preflight import missing_inputs
from cft.data.chosen import PassRates
from cft.data.problem_rows import normalized
from cft.data.sources import arithmetic
from cft.models.load import ModelSpec, load_tokenizer
from cft.pipelines.entries import Entry, shared_with
from cft.report.arm_names import BASE, is_base, is_sft, name_of
from cft.rl.arm import arm_after, start_settings
from cft.rl.levels import Level, require_spelt
from cft.rl.problems import KnownRates, asked, rows_of
from cft.rl.reward import reward_of, verified_reward
from cft.runs.results import RunResults
from cft.runs.start import checkpoint_folder
from cft.shipped import CONF_DIR
from cft.types import Outcome
from tests.command_lines import mistakes


def test_every_mistake_is_found_before_anything_is_loaded() -> None:
    found = mistakes(
        "rl",
        *(
            "micro_batch_size=48",
            "rollout.num_generations=1",
            "data=annotated",
            "data.annotation=x",
            "grpo.loss_type=ppo",
        ),
        *("model/lora=default", "model.dtype=bfloat16", "reward.length_penalty=1.5", "save_every_n_steps=5"),
        *("grpo.num_iterations=2", "grpo.top_entropy_quantile=20"),
    )
    keys = [text.partition(":")[0] for text in found]
    assert sorted(keys) == sorted(
        [
            *("micro_batch_size", "rollout.num_generations", "data._target_", "grpo.loss_type", "model.lora"),
            *("model.dtype", "reward.length_penalty", "save_every_n_steps", "grpo.top_entropy_quantile"),
        ]
    )


def test_loss_types_that_need_more_say_so() -> None:
    found = mistakes("rl", "grpo.loss_type=cispo", "grpo.epsilon_high=0.28")
    assert [text.partition(":")[0] for text in found] == ["grpo.epsilon_high"]
    assert mistakes("rl", "grpo.loss_type=cispo", "grpo.epsilon_high=5.0") == []


def test_without_trl_the_install_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(missing_inputs({"grpo": {}, "resume": ""})) == [
        ("grpo", "needs the package trl, which is not installed: pip install 'critical-token-finetuning[rl]'")
    ]
    assert list(missing_inputs({"resume": ""})) == []


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"neither a run folder of cft train or cft rl .* nor a Hugging Face model"):
        checkpoint_folder(str(tmp_path))


# ---- the reward


def test_only_right_responses_pay_for_their_length_and_undecided_ones_have_no_reward() -> None:
    def reward(outcome: Outcome, penalty: float) -> float | None:
        return reward_of(outcome, tokens=32, max_new_tokens=128, length_penalty=penalty)

    assert reward(Outcome.RIGHT, 0.0) == 1.0
    assert reward(Outcome.RIGHT, 0.5) == 1 - 0.5 * 0.25
    assert reward(Outcome.WRONG, 0.5) == 0.0
    assert reward(Outcome.CUT_OFF, 0.5) == 0.0
    assert reward(Outcome.UNDECIDED, 0.5) is None


def test_rates_are_of_what_was_decided() -> None:
    outcomes = [Outcome.RIGHT, Outcome.UNDECIDED, Outcome.WRONG, Outcome.RIGHT]
    seen: list[str] = []

    def grader(items: Any) -> list[tuple[Outcome, str]]:
        seen.extend(completion.finish for completion, _ in items)
        return [(outcome, "") for outcome in outcomes]

    grading: Any = grader
    logged: dict[str, float] = {}
    ids = [[5, 2], [5], [2], [7, 8]]
    further: dict[str, Any] = {"log_metric": logged.__setitem__, "prompts": [], "completions": []}

    def rewards(length_penalty: float, scales: list[float]) -> list[float | None]:
        reward = verified_reward(grading, ends={2}, max_new_tokens=10, length_penalty=length_penalty)
        return reward(completion_ids=ids, answer=["1"] * 4, penalty_scale=scales, **further)

    # By hand, 1 - 0.5 * scale * 2 / 10: the scale of each response's own problem.
    assert rewards(0.5, [1.0, 1.0, 1.0, 0.5]) == [0.9, None, 0.0, 0.95]
    assert rewards(0.5, [0.0, 1.0, 1.0, 1.0]) == [1.0, None, 0.0, 0.9]
    seen.clear()
    assert rewards(0.0, [1.0] * 4) == [1.0, None, 0.0, 1.0]
    assert seen == ["stop", "length", "stop", "length"]
    assert logged == {"undecided_rate": 0.25, "pass_rate": pytest.approx(2 / 3)}


# ---- the problems


class _Words:
    """A prompt of as many tokens as the question has words."""

    def ids(self, tokenizer: Any, question: str) -> list[int]:
        return [*range(len(question.split()))]


def _asked(**changes: Any) -> Any:
    data = arithmetic(name="a", seed=0, num_train=20, num_validation=1, num_test=1)
    prompt: Any = _Words()
    values: dict[str, Any] = {
        "limit": -1,
        "held_out": frozenset(),
        "context": 500,
        "max_new_tokens": 100,
        "at_least": 8,
    }
    return data, asked(data, prompt=prompt, tokenizer=prompt, **{**values, **changes})


def test_problems_of_the_tests_are_not_trained_on() -> None:
    data, everything = _asked()
    held_out = frozenset(normalized(problem.question) for problem in data.train[:3])
    _, found = _asked(held_out=held_out)
    assert found.problems == everything.problems[3:]
    assert found.left_out == {"held out for the tests": 3}
    rows = rows_of(found)
    assert rows["prompt"] == [problem.id for problem in data.train[3:]]
    assert set(rows["penalty_scale"]) == {1.0}  # no levels
    assert found.fingerprint() != everything.fingerprint()


def test_problems_are_chosen_by_the_pass_rates_of_their_rollouts_before_the_limit() -> None:
    """One right response is enough; of an unknown rate, or of none, a problem is left out."""
    data, _ = _asked()
    rates = [0.0, 0.125, 1.0, float("nan"), 0.5, *[0.0] * 10]
    known = {problem.id: rate for problem, rate in zip(data.train[:15], rates, strict=True)}
    bounds = PassRates(0.001, 1.0)
    _, found = _asked(rates=KnownRates(known, bounds), at_least=2)
    assert found.problems == tuple(data.train[n] for n in (1, 2, 4))
    assert found.left_out == {"without a pass rate from 0.001 to 1.0": 17}
    _, few = _asked(rates=KnownRates(known, bounds), at_least=2, limit=2)
    assert few.problems == found.problems[:2]


def test_each_problem_has_the_sentence_and_the_scale_of_its_level() -> None:
    """By its id: problems that are left out, and other levels' names in another order, change nothing."""
    levels = {
        "short": Level(prompt=" a", penalty_scale=1.0),
        "moderate": Level(prompt=" a b", penalty_scale=0.5),
        "long": Level(prompt=" a b c", penalty_scale=0.0),
    }
    words = {1.0: 1, 0.5: 2, 0.0: 3}
    data, plain = _asked()
    _, found = _asked(levels=levels)
    scales = rows_of(found)["penalty_scale"]
    assert set(scales) == set(words)
    for problem, scale in zip(found.problems, scales, strict=True):
        assert len(found.prompts[problem.id]) == len(plain.prompts[problem.id]) + words[scale]
    held_out = frozenset(normalized(problem.question) for problem in data.train[:3])
    _, fewer = _asked(levels=dict(reversed(levels.items())), held_out=held_out)
    assert rows_of(fewer)["penalty_scale"] == scales[3:]
    # A prompt with its sentence that has no room is left out like any other.
    longest = max(len(ids) for ids in plain.prompts.values())
    assert len(_asked(levels=levels, context=longest + 100, at_least=1)[1].problems) < 20


def test_a_sentence_that_the_tokenizer_cannot_spell_is_refused() -> None:
    tokenizer = load_tokenizer(ModelSpec(name="tiny_arith", path="package:tiny_arith"))
    require_spelt({"short": Level(prompt=" Now the final number.", penalty_scale=1.0)}, tokenizer)
    with pytest.raises(ConfigError, match=r"reward\.levels\.short\.prompt=' Be brief\.': the tokenizer cannot spell"):
        require_spelt({"short": Level(prompt=" Be brief.", penalty_scale=1.0)}, tokenizer)


def test_the_pipeline_tests_the_sentences_that_it_trains_on() -> None:
    levels = yaml.safe_load((CONF_DIR / "reward" / "levels" / "tldr_tiny_arith.yaml").read_text())
    steps = yaml.safe_load((CONF_DIR / "pipeline" / "ts_tldr.yaml").read_text())["steps"]
    tokenizer = load_tokenizer(ModelSpec(name="tiny_arith", path="package:tiny_arith"))
    for name in ("short", "moderate", "long"):
        sentence = levels[name]["prompt"]
        require_spelt({name: Level(prompt=sentence, penalty_scale=1.0)}, tokenizer)
        for step in (name, f"base_{name}"):
            assert steps[step]["prompt.template"] == "{question}" + sentence


def test_too_few_problems_for_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.problems_per_step=8: data a gives 5 problems"):
        _asked(limit=5)
    with pytest.raises(ConfigError, match=r"gives 0 problems, 20 left out \(no room for 100 tokens"):
        _asked(context=101)


# ---- what it is called


def _results(stage: Any, arm: dict[str, Any], settings: dict[str, Any]) -> RunResults:
    return RunResults(
        stage=stage,
        run="run",
        arm=arm,
        settings=settings,
        seed=0,
        benchmark="",
        split="test",
        metrics={},
        per_problem={},
    )


def _trained(**arm: Any) -> RunResults:
    settings = {"optimizer.lr": 1e-4, "mask._target_": "cft.masks.Critical"}
    return _results("train", {"model": "m", "optimizer.lr": 1e-4, **arm}, settings)


def test_an_arm_is_named_by_its_start() -> None:
    own = {"model": "tiny_arith", "optimizer.lr": 1e-5, "checkpoint": "outputs/x"}
    cft = _trained(mask="critical", weighting="uniform", loss="nll", reference="none", groups="none")
    arm = arm_after(cft, own, loss_type="dapo", checkpoint="outputs/x", weights="")
    assert arm["model"] == "m"
    assert arm["optimizer.lr"] == 1e-5
    assert arm["start.optimizer.lr"] == 1e-4
    assert "checkpoint" not in arm
    assert name_of(arm) == "CFT, then RL"
    sft = arm_after(
        _trained(mask="all", weighting="uniform", loss="nll"), own, loss_type="dapo", checkpoint="x", weights=""
    )
    assert name_of(sft) == "SFT, then RL"
    assert not is_sft(sft)  # what others are compared with
    base = arm_after(None, own, loss_type="dapo", checkpoint="", weights="")
    assert name_of(base) == f"{BASE}, then RL"
    assert not is_base(base)
    twice = _results("rl", arm, {})
    assert arm_after(twice, own, loss_type="grpo", checkpoint="x", weights="")["rl"] == "dapo, grpo"


def test_settings_of_the_start_count_but_not_where_it_lies() -> None:
    assert start_settings(_trained(), weights="") == {
        "start.optimizer.lr": 1e-4,
        "start.mask._target_": "cft.masks.Critical",
    }
    assert start_settings(None, weights="abc") == {"start.weights": "abc"}
    assert start_settings(None, weights="") == {}


def test_in_a_pipeline_the_shared_problems_are_asked_and_tested() -> None:
    found = shared_with("rl", [Entry("", "data", "gsm8k"), Entry("", "max_new_tokens", 512)])
    assert sorted(entry.word for entry in found.values()) == [
        "benchmark=gsm8k",
        "data=gsm8k",
        "evaluation.max_new_tokens=512",
    ]
