"""Which problems fit into the context of a model: not run is not wrong.

    room of a problem = context of the model - tokens of its prompt

A problem with room for fewer than max_new_tokens is run with that room, and its response may be cut off, as at any limit. A
problem without room for a single token is not run: it is in no denominator, and its id is in the results. A measurement that
would exclude more than `max_not_run` of its problems is refused before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cft.console import console
from cft.errors import UserError
from cft.types import Problem

SHOWN = 8  # ids in a message; the results hold all


class NoRoom(UserError, ValueError):
    """Too many problems cannot be run in the model's context; the message names the key, the ids and the remedy."""


@dataclass(frozen=True, slots=True)
class Room:
    """run: the problems that are measured. not_run: those whose prompt leaves no room for a token. short: of `run`, those
    with room for fewer tokens than requested. context: tokens of the model's context."""

    run: tuple[Problem, ...]
    not_run: tuple[Problem, ...]
    short: tuple[Problem, ...]
    context: int

    def facts(self) -> dict[str, Any]:
        """Its entries in results.json."""
        return {"problems": len(self.run), "not_run": _ids(self.not_run), "short_of_room": _ids(self.short)}


def room_for(
    problems: Sequence[Problem], *, prompt_len: Callable[[Problem], int], context: int, max_new_tokens: int
) -> Room:
    """prompt_len: tokens of a problem's prompt. context: the model's, in tokens, prompt and response together."""
    rooms = [context - prompt_len(problem) for problem in problems]
    of = list(zip(problems, rooms, strict=True))
    return Room(
        tuple(problem for problem, room in of if room >= 1),
        tuple(problem for problem, room in of if room < 1),
        tuple(problem for problem, room in of if 1 <= room < max_new_tokens),
        context,
    )


def require_room(room: Room, *, where: str, key: str, max_not_run: float, max_new_tokens: int) -> None:
    """Report problems that are not run as requested. where: the benchmark and its split. key: the setting of `max_not_run`.

    Raises NoRoom if none can be run, or more than the fraction `max_not_run` cannot.
    """
    total = len(room.run) + len(room.not_run)
    if total == 0:
        raise NoRoom(f"{where}: no problems, so nothing can be measured; choose another split or a limit above 0")
    fraction = len(room.not_run) / total
    if not room.run or fraction > max_not_run:
        raise NoRoom(
            f"{key}={max_not_run:g}: {len(room.not_run)} of the {total} problems of {where} ({fraction:.1%}) have a prompt "
            f"that leaves no room in the model's context of {room.context} tokens: {_shown(room.not_run)}. A measurement "
            "without them is one of other problems; shorten the prompt, choose a model with a longer context, or accept "
            f"that they are left out (they are named in the results): {key}={_fraction_above(fraction):g}"
        )
    if room.not_run:
        console.print(
            f"Not run: {len(room.not_run)} of {total} problems of {where}, whose prompt leaves no room in the context of "
            f"{room.context} tokens: {_shown(room.not_run)}. Every rate is of the other {len(room.run)}.",
            markup=False,
        )
    if room.short:
        console.print(
            f"Short of room: {len(room.short)} of {len(room.run)} problems of {where} have room for fewer than "
            f"max_new_tokens={max_new_tokens} tokens in the context of {room.context}, and are run with the room there is.",
            markup=False,
        )


def _fraction_above(fraction: float) -> float:
    """Two digits, rounded up: a setting that is accepted."""
    return -(-round(fraction * 10_000) // 100) / 100


def _ids(problems: Sequence[Problem]) -> list[str]:
    return [problem.id for problem in problems]


def _shown(problems: Sequence[Problem]) -> str:
    more = len(problems) - SHOWN
    return ", ".join(_ids(problems[:SHOWN])) + (f" and {more} more" if more > 0 else "")
