"""Plain data as lines of JSON between two processes, one of which does not trust the other.

Lists, tuples, sets, dictionaries, numbers and text, bytes, ranges, fractions, decimals, built-in types, and combinations of
them. A value of a derived class is sent as its base class, so no comparison defined by the program is ever used. Any other
value stays in its process and is sent as a `Remote` with a number.
"""

from __future__ import annotations

import builtins
import json
import math
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BYTES = 64 << 20
_SMALL = 1 << 62
_COLLECTIONS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class Unpassable(Exception):
    """A value that cannot be sent; the message names it."""


class Gone(Exception):
    """The other side has ended, or sent too much."""


def encoded(value: Any, stays: Callable[[Any], int]) -> Any:
    """stays: gives the number of a value that is not plain data; may raise `Unpassable`."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -_SMALL < number < _SMALL else ["int", hex(number)]
    if isinstance(value, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else ["float", repr(number)]
    if isinstance(value, complex):
        return ["complex", repr(value.real), repr(value.imag)]
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__ if type(value) in (bytes, bytearray) else "bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", [[encoded(key, stays), encoded(one, stays)] for key, one in dict.items(value)]]
    for name, kind in _COLLECTIONS.items():
        if isinstance(value, kind):
            return [name, [encoded(one, stays) for one in kind.__iter__(value)]]
    if type(value) is range:
        return ["range", *(hex(part) for part in (value.start, value.stop, value.step))]
    if type(value) is Fraction:
        return ["Fraction", hex(value.numerator), hex(value.denominator)]
    if type(value) is Decimal:
        return ["Decimal", str(value)]
    if type(value) is type and vars(builtins).get(value.__name__) is value:
        return ["type", value.__name__]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return encoded(value.item(), stays)  # a number that equals a plain one
    return ["remote", stays(value)]


def decoded(value: Any, remote: Callable[[int], Any]) -> Any:
    """remote: gives the proxy of a number. Raises ValueError, TypeError or LookupError for invalid input."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError("no value")
        return value
    kind, *parts = value
    if kind == "dict":
        return {decoded(key, remote): decoded(one, remote) for key, one in parts[0]}
    if made := _COLLECTIONS.get(kind):
        return made([decoded(one, remote) for one in parts[0]])
    if kind in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[kind].fromhex(parts[0])
    if kind == "int":
        return int(parts[0], 16)
    if kind == "float":
        return float(parts[0])
    if kind == "complex":
        return complex(float(parts[0]), float(parts[1]))
    if kind == "range":
        return range(*(int(part, 16) for part in parts))
    if kind == "Fraction":
        return Fraction(int(parts[0], 16), int(parts[1], 16))
    if kind == "Decimal":
        return Decimal(parts[0])
    if kind == "type" and type(named := vars(builtins)[parts[0]]) is type:
        return named
    if kind == "remote" and type(parts[0]) is int:
        return remote(parts[0])
    raise ValueError("no value")


class Channel:
    """Messages over a descriptor, one line of JSON each."""

    __slots__ = ("_buffer", "_descriptor")

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._buffer = descriptor, bytearray()

    def send(self, message: Any) -> None:
        """Raises Gone."""
        data = memoryview(json.dumps(message).encode("ascii") + b"\n")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise Gone("it has ended") from error

    def receive(self) -> Any:
        """Raises Gone, and ValueError for an invalid message."""
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if start > MAX_BYTES:
                raise Gone(f"it sends more than {MAX_BYTES >> 20} MiB at a time")
            try:
                data = os.read(self._descriptor, 1 << 20)
            except OSError as error:
                raise Gone("it has ended") from error
            if not data:
                raise Gone("it has ended")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return json.loads(line)
