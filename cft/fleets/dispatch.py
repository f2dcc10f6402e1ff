"""The dispatcher: assigns items to workers and handles workers that fail, die or never start. Independent of the cluster used.

    items -> idle worker -> Finished                       the result goes to the caller
                         -> Failed (an exception)          retry on another worker; after `max_failures` the item is left out
                         -> Gone (the process or its node) retry on another worker, and request a replacement

Items are assigned only to running workers, so that a worker that waits forever for resources holds none.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol

from cft.console import console
from cft.fleets.base import Facts, FleetError, Item, Result, WorkError, differing, silent

PIECES_A_WORKER = 4  # so that workers are not idle for long at the end
POLL_S = 0.5
STRIKES = 2  # a worker is replaced after this many consecutive failures, on different items


@dataclass(frozen=True, slots=True)
class Placed:
    """The worker's process has started and is loading."""

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
    """The worker raised an exception, in its item or before it was ready; its process is alive."""

    worker: int
    error: WorkError


@dataclass(frozen=True, slots=True)
class Gone:
    """The process ended. node: its machine was lost, so that its item is not to blame."""

    worker: int
    reason: str
    node: bool = False


Event = Placed | Ready | Finished | Failed | Gone


class Backend(Protocol):
    """Starts and ends worker processes. Workers are identified by the numbers that `hire` returns."""

    def hire(self) -> int:
        """Request one more worker; it starts when resources are available."""
        ...

    def give(self, worker: int, key: int, item: Any) -> None: ...

    def dismiss(self, worker: int) -> None:
        """End the worker's process, in any state. No event follows."""
        ...

    def events(self, *, timeout_s: float) -> list[Event]:
        """Events since the last call; waits until there is one, at most `timeout_s`."""
        ...

    def progress(self) -> dict[int, Any]:
        """Latest report by key of the items in progress."""
        ...

    def room(self) -> str:
        """Resources that a worker needs and that are available, for messages."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """See the arguments of `cft.fleets.ray_cluster.Ray`."""

    num_workers: int
    max_restarts: int
    max_failures: int
    pending_timeout_s: float


@dataclass(slots=True)
class _Task:
    """An item to compute. tried: workers that failed on it. failures: number of failures that the item may have caused."""

    key: int
    item: Any
    tried: set[int] = field(default_factory=set)
    failures: int = 0


@dataclass(slots=True)
class _Member:
    """One worker. slot: its place in the crew. asked: time of the request. told: the user was told that it is waiting."""

    slot: int
    asked: float
    state: Literal["waiting", "loading", "idle", "busy"] = "waiting"
    where: str = ""
    strikes: int = 0
    told: bool = False
    task: _Task | None = None


@dataclass(slots=True)
class Dispatcher(Generic[Item, Result]):
    """A crew of `policy.num_workers` slots; when a worker dies, its slot gets a new one.

    Args:
        backend: Starts and ends workers.
        policy: Numbers of workers and retries.
        expected: Facts that every worker must report.
        clock: Current time in seconds.
    """

    backend: Backend
    policy: Policy
    expected: Facts
    clock: Callable[[], float] = time.monotonic
    facts: Facts = field(default_factory=dict)
    in_order: bool = False
    left_out: dict[int, str] = field(default_factory=dict)
    _members: dict[int, _Member] = field(default_factory=dict)
    _restarts: Counter[int] = field(default_factory=Counter)  # by slot
    _again: deque[_Task] = field(default_factory=deque)
    _last_reason: str = ""

    @property
    def pieces(self) -> int:
        return PIECES_A_WORKER * self.policy.num_workers

    def assemble(self) -> None:
        """Request all workers and wait for the first. Raises FleetError."""
        for slot in range(self.policy.num_workers):
            self._hire(slot)
        while not self.facts:
            self._require_prospect()
            for event in self.backend.events(timeout_s=POLL_S):
                self._receive(event)

    def map(
        self, items: Iterable[tuple[int, Item]], *, watch: Callable[[int, Any], None] = silent
    ) -> Iterator[tuple[int, Result]]:
        fresh = (_Task(key, item) for key, item in items)
        ahead = next(fresh, None)
        while ahead or self._again or any(member.task for member in self._members.values()):
            for worker in [number for number, member in self._members.items() if member.state == "idle"]:
                if task := self._failed_elsewhere(worker):
                    self._give(worker, task)
                elif ahead:
                    self._give(worker, ahead)
                    ahead = next(fresh, None)
            self._require_prospect()
            events = self.backend.events(timeout_s=POLL_S)
            for key, progress in self.backend.progress().items():
                watch(key, progress)
            for event in events:
                task = self._members[event.worker].task if event.worker in self._members else None
                self._receive(event)
                if isinstance(event, Finished) and task:
                    yield task.key, event.result

    def _failed_elsewhere(self, worker: int) -> _Task | None:
        """An item to retry on this worker: one that it has not failed on, unless all running workers have failed on it."""
        there = {number for number, member in self._members.items() if member.state in ("idle", "busy")}
        for task in self._again:
            if worker not in task.tried or there <= task.tried:
                self._again.remove(task)
                return task
        return None

    def _give(self, worker: int, task: _Task) -> None:
        member = self._members[worker]
        member.state, member.task = "busy", task
        self.backend.give(worker, task.key, task.item)

    def _receive(self, event: Event) -> None:
        member = self._members.get(event.worker)
        if member is None:
            return  # from a dismissed worker
        match event:
            case Placed():
                member.state, member.where = "loading", event.where
            case Ready():
                self._welcome(event, member)
            case Finished():
                member.state, member.task, member.strikes = "idle", None, 0
            case Failed() if member.task is None:
                if not self.facts:
                    raise FleetError(
                        f"A worker ({member.where}) cannot start: {event.error}\n{event.error.trace}".rstrip()
                    )
                self._replace(event.worker, f"cannot start: {event.error}")
            case Failed():
                assert member.task is not None
                self._try_again(member.task, event.worker, error=event.error, blamed=True)
                member.state, member.task = "idle", None
                member.strikes += 1
                if member.strikes >= STRIKES:
                    self._replace(event.worker, f"failed {member.strikes} times in a row, last: {event.error}")
            case Gone():
                if member.task is not None:
                    self._try_again(member.task, event.worker, error=WorkError(event.reason), blamed=not event.node)
                self._replace(event.worker, f"died: {event.reason}")

    def _welcome(self, event: Ready, member: _Member) -> None:
        if not self.facts and (lines := differing(self.expected, event.facts)):
            text = "\n".join(lines)
            raise FleetError(f"A worker ({member.where}) has other conditions than this command requires:\n{text}")
        self.facts = self.facts or event.facts
        if lines := differing({**self.facts, **self.expected}, event.facts):
            text = "\n".join(["reports other facts than the first worker, so its results would differ:", *lines])
            self._replace(event.worker, text)
        else:
            member.state = "idle"

    def _try_again(self, task: _Task, worker: int, *, error: WorkError, blamed: bool) -> None:
        task.tried.add(worker)
        task.failures += blamed
        if task.failures < self.policy.max_failures:
            _say(f"Unit {task.key} is retried on another worker ({error})")
            self._again.append(task)
            return
        self.left_out[task.key] = f"failed on {task.failures} workers, last: {error}"
        _say(f"Unit {task.key} is left out: {self.left_out[task.key]}\n{error.trace}".rstrip())

    def _hire(self, slot: int) -> None:
        self._members[self.backend.hire()] = _Member(slot, self.clock())

    def _replace(self, worker: int, reason: str) -> None:
        member = self._members.pop(worker)
        self.backend.dismiss(worker)
        self._last_reason = f"{member.where or 'a worker'} {reason}"
        self._restarts[member.slot] += 1
        spent = self._restarts[member.slot] > self.policy.max_restarts
        if not spent:
            self._hire(member.slot)
        then = (
            f"not replaced, fleet.max_restarts={self.policy.max_restarts} is used up"
            if spent
            else "a new one is requested"
        )
        _say(f"Worker {member.slot} ({member.where or 'not started'}) {reason}; {then}")

    def _require_prospect(self) -> None:
        """Raises FleetError if no worker is running and none will start; reports workers that wait for too long."""
        if not self._members:
            raise FleetError(f"No worker is left. The last one: {self._last_reason}")
        now, limit = self.clock(), self.policy.pending_timeout_s
        late = [member for member in self._members.values() if member.state == "waiting" and now - member.asked > limit]
        if len(late) == len(self._members):
            last = f" The last one: {self._last_reason}." if self._last_reason else ""
            raise FleetError(
                f"No worker has started in fleet.pending_timeout_s={limit:g} seconds: {self.backend.room()}.{last} Free "
                "resources, or request less with fleet.num_cpus, fleet.num_gpus, fleet.resources"
            )
        for member in late:
            if not member.told:
                member.told = True
                _say(
                    f"Worker {member.slot} has waited {limit:g} seconds for resources: {self.backend.room()}. The others take "
                    "its units, and it joins them when it can start"
                )


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False)
