"""Processes of a distributed run work on one job: in a multirun, under signals, and when they were started unlike."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from cft.training.checkpointing.checkpoints import CHECKPOINTS, newest_checkpoint, read_checkpoint
from cft.training.checkpointing.position import position_of
from cft.training.checkpointing.resume import Start
from cft.training.distributed.launcher import VARIABLES, RankMismatch, SameEverywhere, own_environment, save_rank
from tests.conftest import ROOT
from tests.entry import FIT_ONLY
from tests.stage import asked
from tests.wandb_files import Logged

TWO = ("trainer.accelerator=cpu", "data.batch_size=1", "data.max_rows=10")  # two steps an epoch


def command(*more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *FIT_ONLY, *TWO, *more]


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    return [int(pid) for task in tasks.glob("*/children") for pid in task.read_text().split()]


def ranks_of(process: int) -> list[int]:
    """Further processes of a run that `process` started, all that have begun to work."""
    found = []
    for pid in children(process):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found += [pid] if b"cft.stages.rank_process" in command else []
    return found


# ---- in one process


def test_another_process_gets_what_this_one_was_called_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cft.stages import rank_process
    from cft.stages import train as stage

    config, here = asked(
        "train", "seed=7", "mask=random_like_critical", "logger=wandb", folder=tmp_path / "sweep" / "1"
    )
    config.mask.allowed = ("mylab.",)
    here = dataclasses.replace(here, multirun=True, group="sweep")
    start = Start(tmp_path / "run", tmp_path / "run" / "step-00000003.ckpt")
    save_rank(tmp_path / "job.json", config, here, start)
    seen: list[Any] = []
    monkeypatch.setattr(stage, "train", lambda *inputs: seen.append(inputs))
    monkeypatch.setattr(rank_process, "die_with_parent", lambda: None)
    rank_process.main(tmp_path / "job.json")
    ((got, there, begins),) = seen
    assert got == config
    assert got.seed == 7
    assert got.mask.allowed == got.logger["wandb"].allowed == ("mylab.",)
    assert there == here
    assert begins == start


def test_what_a_distributed_job_leaves_in_the_environment_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "5")
    with own_environment():
        os.environ |= dict.fromkeys(VARIABLES, "1")
    assert {name: os.environ.get(name) for name in VARIABLES} == dict.fromkeys(VARIABLES) | {"MASTER_PORT": "5"}


def test_ranks_that_were_started_unlike_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SameEverywhere("0123456789ab", folder=tmp_path, start=None, model="m")
    other = SameEverywhere("ba9876543210", folder=tmp_path, start=None, model="m")

    def gather(everywhere: list[Any], facts: Any) -> None:
        everywhere[:] = [facts, answers.facts]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device="cpu"))
    module: Any = torch.nn.Linear(2, 2)
    answers = own
    own.setup(trainer, module, "fit")
    answers = other
    with pytest.raises(RankMismatch, match=r"started differently: config: rank 0 '\w{12}', rank 1 '\w{12}'"):
        own.setup(trainer, module, "fit")


# ---- in two processes


@pytest.mark.slow
def test_a_multirun_of_two_jobs_in_two_processes_each(tmp_path: Path) -> None:
    jobs = command("trainer=ddp", "seed=3,4", "logger=wandb", "trainer.max_epochs=1", "hydra.sweep.dir=sweep", "-m")
    ended = subprocess.run(jobs, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/results.json"))
    assert [folder.name for folder in folders] == ["0", "1"]
    for folder, seed in zip(folders, (3, 4), strict=True):
        assert OmegaConf.load(folder / "config.yaml").seed == seed
        budget = json.loads((folder / "results.json").read_text())["budget"]
        assert budget["rows_per_step"] == 2  # two processes with one row each
        assert not (folder / ".ranks.json").exists()
    runs = sorted(tmp_path.glob("**/wandb/offline-run-*/*.wandb"), key=lambda path: path.parts)
    assert [path.relative_to(tmp_path / "sweep").parts[0] for path in runs] == ["0", "1"]
    assert [Logged(path).config["seed"] for path in runs] == [3, 4]
    assert not (tmp_path / "outputs").exists()
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] != weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_of_two_processes_ends_both_and_the_run_goes_on(tmp_path: Path, strategy: str) -> None:
    training = command(f"trainer={strategy}", "trainer.max_epochs=100", "hydra.run.dir=run")
    process = subprocess.Popen(training, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "run" / CHECKPOINTS
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    (rank,) = ranks_of(process.pid)
    os.kill(rank, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert "Interrupted by SIGTERM. Resume from the newest checkpoint with: cft train" in err
    assert not Path(f"/proc/{rank}").exists()
    reached = position_of(read_checkpoint(newest_checkpoint(checkpoints))).steps
    assert not (tmp_path / "run" / "results.json").exists()

    last = reached // 2 + 2
    ended = subprocess.run(
        command(f"trainer={strategy}", f"trainer.max_epochs={last}", "resume=run"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["budget"]["steps"] > reached
