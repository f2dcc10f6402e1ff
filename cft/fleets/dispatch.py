"""Assigns items to workers and handles workers that fail, die or never start; independent of the cluster software.

    items -> idle worker -> Finished                       the result goes to the caller
                         -> Failed (an exception)          retried on another worker; left out after `max_failures`
                         -> Gone (the process or its node) retried on another worker, and a replacement is requested

Items are assigned only to running workers, so a worker that never gets resources never holds an item.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol

from cft.console import console
from cft.fleets.base import Facts, FleetError, Item, Result, WorkError, differing, silent

PIECES_A_WORKER = 4  # several per worker, so that none is idle for long while the last ones finish
POLL_S = 0.5
STRIKES = 2  # consecutive failures, of different items, after which the worker itself is replaced


@dataclass(frozen=True, slots=True)
class Placed:
    """A worker's process runs and is loading. where: node and process, for messages."""

    worker: int
    where: str


@dataclass(frozen=True, slots=True)
class Ready:
    worker: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class Finished:
    worker: int
    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker raised an exception, on its item or before it was ready; its process still runs."""

    worker: int
    error: WorkError


@dataclass(frozen=True, slots=True)
class Gone:
    """The worker's process ended. node: its whole node was lost, so the item is not the cause."""

    worker: int
    reason: str
    node: bool = False


Event = Placed | Ready | Finished | Failed | Gone


class Backend(Protocol):
    """Starts and ends worker processes. Workers are identified by the numbers that `hire` returns."""

    def hire(self) -> int:
        """Request one more worker; it starts once its resources are free."""
        ...

    def give(self, worker: int, key: int, item: Any) -> None: ...

    def dismiss(self, worker: int) -> None:
        """End the worker's process in any state. No event follows."""
        ...

    def events(self, *, timeout_s: float) -> list[Event]:
        """Events since the last call; waits up to `timeout_s` seconds for the first."""
        ...

    def progress(self) -> dict[int, Any]:
        """Key -> last progress report, for the items in progress."""
        ...

    def room(self) -> str:
        """The resources that a worker needs and those that exist, for messages."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits; the fields are arguments of `cft.fleets.ray_cluster.Ray`."""

    num_workers: int
    max_restarts: int
    max_failures: int
    pending_timeout_s: float


@dataclass(slots=True)
class _Task:
    """An item that is assigned or waits for a retry.

    tried: workers that failed on it. failures: the number of failures that the item may have caused.
    """

    key: int
    item: Any
    tried: set[int] = field(default_factory=set)
    failures: int = 0


@dataclass(slots=True)
class _WorkerState:
    """State of one worker.

    slot: its index among the crew's `num_workers`. requested: time of the request. reported: its wait was reported.
    """

    slot: int
    requested: float
    status: Literal["waiting", "loading", "idle", "busy"] = "waiting"
    where: str = ""
    strikes: int = 0
    reported: bool = False
    task: _Task | None = None


