"""Runs programs against their tests, one after the other, in locked processes that leave nothing behind."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cft
from cft.errors import UserError

START_UP_S = 60.0


class CannotLock(UserError, RuntimeError):
    """This machine cannot lock a process for a program; the message gives the reason and the remedy."""


class _Ended(Exception):
    """The nursery process has ended."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A program and its test.

    setup: run beside the test, such as imports of its own. names: what the test takes from the program, and the last to say
    what they are. entry: the one that the test calls `candidate`, "" for none.
    """

    program: str
    setup: str
    test: str
    names: tuple[str, ...]
    entry: str


@dataclass(frozen=True, slots=True)
class Report:
    """decision: right, wrong, or undecided if program or test did not finish."""

    decision: str
    reason: str


@cache
def require_lock(modules: tuple[str, ...] = ()) -> None:
    """Tries it.

    Raises:
        CannotLock: this machine cannot lock a process, or lacks one of these modules.
    """
    _Nursery(modules).close()


def tried(trial: Trial, *, cpu_s: int, wall_s: float, memory_bytes: int, modules: tuple[str, ...] = ()) -> Report:
    """The result of a program under its test.

    Args:
        cpu_s: processor time of the program, and of the test.
        wall_s: wall-clock time of both together.
        memory_bytes: for each, in addition to that of an interpreter with the modules.
        modules: to preload in addition to those of the standard library.

    Raises:
        CannotLock: as `require_lock`.
    """
    return _nursery(modules, os.getpid()).tried(trial, cpu_s=cpu_s, wall_s=wall_s, memory_bytes=memory_bytes)


@lru_cache(maxsize=1)
def _nursery(modules: tuple[str, ...], owner: int) -> _Nursery:
    """The nursery of this process; a fork of its owner starts its own."""
    return _Nursery(modules)


class _Nursery:
    """The process that programs and tests are forked from (`nursery.py`), restarted if it has ended."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._modules, self._lock = modules, threading.Lock()
        self._start()

    def _start(self) -> None:
        self._commands, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "cft.locked.nursery", str(theirs.fileno()), *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                start_new_session=True,
            )
        self._process = process
        self._finalizer = weakref.finalize(self, _close, process, self._commands, os.getpid())
        self._commands.settimeout(START_UP_S)
        try:
            found = json.loads(self._commands.recv(1 << 16) or b"{}")
        except OSError:
            found = {}
        if not found:
            process.kill()
            assert process.stderr is not None
            said = process.stderr.read().decode(errors="replace").strip()[-1000:]
            self.close()
            raise _cannot([f"no process could be started: {said}"])
        if found["lock"]:
            self.close()
            raise _cannot([f"a locked process could {what}" for what in found["lock"]])
        if missing := [line for line in found["missing"] if line.partition(":")[0] in self._modules]:
            self.close()
            raise CannotLock(f"verifier.modules: {'; '.join(missing)}; install it, or leave it out")

    def close(self) -> None:
        self._finalizer()

    def tried(self, trial: Trial, *, cpu_s: int, wall_s: float, memory_bytes: int) -> Report:
        with self._lock:
            if self._process.poll() is not None:
                self.close()
                self._start()
            try:
                said, program, test = self._run(trial, {"cpu_s": cpu_s, "memory_bytes": memory_bytes}, wall_s=wall_s)
            except _Ended:  # for example out of memory; its children end with it
                self._process.kill()
                return Report("undecided", "the process that runs programs was ended from outside")
            return _report(said, program=program, test=test, cpu_s=cpu_s, wall_s=wall_s)

    def _run(
        self, trial: Trial, limits: dict[str, int], *, wall_s: float
    ) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
        """(message of the test, how program and test ended). Raises _Ended."""
        pids: list[int] = []
        said, ends = b"", list[dict[str, Any]]()
        asks, answers = socket.socketpair()
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with asks, answers, theirs:
                    pids.append(self._command({"spawn": "program", **limits}, [answers.fileno()])["pid"])
                    to_both = [asks.fileno(), theirs.fileno()]
                    pids.append(self._command({"spawn": "tester", **limits}, to_both)["pid"])
                said = _exchanged(ours, json.dumps(asdict(trial)).encode() + b"\n", seconds=wall_s)
            finally:
                ends = self._command({"end": pids, "patience_s": 0.2 if said else 0.0})["ended"]
        return said, ends[0], ends[1]

    def _command(self, command: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        try:
            socket.send_fds(self._commands, [json.dumps(command).encode()], list(descriptors))
            answer = self._commands.recv(1 << 16)
        except OSError as error:
            raise _Ended from error
        if not answer:
            raise _Ended
        return json.loads(answer)


def _exchanged(ours: socket.socket, request: bytes, *, seconds: float) -> bytes:
    """The answer; an incomplete line if the time is over or the other side ended."""
    deadline = time.monotonic() + seconds
    said = bytearray()
    try:
        ours.settimeout(seconds)
        ours.sendall(request)
        while not said.endswith(b"\n"):
            if not select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return b"late"
            if not (data := ours.recv(1 << 16)):
                return b""
            said += data
    except TimeoutError:
        return b"late"
    except OSError:
        return b""
    return bytes(said)


def _report(said: bytes, *, program: dict[str, Any], test: dict[str, Any], cpu_s: int, wall_s: float) -> Report:
    if said == b"late":
        return Report("undecided", f"no verdict within {wall_s:g} s by the clock")
    if not said:
        return Report("undecided", f"the test came to no end ({_ending(test, cpu_s=cpu_s)})")
    found = json.loads(said)
    if found["decision"] != "gone":
        return Report(found["decision"], found["reason"])
    if program["running"]:
        return Report("wrong", "the program broke off the connection")
    ending = _ending(program, cpu_s=cpu_s)
    if program["signal"] is None:
        return Report("wrong", f"the program ended itself ({ending})")
    return Report("undecided", f"the program was ended ({ending})")


def _ending(process: dict[str, Any], *, cpu_s: int) -> str:
    if process["signal"] is None:
        return f"exit code {process['code']}"
    if process["signal"] in (signal.SIGKILL, signal.SIGXCPU) and process["cpu_s"] > cpu_s - 0.5:
        return f"more than {cpu_s} s of processor time"
    return f"signal {process['signal']}"


def _cannot(reasons: Sequence[str]) -> CannotLock:
    return CannotLock(
        f"verifier=code: this machine cannot lock a process, so it runs no program of a model: {'; '.join(reasons)}. "
        "Linux on x86-64 or aarch64 with seccomp filters is needed (containers too: --security-opt seccomp must allow "
        "prctl(PR_SET_SECCOMP)). Evaluate there, or leave out the benchmarks of programs"
    )


def _environment() -> dict[str, str]:
    """Environment of the nursery: the module path, and settings that make runs reproducible."""
    root = str(Path(cft.__file__).parent.parent)
    path = dict.fromkeys([root, *(os.path.abspath(entry or os.getcwd()) for entry in sys.path)])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # one thread
    fixed = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    return {"PYTHONPATH": os.pathsep.join(path), **fixed, **threads}


def _close(process: subprocess.Popen[bytes], commands: socket.socket, owner: int) -> None:
    commands.close()
    if os.getpid() != owner:
        return  # a forked child of the owner ends
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()
