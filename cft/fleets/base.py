"""Where units of work are computed: in this process, or by workers on a cluster. Only the caller stores results.

    with fleet.crew(make, device="auto", expected=known) as crew:
        crew.facts                                  # weights, device, versions ...; the same for all workers
        for key, result in crew.map(items):         # [(key, item)]; each key at most once, in any order
            keep(key, result)
    crew.left_out                                   # items that failed repeatedly, with their last error

`make` is serialized, sent to the worker's process and creates the worker there; it holds plain values and never a secret.
Everything that must be identical on all workers is part of the worker's facts; a worker whose facts differ gets no unit.
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

Report = Callable[[Any], None]  # a worker's progress on its current item; the newest report replaces earlier ones
Facts = Mapping[str, Any]  # JSON


class FleetError(UserError, RuntimeError):
    """No worker can do the work, or units failed; committed results are kept."""


class Worker(Protocol[Item_contra, Result_co]):
    """Created once in the process that computes, then used for one item after another."""

    @property
    def facts(self) -> Facts:
        """Everything that results depend on besides the items: weights, device, engine."""
        ...

    def work(self, item: Item_contra, report: Report) -> Result_co: ...

    def close(self) -> None: ...


MakeWorker = Callable[[str], Worker[Item, Result]]  # argument: the worker's device, auto, cpu, cuda or cuda:N


class Crew(Protocol[Item_contra, Result_co]):
    """A group of workers, at least one of which is ready.

    Attributes:
        facts: The facts that all workers share.
        pieces: Recommended number of items for work that can be split anywhere.
        in_order: Whether results arrive in the order of the items.
        left_out: Key -> last error of the items that failed on several workers.
    """

    facts: Facts
    pieces: int
    in_order: bool
    left_out: dict[int, str]

    def map(
        self, items: Iterable[tuple[int, Item_contra]], *, watch: Callable[[int, Any], None] = ...
    ) -> Iterator[tuple[int, Result_co]]:
        """Yield (key, result) pairs as they arrive.

        Args:
            items: (key, item) pairs.
            watch: Called with a key and its worker's last progress report.

        Raises:
            FleetError: No worker is left.
        """
        ...


class Fleet(Protocol):
    """An option of `fleet`.

    Attributes:
        elsewhere: Whether its workers are other processes, possibly on other machines.
    """

    elsewhere: ClassVar[bool]

    def crew(
        self, make: MakeWorker[Item, Result], *, device: str, expected: Callable[[], Facts]
    ) -> AbstractContextManager[Crew[Item, Result]]:
        """Provide workers for the duration of a `with` block.

        Args:
            make: Creates a worker on a device.
            device: As configured.
            expected: Returns the facts that this process expects of the workers.

        Raises:
            FleetError: No worker can be started, or the first worker's facts differ from the expected ones.
        """
        ...


@dataclass(frozen=True, slots=True)
class WorkError:
    """A worker's exception as text, because many library exceptions cannot be serialized.

    Args:
        text: Message for the user: that of a UserError; type and message of any other exception.
        trace: The traceback; "" for a UserError, whose message is complete.
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
    """Package versions, which must be the same on all workers and in the process that stores their results."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {"cft": __version__, "python": platform.python_version(), **packages}


def differing(expected: Facts, found: Facts) -> list[str]:
    """One line for each fact that differs from its expected value. `probe` (of a server's weights) may differ by noise."""
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
    """Default of `watch`: ignore progress reports."""


def left_out_message(left_out: Mapping[int, str], *, kept: str, command: str) -> str:
    """Message for the user: the failed units, what is kept, and the command that retries them."""
    shown = 8
    lines = [f"  unit {key}: {error}" for key, error in sorted(left_out.items())[:shown]]
    lines += [f"  and {len(left_out) - shown} more"] if len(left_out) > shown else []
    count = "1 unit was" if len(left_out) == 1 else f"{len(left_out)} units were"
    return "\n".join([f"{count} left out:", *lines, f"{kept} To try again: {command}"])
