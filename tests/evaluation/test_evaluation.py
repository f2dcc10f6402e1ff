"""Evaluation: independent of the batch, right by hand-made counts, complete in what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cft.config.build import build
from cft.config.schema import Split
from cft.data.sources import arithmetic
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.evaluation.evaluation import (
    GREEDY_SAMPLE,
    Sample,
    SampleRequest,
    Solver,
    accuracy_sentence,
    summarize,
    verdict_counts,
    write_samples,
)
from cft.evaluation.metrics import Interval
from cft.evaluation.room import NoRoom, require_room, room_for
from cft.models.load import eos_ids, load_causal_lm, load_tokenizer
from cft.prompts.chat import Chat
from cft.stages.testing import room_of
from cft.types import Completion, Outcome, Problem
from cft.verifiers import Numeric
from cft.verifiers.grader import Grader
from experiments.accuracy_by_limit import falls, points, tiny_arith_solver
from tests.stage import composed


@pytest.fixture(scope="module")
def parts():
    spec = build(composed("evaluate").model)
    tokenizer, model = load_tokenizer(spec), load_causal_lm(spec)
    problems = arithmetic(name="a", seed=0, num_train=1, num_validation=1, num_test=12).of("test")
    verifier = Numeric(fallback_last_number=True)
    grader = Grader(tokenizer, lambda items: [verifier(text, answer) for text, answer in items])

    def solver(engine) -> Solver:
        return Solver(engine, tokenizer, Chat(system="", template="{question}"), grader, 512)

    return model, eos_ids(model, tokenizer), tokenizer, problems, solver


REQUEST = SampleRequest(num_samples=3, temperature=1.0, top_p=0.95, seed=4, max_new_tokens=64)


def ids(samples: list[Sample]) -> dict[tuple[str, int], list[int]]:
    return {(s.problem.id, s.sample): s.completion.ids.tolist() for s in samples}


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_samples_do_not_depend_on_the_batch_or_the_order(parts, number: int) -> None:
    model, eos, _, problems, solver = parts
    problems = problems[:number]
    expected = ids(solver(ReferenceEngine(model, eos)).solve(problems, request=REQUEST, title=""))
    for max_rows, chosen in ((48, problems), (5, problems[::-1])):
        engine = SharedPrefixEngine(model, eos, max_rows=max_rows)
        assert ids(solver(engine).solve(chosen, request=REQUEST, title="")) == expected
    assert len({tuple(v) for v in expected.values()}) > len(problems) * 2  # samples differ from each other
    other = SampleRequest(3, 1.0, 0.95, 5, 64)
    assert ids(solver(SharedPrefixEngine(model, eos)).solve(problems, request=other, title="")) != expected


def sample(problem: str, number: int, *, right: bool, extracted: str, length: int = 4, entropy: float = 0.5) -> Sample:
    completion = Completion(np.arange(length, dtype=np.int32), "stop" if length < 9 else "length", length)
    outcome = Outcome.RIGHT if right else Outcome.WRONG
    return Sample(Problem(problem, "q", "1"), number, completion, outcome, extracted, entropy)


def test_metrics_of_counted_samples() -> None:
    samples = [
        sample("a", GREEDY_SAMPLE, right=True, extracted="1", length=6),
        *(sample("a", i, right=i < 1, extracted="1" if i < 1 else "2") for i in range(4)),
        sample("b", GREEDY_SAMPLE, right=False, extracted="3", length=10, entropy=float("nan")),
        *(sample("b", i, right=i < 3, extracted="1" if i < 3 else "2") for i in range(4)),
    ]
    intervals, per_problem = summarize(samples, seed=0)
    value = {name: interval.value for name, interval in intervals.items()}
    assert value["eval/accuracy"] == 0.5
    assert value["eval/response_tokens"] == 8.0
    assert value["eval/cut_off_rate"] == 0.5
    assert value["eval/pass_at_1"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert value["eval/avg_at_4"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert value["eval/pass_at_2"] == pytest.approx((1 - 3 / 6 + 1.0) / 2)  # C(3,2)/C(4,2) = 3/6 of pairs miss
    assert value["eval/pass_at_4"] == 1.0
    assert value["eval/maj_at_4"] == 0.5
    assert value["eval/distinct_2"] == pytest.approx(3 / 12)  # four equal samples of three bigrams each
    assert value["eval/distinct_1"] == pytest.approx(4 / 16)
    assert value["eval/self_bleu"] == pytest.approx(1.0)
    assert value["eval/sampled_cut_off_rate"] == 0.0
    assert per_problem["num_right"] == [1, 3]
    assert "eval/num_right" not in value
    assert value["eval/entropy"] == 0.5  # the problem without an entropy is left out
    assert per_problem["id"] == ["a", "b"]
    assert per_problem["correct"] == [1, 0]
    assert "entropy" not in per_problem


@pytest.mark.parametrize(
    "n, pass_at, maj_at",
    [(0, [], []), (1, [1], []), (3, [1, 2, 3], [3]), (6, [1, 2, 4, 6], [4, 6]), (8, [1, 2, 4, 8], [4, 8])],
)
def test_k_runs_over_powers_of_two_and_the_number_of_samples(n: int, pass_at: list[int], maj_at: list[int]) -> None:
    samples = [sample("a", GREEDY_SAMPLE, right=True, extracted="1")]
    samples += [sample("a", i, right=i < 2, extracted="1", length=9 if i == 0 else 4) for i in range(n)]
    value = {name: interval.value for name, interval in summarize(samples, seed=0)[0].items()}
    assert [name for name in value if "pass_at" in name] == [f"eval/pass_at_{k}" for k in pass_at]
    assert [name for name in value if "maj_at" in name] == [f"eval/maj_at_{k}" for k in maj_at]
    assert value.get("eval/sampled_cut_off_rate", 0.0) == pytest.approx(1 / n if n else 0.0)


@pytest.mark.parametrize("make_engine", [pytest.param(ReferenceEngine, marks=pytest.mark.slow), SharedPrefixEngine])
def test_a_short_of_room_problem_is_run_with_the_room_there_is(parts, make_engine) -> None:
    model, eos, tokenizer, problems, solver = parts
    request = SampleRequest(1, 1.0, 1.0, 0, 64)
    free = ids(solver(SharedPrefixEngine(model, eos)).solve(problems[:4], request=request, title=""))
    longest = max(len(solver(None).prompt.ids(tokenizer, p.question)) for p in problems[:4])
    grader = Grader(tokenizer, lambda items: [Numeric(fallback_last_number=True)(*item) for item in items])
    context = longest + 30  # every problem has room, none for 64 tokens
    tight = Solver(make_engine(model, eos), tokenizer, Chat(system="", template="{question}"), grader, context)
    samples = tight.solve(problems[:4], request=request, title="")
    for one in samples:
        room = context - len(tight.prompt.ids(tokenizer, one.problem.question))
        whole = free[one.problem.id, one.sample]
        assert one.completion.ids.tolist() == whole[:room]
        assert one.completion.finish == ("stop" if len(whole) <= room else "length")
    assert {s.completion.finish for s in samples} == {"stop", "length"}


def test_a_problem_without_room_is_not_run_and_never_wrong(parts) -> None:
    _, _, tokenizer, problems, solver = parts
    lengths = {p.id: len(solver(None).prompt.ids(tokenizer, p.question)) for p in problems}
    context = sorted(lengths.values())[-1]  # the longest prompt fills it
    room = room_for(problems, prompt_len=lambda p: lengths[p.id], context=context, max_new_tokens=64)
    longest = [p.id for p in problems if lengths[p.id] == context]
    assert room.facts()["not_run"] == longest
    assert room.facts()["problems"] == len(problems) - len(longest) == len(room.run)
    tight = Solver(None, tokenizer, Chat(system="", template="{question}"), None, context)  # pyright: ignore
    with pytest.raises(ValueError, match="without room"):
        tight.solve(problems, request=REQUEST, title="")


def test_more_not_run_than_allowed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem(f"p{i}", "q", "1") for i in range(20)]
    room = room_for(problems, prompt_len=lambda p: 10 + int(p.id[1:]), context=28, max_new_tokens=5)
    assert [p.id for p in room.not_run] == ["p18", "p19"]
    assert [p.id for p in room.short] == ["p14", "p15", "p16", "p17"]
    asked = {"where": "b/test", "key": "evaluation.max_not_run", "max_new_tokens": 5}
    with pytest.raises(
        NoRoom, match=r"2 of the 20 problems of b/test \(10\.0%\).*p18, p19.*evaluation.max_not_run=0.1"
    ):
        require_room(room, max_not_run=0.09, **asked)
    require_room(room, max_not_run=0.1, **asked)
    said = " ".join(capsys.readouterr().out.split())
    assert "Not run: 2 of 20" in said
    assert "p18, p19" in said
    assert "rate is of the other 18" in said
    assert "Short of room: 4 of 18" in said
    for empty in (room_for([], prompt_len=len, context=28, max_new_tokens=5), replace(room, run=())):
        with pytest.raises(NoRoom):
            require_room(empty, max_not_run=1.0, **asked)


def test_accuracy_over_the_limit_has_no_cliff() -> None:
    problems = arithmetic(name="a", seed=0, num_train=1, num_validation=1, num_test=8).of("test")
    solver = tiny_arith_solver(context=100)
    curve = points(solver, problems, limits=[30, 60, 75, 90, 100])
    assert not falls(curve)
    assert curve[-1].right > curve[0].right
    assert curve[-1].short == 8
    assert curve[-1].run == 8


@pytest.mark.parametrize("split", ["validation", "test"])
def test_training_refuses_problems_without_room_before_it_starts(split: Split) -> None:
    cfg = composed("train", f"prompt.system={'word ' * 300}")
    splits = arithmetic(name="a", seed=0, num_train=1, num_validation=3, num_test=3)
    facts = SimpleNamespace(context=256)
    model: Any = SimpleNamespace(tokenizer=load_tokenizer(build(cfg.model)), facts=facts)
    with pytest.raises(NoRoom, match=r"evaluation\.max_not_run=0\.01: 3 of the 3"):
        room_of(
            splits,
            split,
            wanted=3,
            evaluation=cfg.evaluation,
            model=model,
            prompt=build(cfg.prompt),
            engine="reference",
        )


def test_undecided_is_counted_apart() -> None:
    samples = [
        sample("a", GREEDY_SAMPLE, right=True, extracted="1"),
        sample("b", GREEDY_SAMPLE, right=False, extracted=""),
    ]
    samples.append(replace(samples[1], problem=Problem("c", "q", "1"), outcome=Outcome.UNDECIDED))
    counts = verdict_counts(samples)
    assert counts == {"right": 1, "wrong": 1, "cut off": 0, "undecided": 1}
    said = accuracy_sentence(counts, not_run=2)
    assert "1 right of 3 problems run" in said
    assert "2 not run" in said
    assert "between 0.333 and 0.667" in said


def test_lengths_that_are_all_zero_are_no_rate() -> None:
    samples = [sample(f"p{i}", GREEDY_SAMPLE, right=False, extracted="", length=0) for i in range(10)]
    intervals, _ = summarize(samples, seed=0)
    assert intervals["eval/response_tokens"] == Interval(0.0, 0.0, 0.0)
    assert intervals["eval/accuracy"].high > 0.1  # 0 of 10 right does not mean never


def test_every_response_is_written(parts, tmp_path: Path) -> None:
    model, eos, tokenizer, problems, solver = parts
    samples = solver(SharedPrefixEngine(model, eos)).solve(problems[:3], request=REQUEST, title="")
    write_samples(tmp_path / "samples.parquet", samples, tokenizer)
    records = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert [(r["problem_id"], r["sample"]) for r in records] == [(s.problem.id, s.sample) for s in samples]
    for record, one in zip(records, samples, strict=True):
        assert record["response_ids"] == one.completion.ids.tolist()
        assert record["response"] == tokenizer.decode(one.completion.ids, skip_special_tokens=True)
        assert record["outcome"] == one.outcome
