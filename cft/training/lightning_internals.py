"""All of Lightning that is private and that training cannot do without: each with the reason why no public name will do.

Lightning may change these in any release, so nothing else in the package names them, and
tests/training/test_lightning_internals.py tries each one against the installed version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

# What a strategy of several processes starts them with. Lightning has no public class of launchers.
ScriptLauncher = _SubprocessScriptLauncher


def set_launcher(strategy: Strategy, launcher: ScriptLauncher) -> None:
    """`Strategy.launcher` can be read only."""
    strategy._launcher = launcher


def require_first_start(launcher: ScriptLauncher) -> None:
    """Raises RuntimeError in a process that was started by another, or where processes were started before."""
    launcher._check_can_spawn_children()


def limit_threads(*, num_processes: int) -> None:
    """As Lightning's own launcher does: the cores of a machine are divided among its processes."""
    _set_num_threads_if_needed(num_processes=num_processes)


def set_parallel_sizes(strategy: ModelParallelStrategy, *, data: int, tensor: int) -> None:
    """In `setup_environment`, before the mesh is made; the constructor takes them when nobody knows how many processes
    there will be."""
    strategy._data_parallel_size = data
    strategy._tensor_parallel_size = tensor


def collect_shards(strategy: ModelParallelStrategy, *, own: bool) -> None:
    """own: state dicts are of each rank's own shards, else whole on the first one. The constructor takes it before the
    callbacks have said what checkpoints they want."""
    strategy._save_distributed_checkpoint = own


def epoch_loop_state(*, steps: int) -> dict[str, Any]:
    """Entry `epoch_loop.state_dict` of a checkpoint's loops after so many optimizer steps, by which loggers count."""
    return {"_batches_that_stepped": steps}


def begin_epoch_afresh(trainer: pl.Trainer, *, steps: int) -> None:
    """After loading: the next epoch begins as if none had been interrupted, after so many optimizer steps. The public
    setter `restarting` ignores this where max_steps is set."""
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop._restarting = loop._restarting = False
    loop.reset_restart_stage()
    loop._batches_that_stepped = steps
