"""Which worker gets which item, and what follows when one fails, dies or never comes: without a word about clusters.

    items -> idle worker -> Finished                       the result goes to the caller
                         -> Failed (an exception)          to another worker; after `max_failures` the item is left out
                         -> Gone (the process or its node) the item to another worker, and a replacement is asked for

An item is given only to a worker that is there, so one that waits for room for ever holds none.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol

from cft.console import console
from cft.fleets.base import Facts, FleetError, Item, Result, WorkError, differing, silent

PIECES_A_WORKER = 4  # so that none is idle for long while the last ones finish
POLL_S = 0.5
STRIKES = 2  # failures in a row, of different items: then the worker itself is suspected


@dataclass(frozen=True, slots=True)
class Placed:
    """A worker has a place and makes itself ready there."""

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
    """Raised an exception, over its item or before it was ready; the process lives."""

    worker: int
    error: WorkError


@dataclass(frozen=True, slots=True)
class Gone:
    """The process ended. node: with the machine that it was on, so that its item is not to blame."""

    worker: int
    reason: str
    node: bool = False


Event = Placed | Ready | Finished | Failed | Gone


class Backend(Protocol):
    """Processes that work. Workers are named by the numbers that `hire` gives."""

    def hire(self) -> int:
        """Ask for one more worker; it comes when there is room for it."""
        ...

    def give(self, worker: int, key: int, item: Any) -> None: ...

    def dismiss(self, worker: int) -> None:
        """End its process, wherever it is. No event follows."""
        ...

    def events(self, *, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits for the first."""
        ...

    def progress(self) -> dict[int, Any]:
        """Key -> what was reported last, of items under way."""
        ...

    def room(self) -> str:
        """What a worker needs and what there is, for messages."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """As the arguments of `cft.fleets.ray_cluster.Ray`."""

    num_workers: int
    max_restarts: int
    max_failures: int
    pending_timeout_s: float


@dataclass(slots=True)
class _Task:
    """An item on its way. tried: workers that failed over it. failures: those that it may be to blame for."""

    key: int
    item: Any
    tried: set[int] = field(default_factory=set)
    failures: int = 0


@dataclass(slots=True)
class _Hand:
    """One worker. slot: which of the crew's places it fills. asked: when. told: that it waits has been said."""

    slot: int
    asked: float
    state: Literal["waiting", "loading", "idle", "busy"] = "waiting"
    where: str = ""
    strikes: int = 0
    told: bool = False
    task: _Task | None = None


