"""Verification in worker processes with a hard deadline: model text may hang, crash or bloat a worker, but not the run.

A worker that spends more than `timeout_s` of processor time on one item is ended and replaced, so that a verdict does not
depend on the machine's load; so is one that is silent for WAIT times as long by the clock (it may sleep), and one that dies.
The item is undecided, the rest continues. Workers are started as fresh interpreters (not forked, and not by multiprocessing,
which would import the user's `__main__` again), hold no more than 1 GiB, and see no variable of the environment that looks
like a secret.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, cast

import cft
from cft.errors import UserError
from cft.ranges import AboveZero, AtLeastOne, in_range
from cft.types import Decision, Verdict, Verifier

WAIT = 10  # wall-clock deadline in multiples of timeout_s: a worker may get a tenth of a busy core
START_UP_S = 120.0  # a worker's imports, on a busy machine
CHUNK_ITEMS = 64
CHUNK_CHARS = 1 << 20
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)

SUSPICIOUS = 8  # if all of at least this many items fail, the texts are not the cause
_SHOWN_CHARS = 300

Item = tuple[str, str]


class VerifierError(UserError, RuntimeError):
    """The verifier itself is faulty: it raised, or finished on no text. Its verdicts are not used."""


@dataclass(slots=True)
class _Worker:
    """A worker process, its unanswered items, and its deadline."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    ready: bool = False
    pending: deque[int] = field(default_factory=deque)
    buffer: bytearray = field(default_factory=bytearray)
    deadline: float = float("inf")


