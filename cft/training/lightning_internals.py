"""All uses of Lightning's private names, each with the reason why no public name suffices.

Lightning may change these in any release, so no other module uses them, and tests/training/test_lightning_internals.py
checks each one against the installed version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

# The launcher with which a multi-process strategy starts its processes. Lightning has no public launcher class.
ScriptLauncher = _SubprocessScriptLauncher


def set_launcher(strategy: Strategy, launcher: ScriptLauncher) -> None:
    """Replace the strategy's launcher; `Strategy.launcher` is read-only."""
    strategy._launcher = launcher


def require_first_start(launcher: ScriptLauncher) -> None:
    """Raises RuntimeError in a child process, or if processes were already started."""
    launcher._check_can_spawn_children()


def limit_threads(*, num_processes: int) -> None:
    """Divide the machine's cores among its processes, as Lightning's launcher does."""
    _set_num_threads_if_needed(num_processes=num_processes)


def set_parallel_sizes(strategy: ModelParallelStrategy, *, data: int, tensor: int) -> None:
    """Set the sizes of the device mesh. Call it in `setup_environment`, before the mesh is created.

    The constructor accepts these sizes too, but the number of processes is not known at that point.
    """
    strategy._data_parallel_size = data
    strategy._tensor_parallel_size = tensor


def collect_shards(strategy: ModelParallelStrategy, *, own: bool) -> None:
    """Choose whether state dicts hold each rank's own shards (`own`) or the full state on rank 0.

    The constructor accepts this too, but the callbacks request their checkpoint form only later.
    """
    strategy._save_distributed_checkpoint = own


def epoch_loop_state(*, steps: int) -> dict[str, Any]:
    """Entry `epoch_loop.state_dict` of a checkpoint's loops after `steps` optimizer steps; loggers use this count."""
    return {"_batches_that_stepped": steps}


def begin_next_epoch(trainer: pl.Trainer, *, steps: int) -> None:
    """After loading a checkpoint, begin the next epoch as after an uninterrupted one, with `steps` optimizer steps done.

    The public setter `restarting` has no effect if max_steps is set.
    """
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop._restarting = loop._restarting = False
    loop.reset_restart_stage()
    loop._batches_that_stepped = steps
