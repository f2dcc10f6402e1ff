"""The process that runs the program: loads it, then answers the tester's requests until it is ended.

    ["load", source]                        -> ["value", null] | ["raised", type, text]
    ["name", name]                          -> its value
    ["call", number, arguments, keywords]   -> ["value", value, arguments as they are afterwards]
    ["get", number, attribute], ["set", number, attribute, value], ["item", number, key], ["items", number],
    ["len", number], ["bool", number], ["str", number]

Whatever the program does to this process, it can only answer requests: the expected results are not in this process.
"""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

from cft.locked.values import Channel, Gone, Unpassable, decoded, encoded

MAX_ITEMS = 1_000_000
_NAME = "program"


def serve(channel: Channel) -> None:
    """Answers until the channel closes."""
    module = types.ModuleType(_NAME)
    sys.modules[_NAME] = module
    objects: list[Any] = []
    numbers: dict[int, int] = {}  # by id; the objects are kept alive

    def stays(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    def plain(value: Any) -> Any:
        return decoded(value, objects.__getitem__)

    def done(request: list[Any]) -> list[Any]:
        what, *rest = request
        if what == "load":
            exec(compile(rest[0], f"<{_NAME}>", "exec"), module.__dict__)
            return [None]
        if what == "name":
            if rest[0] not in module.__dict__:
                raise NameError(f"the program defines no {rest[0]}")
            return [encoded(module.__dict__[rest[0]], stays)]
        target = objects[rest[0]]
        if what == "call":
            arguments = [plain(argument) for argument in rest[1]]
            keywords = {name: plain(value) for name, value in rest[2].items()}
            value = encoded(target(*arguments, **keywords), stays)
            return [value, [encoded(one, stays) for one in (*arguments, *keywords.values())]]
        if what == "get":
            return [encoded(getattr(target, rest[1]), stays)]
        if what == "set":
            setattr(target, rest[1], plain(rest[2]))
            return [None]
        if what == "item":
            return [encoded(target[plain(rest[1])], stays)]
        if what == "items":
            items = list(itertools.islice(iter(target), MAX_ITEMS + 1))
            if len(items) > MAX_ITEMS:
                raise Unpassable(f"more than {MAX_ITEMS:,} items")
            return [encoded(items, stays)]
        return [encoded({"len": len, "bool": bool, "str": str}[what](target), stays)]

    while True:
        try:
            request = channel.receive()
        except Gone:
            return
        try:
            answer = ["value", *done(request)]
        except BaseException as error:  # noqa: BLE001 - whatever a program raises
            answer = ["raised", type(error).__name__, _told(error)]
        try:
            channel.send(answer)
        except Gone:
            return
        except BaseException as error:  # noqa: BLE001 - what cannot be written, or is too much for memory
            channel.send(["raised", type(error).__name__, ""])


def _told(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:  # noqa: BLE001 - whatever its text raises
        return ""
