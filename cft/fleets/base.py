"""Where units of work are computed: in this process, or by workers on a cluster. The caller alone keeps what comes back.

    with fleet.crew(make, device="auto", expected=known) as crew:
        crew.facts                                  # what every worker found where it works: the same for all of them
        for key, result in crew.map(items):         # [(key, item)]; each key at most once, in any order
            keep(key, result)
    crew.left_out                                   # what failed again and again, with its last error

`make` travels to where the work is done and makes a worker there; it holds plain values and never a secret. What must
be alike everywhere is in the worker's facts: a worker with others gets no unit.
"""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar, Protocol, TypeVar

from cft import __version__
from cft.errors import UserError

Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
Item = TypeVar("Item")
Result = TypeVar("Result")

Report = Callable[[Any], None]  # a worker's word on the item at hand; the newest stands for all before it
Facts = Mapping[str, Any]  # JSON


class FleetError(UserError, RuntimeError):
    """No worker can do the work, or units failed; what is committed is kept."""


class Worker(Protocol[Item_contra, Result_co]):
    """Made once where the work is done, and used for one item after another."""

    @property
    def facts(self) -> Facts:
        """What results depend on besides the items: weights, device, engine."""
        ...

    def work(self, item: Item_contra, report: Report) -> Result_co: ...

    def close(self) -> None: ...


MakeWorker = Callable[[str], Worker[Item, Result]]  # of the device that it shall work on: auto, cpu, cuda, cuda:N


class Crew(Protocol[Item_contra, Result_co]):
    """Workers that are ready, or at least one of them.

    Attributes:
        facts: Of all its workers.
        pieces: In how many items work is best cut that may be cut anywhere.
        in_order: Whether results come in the order of the items.
        left_out: Key -> error of items that failed on one worker after another.
    """

    facts: Facts
    pieces: int
    in_order: bool
    left_out: dict[int, str]

    def map(
        self, items: Iterable[tuple[int, Item_contra]], *, watch: Callable[[int, Any], None] = ...
    ) -> Iterator[tuple[int, Result_co]]:
        """Results as they come. watch: called with (key, what its worker reported last). Raises FleetError."""
        ...


class Fleet(Protocol):
    """An option of `fleet`. elsewhere: its workers are other processes, perhaps on other machines."""

    elsewhere: ClassVar[bool]

    def crew(
        self, make: MakeWorker[Item, Result], *, device: str, expected: Callable[[], Facts]
    ) -> AbstractContextManager[Crew[Item, Result]]:
        """Workers for the length of a block. device: as configured; expected: facts as the caller finds them here.

        Raises FleetError where no worker can be had, or where it finds other facts than those expected.
        """
        ...


@dataclass(frozen=True, slots=True)
class WorkError:
    """What a worker's exception was, as text: exceptions of libraries do not travel well.

    Args:
        text: For the user: the message of a UserError, the type and message of others.
        trace: The traceback, "" of a UserError, whose message is complete.
    """

    text: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> WorkError:
        import traceback

        if isinstance(error, UserError):
            return cls(str(error))
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        return cls(said, "".join(traceback.format_exception(error)))

    def __str__(self) -> str:
        return self.text


def package_facts() -> dict[str, str]:
    """Versions that workers must share with each other, and with whoever keeps their results."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {"cft": __version__, "python": platform.python_version(), **packages}


def differing(expected: Facts, found: Facts) -> list[str]:
    """A line for each fact that is expected and found otherwise. `probe`: of a server's weights, equal but for noise."""
    return [
        f"  {key}: expected {expected[key]!r}, found {found.get(key)!r}"
        for key in sorted(expected)
        if not (_same_servers if key == "probe" else operator.eq)(expected[key], found.get(key))
    ]


def _same_servers(expected: Any, found: Any) -> bool:
    if not expected or not found:
        return expected == found
    from cft.engines.server.probe import SAME_PROBE, probes_differ

    return probes_differ(found, expected) <= SAME_PROBE


def silent(key: int, progress: Any) -> None:
    """Watches nothing."""


def left_out_message(left_out: Mapping[int, str], *, kept: str, command: str) -> str:
    """What failed, what is kept, and what to type."""
    shown = 8
    lines = [f"  unit {key}: {error}" for key, error in sorted(left_out.items())[:shown]]
    lines += [f"  and {len(left_out) - shown} more"] if len(left_out) > shown else []
    count = "1 unit was" if len(left_out) == 1 else f"{len(left_out)} units were"
    return "\n".join([f"{count} left out:", *lines, f"{kept} To try again: {command}"])
