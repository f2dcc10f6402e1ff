"""Evaluation: independent of the batch, right by hand-made counts, complete in what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cft.data.sources import arithmetic
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.evaluation.evaluation import GREEDY_SAMPLE, Sample, SampleRequest, Solver, summarise, write_samples
from cft.models.load import eos_ids, load_causal_lm, load_tokenizer
from cft.prompts.chat import Chat
from cft.types import Completion, Outcome, Problem
from cft.verifiers import Numeric
from cft.verifiers.grader import Grader
from tests.stage import composed


@pytest.fixture(scope="module")
def parts():
    from cft.configuration.config import build

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


def test_samples_do_not_depend_on_the_batch_or_the_order(parts) -> None:
    model, eos, _, problems, solver = parts
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
    intervals, per_problem = summarise(samples, seed=0)
    value = {name: interval.value for name, interval in intervals.items()}
    assert value["eval/accuracy"] == 0.5
    assert value["eval/response_tokens"] == 8.0
    assert value["eval/cut_off_rate"] == 0.5
    assert value["eval/pass_at_1"] == pytest.approx((1 / 4 + 3 / 4) / 2)
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
    value = {name: interval.value for name, interval in summarise(samples, seed=0)[0].items()}
    assert [name for name in value if "pass_at" in name] == [f"eval/pass_at_{k}" for k in pass_at]
    assert [name for name in value if "maj_at" in name] == [f"eval/maj_at_{k}" for k in maj_at]
    assert value.get("eval/sampled_cut_off_rate", 0.0) == pytest.approx(1 / n if n else 0.0)


def test_a_prompt_without_room_counts_as_cut_off(parts) -> None:
    model, eos, tokenizer, problems, _ = parts
    grader = Grader(tokenizer, lambda items: [Numeric(fallback_last_number=True)(*item) for item in items])
    tight = Solver(SharedPrefixEngine(model, eos), tokenizer, Chat(system="", template="{question}"), grader, 70)
    samples = tight.solve(problems[:2], request=SampleRequest(0, 0.0, 1.0, 0, 64), title="")
    assert [(s.completion.finish, len(s.completion.ids), s.outcome) for s in samples] == [
        ("length", 0, Outcome.CUT_OFF)
    ] * 2


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
