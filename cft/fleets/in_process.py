"""fleet=none: this process is the only worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

from cft.fleets.base import Facts, Item, MakeWorker, Result, Worker, silent


class InProcess:
    """No other workers: units are computed one after another in this process. An error in a unit ends the work, and facts are
    not compared, since there is only one worker."""

    elsewhere: ClassVar[bool] = False

    @contextmanager
    def crew(
        self, make: MakeWorker[Item, Result], *, device: str, expected: Callable[[], Facts]
    ) -> Iterator[_Alone[Item, Result]]:
        worker = make(device)
        try:
            yield _Alone(worker, worker.facts)
        finally:
            worker.close()


@dataclass(slots=True)
class _Alone(Generic[Item, Result]):
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