class VerifierPool:
    """`with VerifierPool(verifier, workers=2, timeout_s=3.0) as pool: verdicts = pool.verify_all(items)`.

    Workers start with the first item and end with the context, an exception or the interpreter. Safe to call from
    several threads, one batch at a time.

    Args:
        verifier: picklable; every worker gets a copy.
        workers: processes, at least 1.
        timeout_s: seconds of processor time for one item, above 0.

    Raises:
        BadValue: `workers` or `timeout_s` is out of its range.
    """

    @in_range
    def __init__(self, verifier: Verifier, *, workers: AtLeastOne, timeout_s: AboveZero) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._setup = json.dumps({"verifier": _pickled(verifier), "timeout_s": timeout_s}).encode() + b"\n"
        self._alive: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _close_all, self._alive, self._selector, os.getpid())

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; the pool cannot be used afterwards."""
        self._closed = True
        self._finalizer()

    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are alive, for measurements."""
        return tuple(worker.process.pid for worker in self._alive)

    def verify_all(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item (response, gold answer), in order.

        Raises VerifierError if the verifier raised, or failed on every item of a batch; RuntimeError if a worker cannot
        start.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this VerifierPool is closed; open a new one")
            try:
                return self._run(items)
            except BaseException:
                # Replies of an abandoned batch must not answer the next one's items.
                _kill_all(self._alive, self._selector)
                raise

    def _run(self, items: Sequence[Item]) -> list[Verdict]:
        verdicts: list[Verdict | None] = [None] * len(items)
        waiting = deque(range(len(items)))
        while waiting or any(worker.pending for worker in self._alive):
            while len(self._alive) < min(self._workers, len(waiting)):
                self._start()
            for worker in list(self._alive):
                if worker.ready and not worker.pending and waiting:
                    self._dispatch(worker, items, waiting)
            for worker in self._readable():
                if self._receive(worker, verdicts, items):
                    continue
                ending = _how_it_ended(worker.process)
                reason = f"the verifier's process ended ({ending})"
                if ending == f"signal {int(signal.SIGPROF)}":
                    reason = f"no verdict within {self._timeout_s:g} s of processor time"
                self._replace(worker, reason, verdicts, waiting)
            now = time.monotonic()
            for worker in [worker for worker in self._alive if worker.deadline <= now]:
                self._replace(worker, f"no verdict within {WAIT * self._timeout_s:g} s by the clock", verdicts, waiting)
        done = cast(list[Verdict], verdicts)
        if len(done) >= SUSPICIOUS and all(verdict.failed for verdict in done):
            raise VerifierError(
                f"verifier: it came to an end on none of {len(done)} texts; the first: {done[0].reason}. Mend it, or give it "
                "more time (verify.timeout_s). Nothing of these verdicts is kept; then run the same command again"
            )
        return done

    def _start(self) -> None:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its worker
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cft.verifiers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )
        worker = _Worker(process, errors, deadline=time.monotonic() + START_UP_S)
        self._alive.append(worker)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        _send(worker, self._setup)

    def _dispatch(self, worker: _Worker, items: Sequence[Item], waiting: deque[int]) -> None:
        """Send a chunk, small enough that all workers share the work and an idle worker reads it at once."""
        share = max(1, len(waiting) // (2 * self._workers))
        chunk: list[int] = []
        chars = 0
        while waiting and len(chunk) < min(share, CHUNK_ITEMS) and (not chunk or chars < CHUNK_CHARS):
            chunk.append(waiting.popleft())
            chars += len(items[chunk[-1]][0])
        worker.pending.extend(chunk)
        _send(worker, json.dumps([items[i] for i in chunk]).encode() + b"\n")
        worker.deadline = time.monotonic() + WAIT * self._timeout_s

    def _readable(self) -> list[_Worker]:
        patience = max(0.0, min((worker.deadline for worker in self._alive), default=0.0) - time.monotonic())
        return [key.data for key, _ in self._selector.select(timeout=min(patience, 60.0))]

    def _receive(self, worker: _Worker, verdicts: list[Verdict | None], items: Sequence[Item]) -> bool:
        """Read a worker's replies; False if it has ended or sent an invalid reply.

        Raises VerifierError if the verifier raised.
        """
        assert worker.process.stdout is not None
        data = worker.process.stdout.read(1 << 16)
        if not data:
            return False
        worker.buffer += data
        *lines, rest = worker.buffer.split(b"\n")
        worker.buffer = bytearray(rest)
        for line in lines:
            if not worker.ready:
                worker.ready = True
            elif (verdict := _verdict(line)) and worker.pending:
                verdicts[worker.pending.popleft()] = verdict
            elif worker.pending and (error := _error(line)):
                response, answer = items[worker.pending[0]]
                raise VerifierError(
                    f"verifier: it raised on the response {response[-_SHOWN_CHARS:]!r} (gold answer "
                    f"{answer[:_SHOWN_CHARS]!r}):\n{error}\nA verifier gives a verdict on every text, undecided where it "
                    "cannot tell. Mend it; nothing of these verdicts is kept, and the same command resumes"
                )
            else:
                return False
            worker.deadline = time.monotonic() + WAIT * self._timeout_s if worker.pending else float("inf")
        return True

    def _replace(self, worker: _Worker, reason: str, verdicts: list[Verdict | None], waiting: deque[int]) -> None:
        """End a worker: its current item is undecided, its other items are queued again."""
        _kill(worker, self._selector)
        self._alive.remove(worker)
        worker.errors.seek(0)
        said = worker.errors.read().decode(errors="replace").strip()[-2000:]
        worker.errors.close()
        if not worker.ready:
            raise RuntimeError(
                f"a verifier process could not start ({reason}); the verifier's class must live in a module that a "
                f"fresh interpreter can import. It said:\n{said}"
            )
        if worker.pending:
            verdicts[worker.pending.popleft()] = Verdict(Decision.UNDECIDED, "", False, reason, failed=True)
        waiting.extendleft(reversed(worker.pending))


def _verdict(line: bytes | bytearray) -> Verdict | None:
    try:
        decision, extracted, explicit, reason, failed = json.loads(line)
        return Verdict(Decision(decision), str(extracted), bool(explicit), str(reason), bool(failed))
    except (ValueError, TypeError):
        return None


def _error(line: bytes | bytearray) -> str:
    """The traceback in a worker's reply, "" if there is none."""
    try:
        said = json.loads(line)
    except ValueError:
        return ""
    return str(said["error"]) if isinstance(said, dict) and said.keys() == {"error"} else ""


def _pickled(verifier: Verifier) -> str:
    if type(verifier).__module__ == "__main__":
        raise ValueError(
            f"{type(verifier).__qualname__} is defined in __main__, which workers do not import; move it to a module"
        )
    return base64.b64encode(pickle.dumps(verifier)).decode()


def _environment() -> dict[str, str]:
    """The parent's environment without secrets, with its module path, and one thread per library."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    package_root = str(Path(cft.__file__).parent.parent)
    path = dict.fromkeys([os.path.abspath(entry or os.getcwd()) for entry in sys.path] + [package_root])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**kept, **threads, "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"}


def _send(worker: _Worker, data: bytes) -> None:
    """Write to a worker that waits for a line. A dead worker is detected when its output ends."""
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(data)
        worker.process.stdin.flush()
    except BrokenPipeError:
        return


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "its output closed"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _kill(worker: _Worker, selector: selectors.BaseSelector) -> None:
    assert worker.process.stdout is not None
    assert worker.process.stdin is not None
    selector.unregister(worker.process.stdout)
    worker.process.kill()
    worker.process.wait()
    worker.process.stdout.close()
    try:
        worker.process.stdin.close()
    except BrokenPipeError:
        return


def _kill_all(workers: list[_Worker], selector: selectors.BaseSelector) -> None:
    while workers:
        worker = workers.pop()
        _kill(worker, selector)
        worker.errors.close()


def _close_all(workers: list[_Worker], selector: selectors.BaseSelector, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child of the owner ends; the workers are not its own
    _kill_all(workers, selector)
    selector.close()
