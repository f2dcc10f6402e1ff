"""A planted defect, and the test that must detect it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """In the function (or class) `place`, module:qualified name, `old` becomes `new`; then `test` fails.

    old: an expression or whole statements, as Python; it must occur there exactly once, however it is laid out.
    test: the id of one test that takes seconds.
    """

    name: str
    place: str
    old: str
    new: str
    test: str
