"""Several benchmarks in one run: macro averages, the harness' JSON, and the real entry point end to end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from cft.benchmarks.sweep import in_one_run, is_benchmark_override
from cft.evaluation.lm_eval_results import Measured, lm_eval_results
from cft.evaluation.suites import macro_average, suite_table, write_summary
from cft.report.compare import compare
from cft.report.read import collect
from tests.entry import Ended, run
from tests.stage import asked


def entry(correct: list[int], *, seed: int = 0) -> dict[str, Any]:
    """One benchmark as in results.json."""
    mean = float(np.mean(correct))
    accuracy = {"value": mean, "low": 0.0, "high": 1.0}
    request = {"num_samples": 2, "temperature": 1.0, "top_p": 1.0, "seed": seed, "max_new_tokens": 9, "verifier": "v"}
    return {
        "problems": len(correct),
        "split": "test",
        "metrics": {"eval/accuracy": accuracy, "eval/pass_at_2": accuracy, "eval/only_here": accuracy} | {},
        "per_problem": {"id": list(range(len(correct))), "correct": correct, "pass_at_2": [float(c) for c in correct]},
        "evaluation": request,
    }


def test_the_macro_average_weighs_benchmarks_alike_and_its_interval_is_that_of_independent_means() -> None:
    rng = np.random.default_rng(0)
    results = {"a": entry(rng.integers(0, 2, 400).tolist()), "b": entry((rng.random(100) < 0.9).astype(int).tolist())}
    del results["b"]["metrics"]["eval/only_here"]
    averages = macro_average(results, seed=0, resamples=20_000)
    assert set(averages) == {"eval/accuracy", "eval/pass_at_2"}
    means = [float(np.mean(results[name]["per_problem"]["correct"])) for name in "ab"]
    found = averages["eval/accuracy"]
    assert found.value == pytest.approx(np.mean(means))
    # the normal approximation: the variance of a mean of two independent means
    variances = [m * (1 - m) / n for m, n in zip(means, (400, 100), strict=True)]
    half = stats.norm.ppf(0.975) * np.sqrt(sum(variances)) / 2
    # the bootstrap of 0/1 values moves in steps of 1/800 and 1/200
    assert (found.high - found.low) / 2 == pytest.approx(half, abs=0.004)


def test_a_metric_without_a_value_for_every_problem_has_no_interval(tmp_path: Path) -> None:
    results = {"a": entry([1, 0]), "b": entry([1, 1])}
    del results["b"]["per_problem"]["pass_at_2"]
    averages = macro_average(results, seed=0)
    assert averages["eval/pass_at_2"].value == 0.75
    assert np.isnan(averages["eval/pass_at_2"].low)
    write_summary(tmp_path / "s.csv", results, averages)
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [r["benchmark"] for r in rows if r["metric"] == "eval/accuracy"] == ["a", "b", "macro average"]
    assert suite_table("t", results, averages).row_count == 3


FACTS = Measured(
    "owner/model", "float32", "cpu", "{{ x }}", "", 300, 0, {"a": 9, "b": 2}, {"a": "x", "b": "y"}, 1.0, 3.5
)


def test_the_harness_shape() -> None:
    results = {"a": entry([1, 0, 1, 1]), "b": entry([1, 0])}
    whole = lm_eval_results(results, facts=FACTS, group="both", averages=macro_average(results, seed=0))
    assert json.loads(json.dumps(whole)) == whole
    a = whole["results"]["a"]
    assert a["alias"] == "a"
    assert a["exact_match,none"] == 0.75
    assert a["exact_match_stderr,none"] == pytest.approx(stats.sem([1, 0, 1, 1]))
    assert a["pass@2,none"] == 0.75
    assert a["only_here_stderr,none"] == "N/A"
    assert whole["results"]["both"] == whole["groups"]["both"]
    assert whole["groups"]["both"]["exact_match,none"] == 0.625
    assert whole["group_subtasks"] == {"both": ["a", "b"]}
    assert whole["n-samples"] == {"a": {"original": 9, "effective": 4}, "b": {"original": 2, "effective": 2}}
    assert set(whole["configs"]) == {"a", "b"}
    for key in ("versions", "n-shot", "higher_is_better"):
        assert set(whole[key]) == {"a", "b", "both"}
    # Of a mean of two independent means.
    errors = [stats.sem([1, 0, 1, 1]), stats.sem([1, 0])]
    assert whole["groups"]["both"]["exact_match_stderr,none"] == pytest.approx(np.sqrt(np.sum(np.square(errors))) / 2)
    assert whole["groups"]["both"]["only_here_stderr,none"] == "N/A"
    assert whole["higher_is_better"]["both"] == {"exact_match": True, "pass@2": True, "only_here": True}
    assert whole["configs"]["a"]["num_fewshot"] == whole["n-shot"]["a"] == 0
    assert whole["model_name_sanitized"] == "owner__model"
    results["a"]["metrics"] |= {"eval/entropy": {"value": 0.5}, "eval/cut_off_rate": {"value": 0.1}}
    single = lm_eval_results({"a": results["a"]}, facts=FACTS, group="", averages={})
    assert (single["higher_is_better"]["a"]["entropy"], single["higher_is_better"]["a"]["cut_off_rate"]) == (
        None,
        False,
    )
    assert "groups" not in single
    assert single["group_subtasks"] == {"a": []}


@pytest.mark.parametrize(
    "name, about",
    [("benchmark", True), ("benchmark.dir", True), ("benchmark@benchmark.members.a", True), ("mask", False)],
)
def test_overrides_about_the_benchmark_are_no_part_of_an_arm(name: str, about: bool) -> None:
    assert is_benchmark_override(name) is about


ARGUMENTS = (
    *("benchmark=arithmetic,mine", "benchmark.members.arithmetic.num_test=3", "limit=3", "num_samples=2"),
    *("max_new_tokens=32", "hydra.run.dir=outputs/suite"),
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended, str]:
    """(its folder, a suite of the built-in problems and of a file by the real entry point, what the stage then says)"""
    from cft.stages.evaluate import evaluate

    folder = tmp_path_factory.mktemp("suite = 1")
    lines = [json.dumps({"question": f"What is {i} + 1?", "answer": i + 1}) for i in range(4)]
    (folder / "college_math.jsonl").write_text("\n".join(lines))
    arguments = [a.replace("mine", "college_math") for a in ARGUMENTS] + [f"data.dir='{folder}'"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first = run("evaluate", *arguments)
        with contextlib.redirect_stdout(io.StringIO()) as again:
            evaluate(*asked("evaluate", *in_one_run(arguments), folder=Path("outputs/suite")))
    return folder / "outputs" / "suite", first, again.getvalue()


@pytest.mark.slow
def test_each_benchmark_has_results_of_its_own_and_the_whole_their_average(suite: tuple[Path, Ended, str]) -> None:
    folder, first, _ = suite
    assert first.status == 0, first.text
    parts = {name: json.loads((folder / name / "results.json").read_text()) for name in ("arithmetic", "college_math")}
    whole = json.loads((folder / "results.json").read_text())
    assert whole["benchmark"] == "arithmetic+college_math"
    accuracies = [part["metrics"]["eval/accuracy"]["value"] for part in parts.values()]
    assert whole["metrics"]["eval/accuracy"]["value"] == pytest.approx(np.mean(accuracies))
    for name, part in parts.items():
        assert part["benchmark"] == name
        assert part["problems"] == 3
        assert pq.read_table(folder / name / "samples.parquet").num_rows == 3 * 3
        assert part["identity"] == whole["identity"]
        assert not any(is_benchmark_override(key) for key in part["arm"])
    graded_by = json.loads(parts["college_math"]["evaluation"]["verifier"])
    assert (graded_by["name"], graded_by["args"]["inner"]["name"]) == ("after_thinking", "math")
    assert json.loads(parts["arithmetic"]["evaluation"]["verifier"])["args"]["inner"]["name"] == "numeric"
    assert "macro average" in first.text
    (harness,) = (json.loads(path.read_text()) for path in sorted((folder / "lm_eval").glob("results_*.json"))[:1])
    assert harness["results"]["college_math"]["exact_match,none"] == accuracies[1]


@pytest.mark.slow
def test_the_same_command_reads_what_is_finished(suite: tuple[Path, Ended, str]) -> None:
    folder, _, again = suite
    assert again.count("has finished; nothing to do") == 2
    comparisons = {c.benchmark: c for c in compare(collect([folder]))}
    assert set(comparisons) == {"arithmetic", "college_math", "arithmetic+college_math"}
