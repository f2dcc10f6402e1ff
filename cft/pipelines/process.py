"""Runs one step, in a separate process or in this one.

A separate process frees all memory when it ends, including GPU memory, and if the system kills it for its memory use, no other
step is lost. It is forked from a server that has only imported the stages' libraries (multiprocessing's `forkserver`), so a
step starts in a fraction of a second, and CUDA is initialized only in its own process. It is the leader of a process group, so
Ctrl-C reaches it once, through this process. If this process is killed, the step ends as with SIGTERM.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from cft.cli.exit_status import EXIT_INTERRUPTED, EXIT_RESUMABLE, EXIT_USER_ERROR
from cft.cli.job import composed
from cft.config.check import named
from cft.config.schema import keys_of
from cft.config.stages import STAGES
from cft.console import console
from cft.errors import Interrupted, UserError
from cft.pipelines.plan import ANNOTATIONS, STEPS, Settings, Step, spelled_out
from cft.pipelines.reporting import REPORT, make_report
from cft.quoting import setting
from cft.run_log import recording

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
GRACE_S = 120.0  # time for a step to save its state after the pipeline was killed


class StepFailed(UserError, RuntimeError):
    """A step ended with an input or configuration error, which has been shown."""


class StepCrashed(RuntimeError):
    """A step's process ended with a program error, or was killed."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Result of a successful step.

    Args:
        made: paths that must exist for the step to count as done.
        seconds: its duration.
        peak_memory: peak bytes of its process and of the GPU.
    """

    made: tuple[str, ...]
    seconds: float
    peak_memory: dict[str, int]


def run_here(step: Step, settings: Settings, *, more: Sequence[str] = (), resume: bool = False) -> Ended:
    """Run a step in this process.

    Args:
        step: the step.
        settings: settings of the pipeline.
        more: additional overrides.
        resume: whether to resume from checkpoints in its folder, if there are any.

    Raises:
        StepFailed: the stage raised a UserError. Other errors of the stage are raised unchanged.
    """
    started = time.monotonic()
    step.folder.mkdir(parents=True, exist_ok=True)
    try:
        if step.stage == REPORT:
            page = make_report(step.config, folder=step.folder, annotations_dir=settings.folder / ANNOTATIONS)
            return Ended((str(page),) if page else (), time.monotonic() - started, {})
        words = [*step.overrides, *more, *(_resume(step) if resume else ())]
        config, job = composed(
            step.stage, spelled_out(step.stage, words), folder=step.folder, conf_dirs=settings.conf_dirs
        )
        with recording():
            returned = named(STAGES[step.stage].run)(config, replace(job, group=settings.group or job.group))
    except UserError as error:
        raise StepFailed(f"step {step.name}: {error}") from error
    made = {str(step.out), str(returned)} if isinstance(returned, Path) else {str(step.out)}
    return Ended(tuple(sorted(made)), time.monotonic() - started, _peak_memory())


def run_isolated(step: Step, settings: Settings, *, more: Sequence[str] = (), resume: bool = False) -> Ended:
    """Run a step in a separate process. Arguments are as in `run_here`.

    Raises:
        StepFailed: It ended with exit status 2; its error is shown.
        StepCrashed: It ended with another error, or was killed.
        Interrupted, KeyboardInterrupt: This process received a signal, and the step's process has ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_libraries())
    receiver, sender = context.Pipe(duplex=False)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    process = context.Process(
        target=_in_child, args=(step, settings, tuple(more), resume, sender), name=f"cft {step.name}", daemon=False
    )
    with _forwarded_signals() as (received, children):
        process.start()
        sender.close()
        children.append(process.pid or 0)
        process.join()
    ended = None
    with suppress(EOFError, OSError):
        ended = receiver.recv() if receiver.poll() else None
    receiver.close()
    status = process.exitcode
    if status == 0 and ended is not None:
        if received:
            raise Stopped(_signal_error(received), ended)
        return ended
    if received or status in (EXIT_RESUMABLE, EXIT_INTERRUPTED):
        raise _signal_error(received) or (
            KeyboardInterrupt()
            if status == EXIT_INTERRUPTED
            else Interrupted(f"step {step.name}, which saved its state")
        )
    if status == EXIT_USER_ERROR:
        raise StepFailed(f"step {step.name} failed, see above; steps finished before it are kept")
    how = (
        f"was killed by {signal.Signals(-status).name}" if status and status < 0 else f"ended with exit status {status}"
    )
    hint = " (the system may have run out of memory)" if status == -signal.SIGKILL else ""
    raise StepCrashed(f"step {step.name} {how}{hint}; steps finished before it are kept")


class Stopped(Exception):
    """A signal arrived, but the step ended successfully. args: (exception of the signal, result of the step)."""


def _libraries() -> list[str]:
    return sorted({entry.run.partition(":")[0] for entry in STAGES.values() if entry.step})


def _resume(step: Step) -> list[str]:
    if "resume" not in keys_of(STAGES[step.stage].schema):
        return []
    from cft.training.checkpointing.checkpoints import CHECKPOINTS, kept_checkpoints

    return [setting("resume", str(step.folder))] if kept_checkpoints(step.folder / CHECKPOINTS) else []


def _peak_memory() -> dict[str, int]:
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.max_memory_allocated()
    return found


# ---- signals of this process and of the step's process


@contextmanager
def _forwarded_signals() -> Iterator[tuple[list[signal.Signals], list[int]]]:
    """Forward signals to a step's process; yields (received signals, processes to forward to)."""
    received: list[signal.Signals] = []
    children: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for process in children:
            with suppress(ProcessLookupError):
                # SIGINT goes to the whole group, as from a terminal, and so to all ranks of a distributed run.
                (os.killpg if number == signal.SIGINT else os.kill)(process, number)

    here = threading.current_thread() is threading.main_thread()  # Python allows signal handlers in this thread only
    before = {number: signal.signal(number, receive) for number in SIGNALS} if here else {}
    try:
        yield received, children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_error(received: Sequence[signal.Signals]) -> BaseException | None:
    if not received:
        return None
    return KeyboardInterrupt() if received[0] == signal.SIGINT else Interrupted(received[0].name)


def _in_child(step: Step, settings: Settings, more: tuple[str, ...], resume: bool, sender: Connection) -> None:
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    running = _running(settings.folder)  # closed when the process ends, in any way
    fcntl.flock(running, fcntl.LOCK_EX)
    try:
        sender.send(run_here(step, settings, more=more, resume=resume))
        return
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        status = EXIT_USER_ERROR
    except Interrupted:
        status = EXIT_RESUMABLE
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - show the full traceback, as the interpreter does
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    raise SystemExit(status)


def wait_for_orphan(folder: Path) -> None:
    """If an earlier run of this pipeline was killed, wait until its step's process has saved its state and ended."""
    running = _running(folder)
    try:
        fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.print("Waiting for a step of the previous run, which was killed, to end")
        fcntl.flock(running, fcntl.LOCK_EX)
    finally:
        os.close(running)


def _running(folder: Path) -> int:
    (folder / STEPS).mkdir(parents=True, exist_ok=True)
    return os.open(folder / STEPS / ".running", os.O_RDWR | os.O_CREAT)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(EXIT_RESUMABLE)
