"""fleet=ray: each worker is a Ray actor that holds model, engine and verifiers, and computes whole units.

Only one process, the driver, makes decisions and writes (`cft/fleets/dispatch.py`): actors get an item and return its result.
A worker that dies is replaced by a new actor instead of being restarted by Ray; Ray places it where resources are available,
and it holds no unit until it has started. Workers send their progress at intervals to another actor, from which the driver
reads it.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cft.errors import BadValue
from cft.fleets.base import Facts, FleetError, Item, MakeWorker, Result, WorkError
from cft.fleets.dispatch import Dispatcher, Event, Failed, Finished, Gone, Placed, Policy, Ready
from cft.ranges import AboveZero, AtLeastOne, AtLeastZero, Count, in_range

if TYPE_CHECKING:
    from cft.fleets.base import Worker

REPORT_EVERY_S = 1.0
CLOSING_S = 5.0  # time for a worker to release resources such as processes of its own


class Ray:
    """Workers on a Ray cluster, or on this machine.

    The package must be installed on every node in the same versions, and model.path must lead to the same weights there.

    Args:
        address: "auto" (the cluster that this machine is part of, or RAY_ADDRESS), a cluster's address, or None: RAY_ADDRESS
            if it is set, else a cluster on this machine only, started for this command and ended with it.
        num_workers: Number of workers; None = as many as the cluster can hold when the command starts.
        num_cpus: CPU cores per worker.
        num_gpus: GPUs per worker; a fraction shares a GPU. None = 1 if the cluster has GPUs and device is not cpu, else 0.
            Without a GPU a worker computes on the CPU.
        resources: Further resources per worker, by their names in the cluster, for example to require a kind of node.
        max_restarts: How often a dead worker is replaced.
        max_failures: Number of failures, on different workers, after which a unit is left out.
        pending_timeout_s: Seconds after which a worker that has not started is reported, and after which the command ends if
            no worker has started.

    Raises:
        BadValue: The address is one of a Ray client.
    """

    elsewhere: ClassVar[bool] = True

    @in_range
    def __init__(
        self,
        *,
        address: str | None,
        num_workers: AtLeastOne | None,
        num_cpus: AboveZero,
        num_gpus: AtLeastZero | None,
        resources: Mapping[str, float],
        max_restarts: Count,
        max_failures: AtLeastOne,
        pending_timeout_s: AboveZero,
    ) -> None:
        if (address or "").startswith("ray://"):
            raise BadValue(
                f"fleet.address={address}: the Ray client is not supported; run the command on a node of the cluster "
                "(ray job submit -- cft ...) with fleet.address=auto"
            )
        self.address = address
        self.num_workers = num_workers
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.resources = dict(resources)
        self.max_restarts = max_restarts
        self.max_failures = max_failures
        self.pending_timeout_s = pending_timeout_s

    @contextmanager
    def crew(
        self, make: MakeWorker[Item, Result], *, device: str, expected: Callable[[], Facts]
    ) -> Iterator[Dispatcher[Item, Result]]:
        """See `cft.fleets.base.Fleet`."""
        known = expected()  # first, so that local errors are raised before workers are requested
        with _connected(self.address):
            needs = self._needs(device)
            actors = Actors(make, device=device if needs.get("GPU") or device == "cuda" else "cpu", needs=needs)
            policy = Policy(
                self.num_workers or _room_for(needs), self.max_restarts, self.max_failures, self.pending_timeout_s
            )
            dispatcher: Dispatcher[Item, Result] = Dispatcher(actors, policy, known)
            try:
                dispatcher.assemble()
                yield dispatcher
            finally:
                actors.close()

    def _needs(self, device: str) -> dict[str, float]:
        """Resources of one worker by Ray's names. Raises FleetError."""
        ray = _ray()
        gpus = self.num_gpus
        if gpus is None:
            gpus = float(device != "cpu" and (device == "cuda" or ray.cluster_resources().get("GPU", 0) > 0))
        return {"CPU": self.num_cpus, "GPU": gpus, **self.resources}


def _ray() -> Any:
    import ray  # pyright: ignore[reportMissingImports] - an optional dependency, verified by the config check

    return ray


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Context with a connection to the cluster. Raises FleetError if the cluster does not respond."""
    ray = _ray()
    if ray.is_initialized():  # by the calling program, whose connection is kept
        yield
        return
    wanted = address or os.environ.get("RAY_ADDRESS") or "local"
    # The workers' output would break the progress bar; it is in Ray's own log files.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if wanted == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address=wanted, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        said = str(error).strip().splitlines()
        raise FleetError(
            f"fleet.address={wanted}: no Ray cluster can be reached there ({said[0] if said else type(error).__name__}). Start "
            "one with ray start --head, or set fleet.address=null to use only this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _room_for(needs: Mapping[str, float]) -> int:
    """Number of workers that the whole cluster can hold, at least 1, since nodes may be added."""
    ray = _ray()
    there = ray.cluster_resources()
    return max(1, int(min(there.get(name, 0) // need for name, need in needs.items() if need)))


class _Actor:
    """A worker as a Ray actor. It returns plain values: (True, value) or (False, WorkError)."""

    def __init__(self, number: int, board: Any) -> None:
        self.number, self.board = number, board
        self.worker: Worker[Any, Any] | None = None
        self.reported = 0.0

    def place(self) -> tuple[str, str]:
        """The node id, and a readable location."""
        ray = _ray()
        context = ray.get_runtime_context()
        return context.get_node_id(), f"process {os.getpid()} on {ray.util.get_node_ip_address()}"

    def start(self, make: MakeWorker[Any, Any], device: str, folder: str) -> tuple[bool, Any]:
        """Create the worker. folder: the driver's working directory, to which paths of the configuration are relative."""
        try:
            if os.path.isdir(folder):
                os.chdir(folder)
            self.worker = make(device)
            return True, dict(self.worker.facts)
        except Exception as error:  # noqa: BLE001 - the driver handles every error
            return False, WorkError.of(error)

    def work(self, key: int, item: Any) -> tuple[bool, Any]:
        assert self.worker is not None
        try:
            return True, self.worker.work(item, lambda progress: self._report(key, progress))
        except Exception as error:  # noqa: BLE001 - the driver handles every error
            return False, WorkError.of(error)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()

    def _report(self, key: int, progress: Any) -> None:
        if time.monotonic() - self.reported > REPORT_EVERY_S:
            self.reported = time.monotonic()
            self.board.put.remote(self.number, key, progress)


