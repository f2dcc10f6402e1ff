"""Launches the other processes of a distributed run on one machine, each with this job's configuration.

Lightning would start them with the command line of this process. In a multirun that command line describes all jobs, so every
process would run the whole sweep, and with a sweeper that samples values, a different one (Lightning issue 18175). So this
job's configuration is saved to a file, and the other processes read it (`cft/stages/rank_process.py`). When the job ends, the
environment variables and the process group that Lightning set are removed; otherwise the next job of a multirun would be taken
for a part of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from cft.config.schema import TrainConfig
from cft.config.typed import plain, typed
from cft.errors import UserError
from cft.files import write_json
from cft.runs.job import Job
from cft.training.checkpointing.resume import Start
from cft.training.lightning_internals import ScriptLauncher, limit_threads, require_first_start, set_launcher

VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
)
JOB = ".ranks.json"  # in the run folder while the processes run
ROOT = Path(__file__).resolve().parents[3]
LOOK_EVERY_S = 0.5
GRACE_S = 30.0  # time for the other processes to end after one has ended


class RankMismatch(UserError, RuntimeError):
    """The processes of a distributed run have different configurations; nothing was trained."""


class RankFailed(UserError, RuntimeError):
    """A process of a distributed run ended with an error, which it has printed."""


class JobLauncher(ScriptLauncher):
    """Starts `python -m cft.stages.rank_process <file>` for each other rank on this machine."""

    def __init__(self, replaced: ScriptLauncher, *, config: TrainConfig, job: Job, start: Start) -> None:
        super().__init__(replaced.cluster_environment, replaced.num_processes, replaced.num_nodes)
        self.file = start.folder / JOB
        self._inputs = config, job, start
        self._ended = threading.Event()

    def _start_processes(self) -> None:
        require_first_start(self)
        environment = self.cluster_environment
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        os.environ["NODE_RANK"] = str(environment.node_rank())
        os.environ["LOCAL_RANK"] = str(environment.local_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        self.procs = []
        save_rank(self.file, *self._inputs)
        path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
        for local_rank in range(1, self.num_processes):
            variables = {**os.environ, "LOCAL_RANK": str(local_rank), "PYTHONPATH": path}
            command = [sys.executable, "-m", "cft.stages.rank_process", str(self.file)]
            self.procs.append(subprocess.Popen(command, env=variables))
        threading.Thread(target=self._watch, daemon=True).start()

    def launch(self, function: Any, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self._start_processes()
        limit_threads(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _watch(self) -> None:
        """End this process if another one has failed while this one waits for it in a collective."""
        while not self._ended.wait(LOOK_EVERY_S):
            if any(process.poll() for process in self.procs):
                if self._ended.wait(GRACE_S):
                    return
                print("Another process of this run ended with an error (above); stopping this one too", file=sys.stderr)
                self._end_others(grace_s=0.0)
                os._exit(1)

    def close(self, *, failed: bool) -> None:
        """Wait for the other processes to end; only briefly if this one failed. Raises RankFailed if one of them failed."""
        self._ended.set()
        self._end_others(grace_s=GRACE_S if not failed else 3.0)
        self.file.unlink(missing_ok=True)
        bad = [process.returncode for process in self.procs if process.returncode]
        if bad and not failed:
            raise RankFailed(f"a process of this run ended with exit status {bad[0]}; its error is above")

    def _end_others(self, *, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        for process in self.procs:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def leave_group(trainer: pl.Trainer) -> None:
    """Destroy the process group at the end of training, the last collective work of the run. Collective.

    With NCCL, destroying the group is collective, and rank 0, which continues with export and evaluation, would reach it long
    after the other ranks.
    """
    if trainer.world_size > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def use_own_launcher(trainer: pl.Trainer, config: TrainConfig, job: Job, *, start: Start) -> JobLauncher | None:
    """Replace Lightning's launcher, if it has one.

    Returns:
        The new launcher; None on a single device, or if a cluster starts the processes.
    """
    replaced = trainer.strategy.launcher
    if not isinstance(replaced, ScriptLauncher):
        return None
    if replaced.cluster_environment.creates_processes_externally:
        return None
    launcher = JobLauncher(replaced, config=config, job=job, start=start)
    set_launcher(trainer.strategy, launcher)
    return launcher


def save_rank(path: Path, config: TrainConfig, job: Job, start: Start) -> None:
    """Save the configuration of this job for the other processes."""
    begins = {"folder": str(start.folder), "checkpoint": str(start.checkpoint or "")}
    allowed = sorted(config.mask.allowed)  # the same for every part
    write_json(path, {"config": plain(config), "allowed": allowed, "job": job.as_json(), "start": begins})


def read_rank(path: Path) -> tuple[TrainConfig, Job, Start]:
    """Read the file of `save_rank`."""
    found = json.loads(path.read_bytes())
    start = Start(Path(found["start"]["folder"]), Path(text) if (text := found["start"]["checkpoint"]) else None)
    config = typed(TrainConfig, found["config"], allowed=tuple(found["allowed"]))
    return config, Job.of_json(found["job"]), start


@contextmanager
def own_environment() -> Iterator[None]:
    """After a job, restore the environment variables and destroy the process group of a distributed run."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    had_group = dist.is_initialized()
    try:
        yield
    finally:
        if dist.is_initialized() and not had_group:
            dist.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class SameEverywhere(pl.Callback):
    """Refuses to train unless all ranks have the same configuration, run folder, starting checkpoint and model config.

    Weights need no check, since all ranks receive those of rank 0 (`cft/training/distributed/weights.py`).

    Args:
        digest: hash of the run's config.
        folder: the run folder.
        start: the checkpoint to resume from, None for a new run.
        model: hash of the model's config.
    """

    def __init__(self, digest: str, *, folder: Path, start: Path | None, model: str) -> None:
        self.facts = {
            "config": digest,
            "run folder": str(folder.resolve()),
            "checkpoint": str(start or ""),
            "config.json of model.path": model,
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        everywhere: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(everywhere, self.facts)
        for rank, facts in enumerate(everywhere):
            differing = [f"{name}: rank 0 {everywhere[0][name]!r}, rank {rank} {facts[name]!r}" for name in facts]
            differing = [
                text for text, name in zip(differing, facts, strict=True) if facts[name] != everywhere[0][name]
            ]
            if differing:
                raise RankMismatch(
                    f"the processes of this run were started differently: {'; '.join(differing)}. Let cft train start them "
                    "(trainer.devices=2), or give every process the same arguments, including hydra.run.dir=<folder>"
                )
