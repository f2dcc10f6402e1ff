"""One training: Lightning's Trainer with the callbacks, loggers and processes that the configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import nn
from transformers import PreTrainedModel

from cft.config.build import build, trying
from cft.config.schema import TrainConfig
from cft.console import console, progress
from cft.data.module import RowsDataModule
from cft.evaluation.evaluation import Solver
from cft.loggers.build import RunFacts
from cft.models.flops import arithmetic_of
from cft.models.hashes import config_hash
from cft.runs.arm import ARM_KEYS, arm_of
from cft.runs.job import Job
from cft.runs.lineage import data_link, model_inputs
from cft.runs.names import run_name
from cft.runs.run import group_of
from cft.training.callbacks.guards import Guards, memory_advice
from cft.training.callbacks.history import History
from cft.training.callbacks.interruption import Interruption, StopWhenAsked
from cft.training.callbacks.last_validation import LastValidation
from cft.training.callbacks.progress_report import ShowProgress
from cft.training.callbacks.step_seed import SeedEachStep
from cft.training.callbacks.validation import GreedyAccuracy
from cft.training.checkpointing.checkpoints import CHECKPOINTS, read_position
from cft.training.checkpointing.keeper import CheckpointKeeper, WholeFiles
from cft.training.checkpointing.position import Position, position_of
from cft.training.checkpointing.resume import Start, begin, require_same_steps, require_steps_left
from cft.training.distributed.launcher import SameEverywhere, leave_group, use_own_launcher
from cft.training.distributed.sharding import FullySharded
from cft.training.distributed.weights import is_empty, is_first
from cft.training.memory import (
    checkpoint_bytes,
    device_memory,
    estimate,
    free_disk,
    largest_micro_batch,
    require_room,
    size,
    states_per_parameter,
)
from cft.training.module import CausalLMModule
from cft.training.parameter_groups import GROUPS, factory_of, groups_of, require_weight_decay
from cft.types import Problem


@dataclass(frozen=True, slots=True)
class Fitted:
    """callbacks: those that the config names. history: what this part of the run and those before it add up to."""

    trainer: pl.Trainer
    callbacks: dict[str, Any]
    history: History

    def epochs(self) -> float:
        """Passes over the rows: a fraction where trainer.max_steps ended the last one."""
        steps = -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        whole, rest = divmod(self.trainer.global_step, steps)
        return whole if not rest else round(self.trainer.global_step / steps, 4)


def require_constructible(cfg: TrainConfig, folder: Path) -> None:
    """Builds optimizer, callbacks and trainer once for nothing, before a model is loaded. Raises ConfigError."""
    like = [
        nn.Parameter(torch.zeros(2, 2)),
        nn.Parameter(torch.zeros(2)),
    ]  # weights and norms: some optimizers take matrices only
    with trying("optimizer", {key: value for key, value in cfg.optimizer.items() if key != GROUPS}):
        require_weight_decay(factory_of(cfg.optimizer)(like), groups_of(cfg.optimizer))
    callbacks = []
    for name, part in cfg.callbacks.items():
        with trying(f"callbacks.{name}", part):
            callbacks.append(build(part)(folder / CHECKPOINTS))
    with trying("trainer", cfg.trainer):
        build(cfg.trainer)(logger=False, callbacks=callbacks, default_root_dir=folder)


@dataclass(frozen=True, slots=True)
class Fit:
    """Lightning's Trainer with our callbacks around one training."""

    cfg: TrainConfig
    job: Job
    start: Start
    interruption: Interruption
    module: CausalLMModule
    data: RowsDataModule

    def run(self, problems: tuple[Problem, ...], make_solver: Callable[[PreTrainedModel], Solver]) -> Fitted:
        """Raises ConfigError, DoesNotFit and the like before anything is written to the run's folder."""
        cfg, folder, start = self.cfg, self.start.folder, self.start
        position = position_of(read_position(start.checkpoint)) if start.checkpoint else None
        history = History()
        made = {name: build(part)(folder / CHECKPOINTS) for name, part in cfg.callbacks.items()}
        # Lightning's monitor refuses to run where nothing is logged.
        callbacks = {name: c for name, c in made.items() if cfg.logger or not isinstance(c, LearningRateMonitor)}
        keeper = next((c for c in callbacks.values() if isinstance(c, CheckpointKeeper)), None)
        with progress("Training", total=1) as bar:
            extra: list[Any] = [
                SameEverywhere(
                    self.job.digest,
                    folder=folder,
                    start=start.checkpoint,
                    model=config_hash(self.module.lm.model.config),
                ),
                SeedEachStep(cfg.seed),
                ShowProgress(bar, arithmetic_of(self.module.lm.model)),
                Guards(folder),
                history,
                LastValidation(),
                StopWhenAsked(self.interruption, keeper),
            ]
            if problems:
                limit = cfg.evaluation.max_new_tokens
                extra.append(GreedyAccuracy(problems, make_solver, self.interruption, max_new_tokens=limit))
            trainer: pl.Trainer = build(cfg.trainer)(
                logger=False,  # they write; see below
                callbacks=[*extra, *callbacks.values()],
                default_root_dir=folder,
            )
            trainer.strategy.checkpoint_io = WholeFiles()
            if position:
                require_steps_left(position, max_epochs=cfg.trainer["max_epochs"], max_steps=trainer.max_steps)
                rows = cfg.data["batch_size"] * trainer.accumulate_grad_batches * trainer.world_size
                require_same_steps(position, rows_per_step=rows)
            if not is_empty(self.module):
                self.require_room(trainer, keeper)
            if is_first():
                begin(start, self.job, self.data.facts(), source=self.data.source.place)
            facts = self.facts(position)
            trainer.loggers = [build(part)(facts) for part in cfg.logger.values()]
            launcher = use_own_launcher(trainer, cfg, self.job, start=start)
            failed = True
            try:
                trainer.fit(self.module, datamodule=self.data, ckpt_path=start.checkpoint, weights_only=True)
                leave_group(trainer)
                failed = False
            except SystemExit as stop:  # what Lightning makes of Ctrl-C
                raise (KeyboardInterrupt if trainer.interrupted else stop) from None
            except (RuntimeError, MemoryError) as error:
                advice = memory_advice(error)
                if advice is None:
                    raise
                raise advice from error
            finally:
                if launcher:
                    launcher.close(failed=failed)
        return Fitted(trainer, callbacks, history)

    def require_room(self, trainer: pl.Trainer, keeper: CheckpointKeeper | None) -> None:
        """Print what memory a step will need, raises DoesNotFit; and what disk the checkpoints will."""
        device = trainer.strategy.root_device
        shards = trainer.world_size if isinstance(trainer.strategy, FullySharded) else 1
        found = estimate(
            self.module.lm.model,
            states_per_parameter=states_per_parameter(self.module.build_optimizer),
            tokens=largest_micro_batch(
                [len(row.ids) for row in self.data.train_rows],
                batch_size=self.data.batch_size * self.data.rows_of_a_place,
                padded=self.module.lm.layout == "padded",
            ),
            chunk_tokens=self.module.lm.objective.chunk_tokens,
            shards=shards,
            mixed=trainer.precision == "bf16-mixed",
        )
        there = device_memory(device)
        if device.type == "cpu":
            there //= trainer.num_devices  # the processes share it
        console.print(f"Memory of a step: {found}; the device has {size(there)}")
        require_room(found, memory=there)
        if keeper is not None:
            one, all_of_them = checkpoint_bytes(found, shards=shards, keep=keeper.keep)
            free = free_disk(self.start.folder)
            console.print(
                f"Checkpoints: about {size(one)} each, {size(all_of_them)} in all; the disk has {size(free)} free"
            )
            if free < all_of_them:
                console.print(
                    "Warning: they may not fit; callbacks.last.keep=1 needs less, hydra.run.dir chooses a disk"
                )

    def facts(self, position: Position | None) -> RunFacts:
        """What the loggers are told."""
        cfg, folder = self.cfg, self.start.folder
        arm = arm_of(self.job, ARM_KEYS)
        return RunFacts(
            folder,
            name=run_name(arm, seed=cfg.seed),
            group=group_of(folder) if position else self.job.group,
            job_type="train",
            tags=(
                *(f"{key}:{arm[key]}" for key in ("mask", "weighting", "loss", "model")),
                f"{self.data.source.kind}:{self.data.source.name}",
            ),
            config=self.job.config,
            command=self.job.command,
            inputs=(data_link(self.data.source), *model_inputs(cfg.model["path"])),
            resumed_at=position.steps if position else 0,
            validated=position is None or position.next != "validation",
        )