class _Board:
    """Actor that holds the workers' latest progress reports for the driver."""

    def __init__(self) -> None:
        self.words: dict[int, tuple[int, Any]] = {}

    def put(self, number: int, key: int, progress: Any) -> None:
        self.words[number] = (key, progress)

    def read(self) -> dict[int, tuple[int, Any]]:
        return self.words


@dataclass(slots=True)
class Actors:
    """A `cft.fleets.dispatch.Backend` on the cluster that this process is connected to.

    Args:
        make: Creates a worker on the device.
        device: As in `cft.models.device.place`.
        needs: Resources of one worker by Ray's names.
    """

    make: MakeWorker[Any, Any]
    device: str
    needs: Mapping[str, float]
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _actors: dict[int, Any] = field(default_factory=dict)
    _nodes: dict[int, str] = field(default_factory=dict)
    _keys: dict[int, int] = field(default_factory=dict)  # worker -> key of its current item
    _calls: dict[Any, tuple[int, Literal["place", "start", "work"]]] = field(default_factory=dict)
    _board: Any = None
    _reading: Any = None

    def hire(self) -> int:
        ray = _ray()
        if self._board is None:
            self._board = ray.remote(_Board).options(num_cpus=0, max_restarts=-1).remote()
        further = {name: need for name, need in self.needs.items() if name not in ("CPU", "GPU")}
        number = next(self._numbers)
        self._actors[number] = (
            ray.remote(_Actor)
            .options(
                num_cpus=self.needs["CPU"],
                num_gpus=self.needs["GPU"],
                resources=further,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            .remote(number, self._board)
        )
        self._calls[self._actors[number].place.remote()] = (number, "place")
        return number

    def give(self, worker: int, key: int, item: Any) -> None:
        self._keys[worker] = key
        self._calls[self._actors[worker].work.remote(key, item)] = (worker, "work")

    def dismiss(self, worker: int) -> None:
        ray = _ray()
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] != worker}
        self._keys.pop(worker, None)
        ray.kill(self._actors.pop(worker))

    def events(self, *, timeout_s: float) -> list[Event]:
        ray = _ray()
        calls = list(self._calls)
        if not calls:
            time.sleep(timeout_s)
            return []
        done, _ = ray.wait(calls, num_returns=1, timeout=timeout_s)
        if done:
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        return [self._event(call) for call in done]

    def _event(self, call: Any) -> Event:
        ray = _ray()
        worker, what = self._calls.pop(call)
        self._keys.pop(worker, None)
        try:
            found = ray.get(call)
        except ray.exceptions.RayTaskError as error:  # Ray's own error: for example, a value cannot be pickled
            return Failed(worker, WorkError(str(error).strip().splitlines()[-1], str(error)))
        except ray.exceptions.RayError as error:
            return Gone(worker, _reason(error), node=self._nodes.get(worker) in _lost_nodes())
        if what == "place":
            self._nodes[worker], where = found
            start = self._actors[worker].start.remote(self.make, self.device, os.getcwd())
            self._calls[start] = (worker, "start")
            return Placed(worker, where)
        fine, value = found
        if not fine:
            return Failed(worker, value)
        return Ready(worker, value) if what == "start" else Finished(worker, value)

    def progress(self) -> dict[int, Any]:
        ray = _ray()
        if self._board is None:
            return {}
        if self._reading is None:
            self._reading = self._board.read.remote()
        if not ray.wait([self._reading], timeout=0)[0]:
            return {}
        reading, self._reading = self._reading, None
        try:
            words = ray.get(reading)
        except ray.exceptions.RayError:  # the actor's node was lost; Ray restarts it on another
            return {}
        return {key: progress for number, (key, progress) in words.items() if self._keys.get(number) == key}

    def room(self) -> str:
        ray = _ray()
        there, free = ray.cluster_resources(), ray.available_resources()
        asked = {name: need for name, need in self.needs.items() if need}
        has = ", ".join(f"{there.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in asked)
        return f"it needs {', '.join(f'{need:g} {name}' for name, need in asked.items())}, the cluster has {has}"

    def close(self) -> None:
        """End all workers. Items in progress are lost; idle workers release their resources first."""
        ray = _ray()
        busy = {worker for worker, _ in self._calls.values()}
        with suppress(ray.exceptions.RayError):
            closing = [actor.close.remote() for worker, actor in self._actors.items() if worker not in busy]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSING_S)
        for actor in [*self._actors.values(), *([self._board] if self._board is not None else [])]:
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)


def _reason(error: Exception) -> str:
    """The sentence of Ray's message that says what happened, without its guesses at the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [
        line
        for line in lines
        if not line.startswith(("class_name:", "actor_id:", "pid:", "name:", "namespace:", "ip:"))
    ]
    return " ".join(causes[1:2] or causes[:1] or [type(error).__name__]).partition(" Some common causes")[0].rstrip(".")


def _lost_nodes() -> set[str]:
    ray = _ray()
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
