"""Which steps run: configuration and what was read decide, and nothing that was made is lost."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cft.config.stages import STAGES
from cft.pipelines import process
from cft.pipelines.plan import Settings, Step
from cft.pipelines.process import StepCrashed, StepFailed
from cft.pipelines.records import known_record
from cft.pipelines.runner import Runner
from cft.runs.job import Job
from tests.pipelines import recorder


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are run by the recorder, with the config that they were planned with."""
    monkeypatch.setitem(STAGES, "evaluate", replace(STAGES["evaluate"], run="tests.pipelines.recorder:evaluate"))
    monkeypatch.setattr(process, "composed", called_with)
    recorder.calls.clear()
    recorder.raising.clear()


def called_with(stage: str, words: Sequence[str], *, folder: Path, conf_dirs: Sequence[str]) -> tuple[Any, Job]:
    values: dict[str, Any] = dict(word.split("=") for word in words)
    values["limit"] = int(values["limit"])
    job = Job(stage=stage, folder=folder, group="", multirun=False, config=values, digest="")
    return SimpleNamespace(**values), job


def steps(folder: Path, *, first: int = 3, third: int = 7, may_fail: bool = False) -> list[Step]:
    """The second reads what the first makes."""
    read = str(folder / "first")
    return [
        step(folder, "first", limit=first, checkpoint=""),
        replace(step(folder, "second", limit=3, checkpoint=read), may_fail=may_fail),
        step(folder, "third", limit=third, checkpoint=""),
    ]


def step(folder: Path, name: str, **config: Any) -> Step:
    config = {"seed": 0, **config}
    words = tuple(f"{key}={value}" for key, value in config.items())
    return Step(name=name, stage="evaluate", overrides=words, folder=folder / name, out=folder / name, config=config)


def ran(folder: Path, **changes: Any) -> list[str]:
    recorder.calls.clear()
    Runner(settings=Settings(folder=folder), isolated=False).run(steps(folder, **changes))
    return [call["step"] for call in recorder.calls]


def test_only_what_changed_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert ran(out) == ["first", "second", "third"]
    assert ran(out) == []
    assert "Step 3 of 3: third: already done" in capsys.readouterr().out

    assert ran(out, third=8) == ["third"]
    assert "since limit changed" in capsys.readouterr().out
    assert (out / "earlier" / "third-1" / "model.safetensors").read_text() == "7"
    assert (out / "third" / "model.safetensors").read_text() == "8"
    # Another configuration of the first step that makes the same: what reads it is still done.
    assert ran(out, first=103, third=8) == ["first"]
    # Its configuration is as before, what it reads is not.
    assert ran(out, first=4, third=8) == ["first", "second"]
    assert "since the contents of first changed" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "earlier").iterdir()) == ["first-1", "first-2", "second-1", "third-1"]


def test_a_step_whose_output_is_gone_runs_again(tmp_path: Path) -> None:
    ran(tmp_path)
    shutil.rmtree(tmp_path / "second")
    assert ran(tmp_path) == ["second"]


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    ran(tmp_path)
    (tmp_path / "steps" / "second.json").write_text("{")
    assert ran(tmp_path) == ["second"]


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    ran(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    for name in ("first", "second", "third"):  # what they made is looked for where it is now
        record = known_record(tmp_path / "there", name)
        assert record is not None
        assert str(tmp_path) not in str(record.made)
    assert ran(tmp_path / "there") == []


def test_what_was_finished_before_a_failure_is_kept(tmp_path: Path) -> None:
    recorder.raising["second"] = recorder.failing()
    with pytest.raises(StepFailed, match="step second: the data is not there"):
        ran(tmp_path)
    recorder.raising.clear()
    assert ran(tmp_path) == ["second", "third"]


def test_a_step_that_may_fail_stops_nothing(tmp_path: Path) -> None:
    recorder.raising["second"] = recorder.failing()
    assert ran(tmp_path, may_fail=True) == ["first", "second", "third"]
    assert ran(tmp_path, may_fail=True) == ["second"]  # tried again


def test_keys_that_extend_what_is_there_set_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "evaluate", replace(STAGES["evaluate"], grows=("limit",), redo=("replace=true",)))
    ran(tmp_path)
    assert ran(tmp_path, third=8) == ["third"]
    assert not (tmp_path / "earlier").exists()


@pytest.mark.parametrize(
    ("status", "text"),
    [(-signal.SIGKILL, "killed by SIGKILL .*out of memory"), (1, "exit status 1"), (0, "exit status 0")],
)
def test_a_process_that_ends_without_a_word_is_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, text: str
) -> None:
    """Also one that ended well and left no result: nothing says that its step is done."""

    class Process:
        pid, exitcode = 1, status

        def start(self) -> None: ...

        def join(self) -> None: ...

    class Context:
        Pipe = staticmethod(process.multiprocessing.Pipe)
        set_forkserver_preload = staticmethod(lambda modules: None)
        Process = staticmethod(lambda **options: Process())

    monkeypatch.setattr(process.multiprocessing, "get_context", lambda kind: Context)
    with pytest.raises(StepCrashed, match=f"step first .*{text}"):
        Runner(settings=Settings(folder=tmp_path), isolated=True).run(steps(tmp_path))
    record = known_record(tmp_path, "first")
    assert record is not None
    assert not record.finished


def test_the_module_of_every_step_can_be_imported_ahead() -> None:
    assert {"cft.stages.train", "cft.stages.annotate"} <= set(process._libraries())