@dataclass(slots=True)
class Dispatcher(Generic[Item, Result]):
    """A crew of `policy.num_workers` workers; a worker that dies is replaced.

    Args:
        backend: Starts and ends workers.
        policy: Limits on restarts, failures and waiting.
        expected: Facts that every worker must have.
        clock: Returns the time in seconds.
    """

    backend: Backend
    policy: Policy
    expected: Facts
    clock: Callable[[], float] = time.monotonic
    facts: Facts = field(default_factory=dict)
    in_order: bool = False
    left_out: dict[int, str] = field(default_factory=dict)
    _workers: dict[int, _WorkerState] = field(default_factory=dict)
    _restarts: Counter[int] = field(default_factory=Counter)  # by slot
    _retries: deque[_Task] = field(default_factory=deque)
    _last_reason: str = ""

    @property
    def pieces(self) -> int:
        return PIECES_A_WORKER * self.policy.num_workers

    def assemble(self) -> None:
        """Request all workers and wait for the first. Raises FleetError."""
        for slot in range(self.policy.num_workers):
            self._hire(slot)
        while not self.facts:
            self._require_workers()
            for event in self.backend.events(timeout_s=POLL_S):
                self._receive(event)

    def map(
        self, items: Iterable[tuple[int, Item]], *, watch: Callable[[int, Any], None] = silent
    ) -> Iterator[tuple[int, Result]]:
        fresh = (_Task(key, item) for key, item in items)
        ahead = next(fresh, None)
        while ahead or self._retries or any(state.task for state in self._workers.values()):
            for worker in [number for number, state in self._workers.items() if state.status == "idle"]:
                if task := self._next_retry(worker):
                    self._give(worker, task)
                elif ahead:
                    self._give(worker, ahead)
                    ahead = next(fresh, None)
            self._require_workers()
            events = self.backend.events(timeout_s=POLL_S)
            for key, progress in self.backend.progress().items():
                watch(key, progress)
            for event in events:
                task = self._workers[event.worker].task if event.worker in self._workers else None
                self._receive(event)
                if isinstance(event, Finished) and task:
                    yield task.key, event.result

    def _next_retry(self, worker: int) -> _Task | None:
        """An item to retry on this worker, which must not have failed on it, unless all running workers have."""
        running = {number for number, state in self._workers.items() if state.status in ("idle", "busy")}
        for task in self._retries:
            if worker not in task.tried or running <= task.tried:
                self._retries.remove(task)
                return task
        return None

    def _give(self, worker: int, task: _Task) -> None:
        state = self._workers[worker]
        state.status, state.task = "busy", task
        self.backend.give(worker, task.key, task.item)

    def _receive(self, event: Event) -> None:
        state = self._workers.get(event.worker)
        if state is None:
            return  # the worker was dismissed
        match event:
            case Placed():
                state.status, state.where = "loading", event.where
            case Ready():
                self._check_facts(event, state)
            case Finished():
                state.status, state.task, state.strikes = "idle", None, 0
            case Failed() if state.task is None:
                if not self.facts:
                    raise FleetError(
                        f"A worker ({state.where}) cannot start: {event.error}\n{event.error.trace}".rstrip()
                    )
                self._replace(event.worker, f"cannot start: {event.error}")
            case Failed():
                assert state.task is not None
                self._retry(state.task, event.worker, error=event.error, blamed=True)
                state.status, state.task = "idle", None
                state.strikes += 1
                if state.strikes >= STRIKES:
                    self._replace(event.worker, f"failed {state.strikes} times in a row, last: {event.error}")
            case Gone():
                if state.task is not None:
                    self._retry(state.task, event.worker, error=WorkError(event.reason), blamed=not event.node)
                self._replace(event.worker, f"died: {event.reason}")

    def _check_facts(self, event: Ready, state: _WorkerState) -> None:
        if not self.facts and (lines := differing(self.expected, event.facts)):
            text = "\n".join(lines)
            raise FleetError(f"A worker ({state.where}) has other facts than this command expects:\n{text}")
        self.facts = self.facts or event.facts
        if lines := differing({**self.facts, **self.expected}, event.facts):
            text = "\n".join(["has other facts than the first worker, so its results would differ:", *lines])
            self._replace(event.worker, text)
        else:
            state.status = "idle"

    def _retry(self, task: _Task, worker: int, *, error: WorkError, blamed: bool) -> None:
        task.tried.add(worker)
        task.failures += blamed
        if task.failures < self.policy.max_failures:
            _print(f"Unit {task.key} is retried on another worker ({error})")
            self._retries.append(task)
            return
        self.left_out[task.key] = f"failed on {task.failures} workers, last: {error}"
        _print(f"Unit {task.key} is left out: {self.left_out[task.key]}\n{error.trace}".rstrip())

    def _hire(self, slot: int) -> None:
        self._workers[self.backend.hire()] = _WorkerState(slot, self.clock())

    def _replace(self, worker: int, reason: str) -> None:
        state = self._workers.pop(worker)
        self.backend.dismiss(worker)
        self._last_reason = f"{state.where or 'a worker'} {reason}"
        self._restarts[state.slot] += 1
        exhausted = self._restarts[state.slot] > self.policy.max_restarts
        if not exhausted:
            self._hire(state.slot)
        then = (
            f"not replaced, fleet.max_restarts={self.policy.max_restarts} is reached"
            if exhausted
            else "a replacement is requested"
        )
        _print(f"Worker {state.slot} ({state.where or 'not started'}) {reason}; {then}")

    def _require_workers(self) -> None:
        """Raise FleetError if no worker runs and none will start; report workers that have waited too long."""
        if not self._workers:
            raise FleetError(f"No worker is left. The last one: {self._last_reason}")
        now, limit = self.clock(), self.policy.pending_timeout_s
        late = [
            state for state in self._workers.values() if state.status == "waiting" and now - state.requested > limit
        ]
        if len(late) == len(self._workers):
            last = f" The last one: {self._last_reason}." if self._last_reason else ""
            raise FleetError(
                f"No worker started within fleet.pending_timeout_s={limit:g} seconds: {self.backend.room()}.{last} Free some "
                "resources, or request less with fleet.num_cpus, fleet.num_gpus, fleet.resources"
            )
        for state in late:
            if not state.reported:
                state.reported = True
                _print(
                    f"Worker {state.slot} has waited {limit:g} seconds for resources: {self.backend.room()}. The others "
                    "compute its units, and it joins them once it has started"
                )


def _print(text: str) -> None:
    console.print(text, markup=False, highlight=False)