@dataclass(slots=True)
class Dispatcher(Generic[Item, Result]):
    """A crew of `policy.num_workers` places, each filled again when its worker dies.

    Args:
        backend: Starts and ends workers.
        policy: How often what is tried again.
        expected: Facts that every worker must find.
        clock: Seconds.
    """

    backend: Backend
    policy: Policy
    expected: Facts
    clock: Callable[[], float] = time.monotonic
    facts: Facts = field(default_factory=dict)
    in_order: bool = False
    left_out: dict[int, str] = field(default_factory=dict)
    _hands: dict[int, _Hand] = field(default_factory=dict)
    _restarts: Counter[int] = field(default_factory=Counter)  # by slot
    _again: deque[_Task] = field(default_factory=deque)
    _last_reason: str = ""

    @property
    def pieces(self) -> int:
        return PIECES_A_WORKER * self.policy.num_workers

    def assemble(self) -> None:
        """Ask for all workers and wait for the first. Raises FleetError."""
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
        while ahead or self._again or any(hand.task for hand in self._hands.values()):
            for worker in [number for number, hand in self._hands.items() if hand.state == "idle"]:
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
                task = self._hands[event.worker].task if event.worker in self._hands else None
                self._receive(event)
                if isinstance(event, Finished) and task:
                    yield task.key, event.result

    def _failed_elsewhere(self, worker: int) -> _Task | None:
        """An item to try again: not on a worker that failed over it, unless all that are there have."""
        there = {number for number, hand in self._hands.items() if hand.state in ("idle", "busy")}
        for task in self._again:
            if worker not in task.tried or there <= task.tried:
                self._again.remove(task)
                return task
        return None

    def _give(self, worker: int, task: _Task) -> None:
        hand = self._hands[worker]
        hand.state, hand.task = "busy", task
        self.backend.give(worker, task.key, task.item)

    def _receive(self, event: Event) -> None:
        hand = self._hands.get(event.worker)
        if hand is None:
            return  # of a worker that was dismissed
        match event:
            case Placed():
                hand.state, hand.where = "loading", event.where
            case Ready():
                self._welcome(event, hand)
            case Finished():
                hand.state, hand.task, hand.strikes = "idle", None, 0
            case Failed() if hand.task is None:
                if not self.facts:
                    raise FleetError(
                        f"A worker ({hand.where}) cannot begin: {event.error}\n{event.error.trace}".rstrip()
                    )
                self._replace(event.worker, f"cannot begin: {event.error}")
            case Failed():
                assert hand.task is not None
                self._try_again(hand.task, event.worker, error=event.error, blamed=True)
                hand.state, hand.task = "idle", None
                hand.strikes += 1
                if hand.strikes >= STRIKES:
                    self._replace(event.worker, f"failed {hand.strikes} times in a row, last: {event.error}")
            case Gone():
                if hand.task is not None:
                    self._try_again(hand.task, event.worker, error=WorkError(event.reason), blamed=not event.node)
                self._replace(event.worker, f"died: {event.reason}")

    def _welcome(self, event: Ready, hand: _Hand) -> None:
        if not self.facts and (lines := differing(self.expected, event.facts)):
            text = "\n".join(lines)
            raise FleetError(f"A worker ({hand.where}) would not do the work as this command describes it:\n{text}")
        self.facts = self.facts or event.facts
        if lines := differing({**self.facts, **self.expected}, event.facts):
            text = "\n".join(["finds other facts than the first worker, so its results would differ:", *lines])
            self._replace(event.worker, text)
        else:
            hand.state = "idle"

    def _try_again(self, task: _Task, worker: int, *, error: WorkError, blamed: bool) -> None:
        task.tried.add(worker)
        task.failures += blamed
        if task.failures < self.policy.max_failures:
            _say(f"Unit {task.key} goes to another worker ({error})")
            self._again.append(task)
            return
        self.left_out[task.key] = f"failed on {task.failures} workers, last: {error}"
        _say(f"Unit {task.key} is left out: {self.left_out[task.key]}\n{error.trace}".rstrip())

    def _hire(self, slot: int) -> None:
        self._hands[self.backend.hire()] = _Hand(slot, self.clock())

    def _replace(self, worker: int, reason: str) -> None:
        hand = self._hands.pop(worker)
        self.backend.dismiss(worker)
        self._last_reason = f"{hand.where or 'a worker'} {reason}"
        self._restarts[hand.slot] += 1
        spent = self._restarts[hand.slot] > self.policy.max_restarts
        if not spent:
            self._hire(hand.slot)
        then = (
            f"not replaced, fleet.max_restarts={self.policy.max_restarts} is spent"
            if spent
            else "a new one is asked for"
        )
        _say(f"Worker {hand.slot} ({hand.where or 'without a place'}) {reason}; {then}")

    def _require_prospect(self) -> None:
        """Raises FleetError where no worker is there and none will come; says which ones do not come."""
        if not self._hands:
            raise FleetError(f"No worker is left. The last one: {self._last_reason}")
        now, limit = self.clock(), self.policy.pending_timeout_s
        late = [hand for hand in self._hands.values() if hand.state == "waiting" and now - hand.asked > limit]
        if len(late) == len(self._hands):
            last = f" The last one: {self._last_reason}." if self._last_reason else ""
            raise FleetError(
                f"No worker has come in fleet.pending_timeout_s={limit:g} seconds: {self.backend.room()}.{last} Make room, "
                "or ask for less with fleet.num_cpus, fleet.num_gpus, fleet.resources"
            )
        for hand in late:
            if not hand.told:
                hand.told = True
                _say(
                    f"Worker {hand.slot} has waited {limit:g} seconds for room: {self.backend.room()}. The others do its "
                    "units, and it joins them when there is room"
                )


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False)
