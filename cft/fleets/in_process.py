"""fleet=none: this process is the only worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

from cft.fleets.base import Facts, Item, MakeWorker, Result, Worker, silent


class InProcess:
    """Compute units one after another in this process.

    An exception in a unit ends the command. Facts are not compared with expected ones, since there is only one worker.
    """

    elsewhere: ClassVar[bool] = False

    @contextmanager
    def crew(
        self, make: MakeWorker[Item, Result], *, device: str, expected: Callable[[], Facts]
    ) -> Iterator[_SingleWorker[Item, Result]]:
        worker = make(device)
        try:
            yield _SingleWorker(worker, worker.facts)
        finally:
            worker.close()


@dataclass(slots=True)
class _SingleWorker(Generic[Item, Result]):
    worker: Worker[Item, Result]
    facts: Facts
    pieces: int = 1
    in_order: bool = True
    left_out: dict[int, str] = field(default_factory=dict)

    def map(
        self, items: Iterable[tuple[int, Item]], *, watch: Callable[[int, Any], None] = silent
    ) -> Iterator[tuple[int, Result]]:
        for key, item in items:
            yield key, self.worker.work(item, lambda progress, key=key: watch(key, progress))
