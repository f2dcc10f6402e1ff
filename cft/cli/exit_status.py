"""How commands end on an error: a UserError is shown without a traceback, with exit status 2.

In a multirun it fails its own job only, and the others continue. An interruption ends all of them: Ctrl-C with exit status
130; a signal of the cluster or the run's own time limit with 75, and the printed command resumes where this one stopped.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from cft.commands import command
from cft.config.stages import STAGES
from cft.config.step_words import as_typed
from cft.errors import Interrupted, UserError
from cft.quoting import setting

EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again
EXIT_INTERRUPTED = 130  # as shells report a program ended by Ctrl-C


class JobFailed(UserError, CompactHydraException):
    """A UserError of one job of a multirun; Hydra prints a CompactHydraException without a traceback."""


@contextmanager
def reported() -> Iterator[None]:
    """Wraps the body of a command: handles a UserError and Ctrl-C as described at the top of this file."""
    try:
        yield
    except UserError as failed:
        error = _with_folder(failed)
        if _in_multirun():
            message = f"job {HydraConfig.get().job.num} ({' '.join(_overrides())}): {error}"
            print(message, file=sys.stderr, flush=True)  # Hydra shows the first failure only, and only at the end
            raise JobFailed(message) from failed
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(EXIT_USER_ERROR) from failed
    except Interrupted as interrupt:
        if _further_task():
            raise SystemExit(0) from interrupt  # the first one says how to resume
        print(f"Interrupted by {interrupt}. {how_to_resume()}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_RESUMABLE) from interrupt
    except KeyboardInterrupt as interrupt:
        print(f"Interrupted. {how_to_resume()}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_INTERRUPTED) from interrupt


@contextmanager
def reported_in_rank() -> Iterator[None]:
    """Wraps a further process of a distributed run, whose first process prints how to resume."""
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(EXIT_USER_ERROR) from error
    except Interrupted as interrupt:
        raise SystemExit(0) from interrupt
    except KeyboardInterrupt as interrupt:
        raise SystemExit(EXIT_INTERRUPTED) from interrupt


def how_to_resume() -> str:
    """The command to type after an interruption of the running Hydra job."""
    from cft.cli.job import command_flags

    hydra = HydraConfig.get()
    stage = str(hydra.job.name)
    flags, where = command_flags(hydra), Path(hydra.runtime.output_dir)
    if not STAGES[stage].step:  # of several steps
        if hydra.mode == RunMode.MULTIRUN:
            return f"Finished steps are kept; resume with the same command and hydra.sweep.dir={hydra.sweep.dir}"
        again = command(stage, [*_overrides(), setting("hydra.run.dir", str(where))], flags=flags)
        return f"Finished steps are kept; resume with: {again}"
    again = command(stage, _overrides(), flags=flags)
    if stage == "annotate":
        return f"Committed units are kept; resume with the same command: {again}"
    if any(override.startswith("resume=") for override in _overrides()):
        return f"Resume from the newest checkpoint with the same command: {again}"
    from cft.training.checkpointing.checkpoints import (  # heavy, and a training has imported it
        CHECKPOINTS,
        kept_checkpoints,
    )

    trained = kept_checkpoints(where / CHECKPOINTS) or [*(where / CHECKPOINTS).glob("checkpoint-*")]  # those of cft rl
    if stage in ("train", "rl") and trained:
        return f"Resume from the newest checkpoint with: {again} {shlex.quote(f'resume={where}')}"
    return f"No state to resume from was saved; start again: {again}"


def _with_folder(error: UserError) -> str:
    """The message; if a job has its own working folder, with the folder that relative paths are resolved against."""
    if HydraConfig.initialized() and HydraConfig.get().job.chdir:
        return f"{error}\nRelative paths start at {Path.cwd()}, because of hydra.job.chdir=true"
    return str(error)


def _further_task() -> bool:
    """Whether this is a further process, started by a cluster or torchrun."""
    return any(os.environ.get(name, "0") != "0" for name in ("SLURM_PROCID", "RANK"))


def _in_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _overrides() -> list[str]:
    return list(map(as_typed, HydraConfig.get().overrides.task))
