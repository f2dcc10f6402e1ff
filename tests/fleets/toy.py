"""Workers controlled by their items, and a fleet that skips units; no model needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from cft.errors import BadValue
from cft.fleets import InProcess
from cft.fleets.base import silent


class Toy:
    """Squares numbers. An item may also be "raise", "refuse" or "die"."""

    def __init__(self, device: str) -> None:
        self.facts = {"device": device, "weights": "w1"}

    def work(self, item: int | str, report: Callable[[Any], None]) -> int:
        report(f"at {item}")
        if item == "raise":
            raise ValueError("poison")
        if item == "refuse":
            raise BadValue("data.field=x: expected y")
        if item == "die":
            os._exit(1)
        time.sleep(0.05)
        assert isinstance(item, int)
        return item * item

    def close(self) -> None:
        pass


class Unable(Toy):
    def __init__(self, device: str) -> None:
        raise BadValue("model.path=x: no such folder here")


class Leaving:
    """Like fleet=none, but the last unit comes first and unit 1 is skipped."""

    elsewhere: ClassVar[bool] = True

    @contextmanager
    def crew(self, make: Any, *, device: str, expected: Callable[[], Any]) -> Iterator[Any]:
        known = expected()
        with InProcess().crew(make, device=device, expected=expected) as alone:
            assert {key: alone.facts[key] for key in known} == known, "what workers must find is not what they find"
            yield _Leaving(alone)


class _Leaving:
    in_order, pieces = False, 3

    def __init__(self, alone: Any) -> None:
        self.alone, self.facts, self.left_out = alone, alone.facts, dict[int, str]()

    def map(
        self, items: Iterable[tuple[int, Any]], *, watch: Callable[[int, Any], None] = silent
    ) -> Iterator[tuple[int, Any]]:
        known = dict(items)
        if 1 in known:
            self.left_out[1] = "failed on 3 workers, last: ValueError: poison"
        yield from self.alone.map([(key, item) for key, item in reversed(known.items()) if key != 1], watch=watch)
