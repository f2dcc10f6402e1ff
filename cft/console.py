"""Console output and progress: a live bar in a terminal, otherwise a plain line every 10 seconds.

Only one live display may exist per process (rich refuses a second), so every bar is opened by `progress`, which also closes it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cft.run_log import log

PLAIN_EVERY_S = 10.0


class _Recorded(Console):
    """Also writes printed text to the run's log (`cft/run_log.py`)."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        for text in objects:
            if isinstance(text, str):
                log.info("%s", text)


console: Console = _Recorded(stderr=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A duration as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """A number of bytes as text."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"


class Bar:
    """Progress of one task; created by `progress`."""

    def __init__(self, title: str, total: int, live: Progress | None) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self._live = live
        self._task = live.add_task(title, total=total, facts="") if live else None
        self._facts = ""
        self._started = self._printed = time.monotonic()
        self._before = 0.0  # steps done by an earlier process, whose duration is unknown

    def begin(self, done: float, *, total: int) -> None:
        """Start the clock, with `done` of `total` steps already done."""
        self._before, self.done, self.total = done, done, total
        self._started = self._printed = time.monotonic()
        self.advance(0)

    def advance(self, steps: float = 1, *, facts: str = "", total: int | None = None) -> None:
        """Count `steps` more steps. facts: new text to show after the count, if not "". total: a new estimate of the total."""
        self.done += steps
        self.total = self.total if total is None else total
        self._facts = facts or self._facts
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, total=self.total, facts=self._facts)
        elif time.monotonic() - self._printed > PLAIN_EVERY_S:
            self._printed = time.monotonic()
            elapsed = self._printed - self._started
            here = self.done - self._before
            left = elapsed / here * max(self.total - self.done, 0) if here else float("nan")
            print(
                f"{self.title}: {self.done:.0f}/{self.total} {self._facts} | {elapsed:.0f} s, about {left:.0f} s left",
                flush=True,
            )


@contextmanager
def progress(title: str, *, total: int) -> Iterator[Bar]:
    """Show a bar of `total` steps for the duration of a `with` block."""
    if not console.is_terminal or not sys.stdout.isatty():
        yield Bar(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as live:
        yield Bar(title, total, live)
