"""Runs Lightning's Trainer with the callbacks, loggers and processes of the configuration."""

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
from cft.console import console, progress, size
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
    states_per_parameter,
)
from cft.training.module import CausalLMModule
from cft.training.parameter_groups import GROUPS, factory_of, groups_of, require_weight_decay
from cft.types import Problem


@dataclass(frozen=True, slots=True)
class Fitted:
    """The result of `Fit.run`.

    Args:
        trainer: Lightning's trainer after training.
        callbacks: the callbacks of the config, by name.
        history: totals over this part of the run and the parts before it.
    """

    trainer: pl.Trainer
    callbacks: dict[str, Any]
    history: History

    def epochs(self) -> float:
        """Number of passes over the rows; fractional if trainer.max_steps ended the last one early."""
        steps = -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        whole, rest = divmod(self.trainer.global_step, steps)
        return whole if not rest else round(self.trainer.global_step / steps, 4)


def require_constructible(cfg: TrainConfig, folder: Path) -> None:
    """Check that optimizer, callbacks and trainer can be built, before a model is loaded. Raises ConfigError."""
    like = [
        nn.Parameter(torch.zeros(2, 2)),
        nn.Parameter(torch.zeros(2)),
    ]  # a matrix and a vector: some optimizers accept matrices only
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
    """One training run with Lightning's Trainer."""

    cfg: TrainConfig
    job: Job
    start: Start
    interruption: Interruption
    module: CausalLMModule
    data: RowsDataModule

    def run(self, problems: tuple[Problem, ...], make_solver: Callable[[PreTrainedModel], Solver]) -> Fitted:
        """Train the model.

        Args:
            problems: validation problems for greedy accuracy; may be empty.
            make_solver: makes a solver from the model.

        Raises:
            ConfigError: a setting does not suit the run that is resumed; nothing was written to the run folder.
            DoesNotFit: a step clearly needs more memory than the device has; nothing was written to the run folder.
        """
        cfg, folder, start = self.cfg, self.start.folder, self.start
        position = position_of(read_position(start.checkpoint)) if start.checkpoint else None
        history = History()
        made = {name: build(part)(folder / CHECKPOINTS) for name, part in cfg.callbacks.items()}
        # LearningRateMonitor raises an error without a logger.
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
                logger=False,  # loggers write to the run folder, so they are built below, after all checks
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
            except SystemExit as stop:  # Lightning turns Ctrl-C into SystemExit
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
        """Print the estimated memory of a step and the disk space of the checkpoints. Raises DoesNotFit."""
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
            there //= trainer.num_devices  # the processes share host memory
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
                    "Warning: the checkpoints may not fit; callbacks.last.keep=1 needs less, hydra.run.dir chooses another disk"
                )

    def facts(self, position: Position | None) -> RunFacts:
        """Facts about the run for the loggers."""
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
