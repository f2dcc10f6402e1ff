"""cft pipeline with a stage that only notes its calls: order, references, fingerprints, errors, sweeps, exit statuses."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from cft.cli.job import hydra_job
from cft.config.stages import STAGES
from cft.errors import Interrupted
from cft.pipelines.plan import Planner, Settings
from tests.entry import Ended, run
from tests.pipelines import recorder

PIPELINE = """\
# @package _global_
steps:
  first:
    stage: evaluate
  second:
    stage: evaluate
    checkpoint: ${step:first.dir}
    limit: ${step:first.config.limit}
  third:
    stage: evaluate
    limit: 7
"""
OUT = "hydra.run.dir=out/a b"


@pytest.fixture(autouse=True)
def own_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pipeline is one yaml, and what it runs is noted."""
    (tmp_path / "mine" / "pipeline").mkdir(parents=True)
    (tmp_path / "mine" / "pipeline" / "own.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STAGES, "evaluate", replace(STAGES["evaluate"], run="tests.pipelines.recorder:evaluate"))
    recorder.calls.clear()
    recorder.raising.clear()
    yield
    recorder.raising.clear()


def pipeline(*words: str) -> tuple[list[str], Ended]:
    """(steps that ran, how it ended)."""
    recorder.calls.clear()
    ended = run("pipeline", "--config-dir", "mine", "pipeline=own", "isolated=false", *words)
    return [call["step"] for call in recorder.calls], ended


def test_steps_run_in_order_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = [
        OUT,
        "steps.first.limit=3",
        "seed=5",
        "~steps.third",
        "+steps.fourth.stage=evaluate",
        "steps.fourth.limit=2",
    ]
    recorder.raising["fourth"] = Interrupted("SIGTERM")
    ran, ended = pipeline(*words)
    assert (ran, ended.status) == (["first", "second", "fourth"], 75), ended.text
    assert [call["limit"] for call in recorder.calls] == [3, 3, 2]
    assert recorder.calls[1]["checkpoint"] == str(tmp_path / "out/a b" / "first")
    assert [call["seed"] for call in recorder.calls] == [5, 5, 5]  # shared by all
    assert {call["group"] for call in recorder.calls} == {"a b"}
    assert "Interrupted by SIGTERM. Finished steps are kept; resume with: cft pipeline --config-dir " in ended.err
    again = shlex.split(ended.err.strip().splitlines()[-1].partition("resume with: cft pipeline ")[2])

    recorder.raising["fourth"] = recorder.failing()
    recorder.calls.clear()
    ended = run("pipeline", *again)  # as printed
    assert ([call["step"] for call in recorder.calls], ended.status) == (["fourth"], 2), ended.text
    assert ended.err.strip() == "step fourth: the data is not there"


def test_errors_of_all_steps_come_together_and_nothing_starts() -> None:
    words = ["steps.first.limit=many", "steps.third.sed=1", "'steps.third.checkpoint=${step:frist.dir}'".strip("'")]
    words += ["+steps.fourth.stage=trian", "modle=x", "steps.report.chose=optimizer.lr", "+steps.report.stage=report"]
    ran, ended = pipeline(*words)
    assert (ran, ended.status) == ([], 2)
    lines = ended.err.strip().splitlines()
    assert lines[0] == "cft pipeline: 6 configuration errors, nothing was started"
    for text in (
        "steps.first.limit: expected an integer",
        "steps.third.checkpoint: ${step:frist.dir} is not an output of an earlier step, did you mean first.dir?",
        "steps.fourth.stage: 'trian' is not a stage that can be a step, did you mean train?",
        "steps.report.chose: a report has no such key, did you mean choose?",
        "modle: no step has this key, did you mean model?",
        "cft evaluate has no 'sed', did you mean seed?",
    ):
        assert any(text in line for line in lines), (text, lines)


def test_a_step_is_checked_as_if_no_job_were_around_it(tmp_path: Path) -> None:
    """The name of a score is by default that of its option, which a pipeline's own job knows nothing of."""
    with hydra_job("pipeline", ["pipeline=cft"], folder=tmp_path):
        planner = Planner(Settings(folder=tmp_path), {})
        step = planner.add("entropies", {"stage": "score", "score": "entropy", "annotation": "tiny_arith"})
        assert HydraConfig.get().runtime.choices.pipeline == "cft"
    assert planner.errors == []
    assert step is not None
    assert step.config["name"] == "entropy"


def test_what_is_the_runners_is_refused_of_a_step(tmp_path: Path) -> None:
    """A yaml that comes from anywhere may not widen whose classes are built."""
    planner = Planner(Settings(folder=tmp_path), {})
    planner.add("third", {"stage": "evaluate", "allow_targets": ["os."], "hydra.run.dir": "elsewhere", "limit": 3})
    assert [error.key for error in planner.errors] == ["steps.third.allow_targets", "steps.third.hydra.run.dir"]
    assert "is accepted on the command line only" in planner.errors[0].text


@pytest.mark.slow
def test_a_pipeline_is_swept(tmp_path: Path) -> None:
    ran, ended = pipeline("steps.first.limit=3,4", "seed=1", "hydra.sweep.dir=sweep", "-m")
    assert ended.status == 0, ended.text
    assert ran == ["first", "second", "third"] * 2
    assert [call["limit"] for call in recorder.calls if call["step"] == "second"] == [3, 4]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1"]
    assert {call["group"] for call in recorder.calls} == {"sweep"}
    ran, _ = pipeline("steps.first.limit=3,4", "seed=1", "hydra.sweep.dir=sweep", "-m")
    assert ran == []
