"""Several processes that write one annotation at the same time: whose units are whose, and who is at work.

    cft annotate -m num_shards=3 shard=0,1,2      # one after another; or three commands side by side, or a job array

Shard i of n annotates the units u with u % n == i, straight into the one store. A unit is made of files of its own, so
shards never write the same file, and nothing is left to merge: the table is the one a single process would have written,
and any number of shards may go on where another number was interrupted. All they share is the manifest, which is written
behind the gate. Whichever process ends last finds every unit there and marks the annotation finished.

    .lock            the gate: held for moments, while the manifest is written and while processes come and go
    .lock-1-of-3     the place of shard 1 of 3: held while it is at work. The kernel frees both when their process dies.

Processes on several machines need a file system that shares locks (flock) and shows new files at once.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cft.files import FolderInUse, writing_errors

COMMANDS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `index` of `count`, from 0."""

    index: int
    count: int

    def has(self, unit: int) -> bool:
        return unit % self.count == self.index

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


WHOLE = Shard(0, 1)


@dataclass(frozen=True, slots=True)
class Part:
    """What one process does of an annotation.

    request: what all shards of one annotation must ask for alike. to_do: from the commit records of all units, the
    numbers of those that are not yet as requested, whosever they are. command: this process's, less its `shard=`.
    in_order: whether its units are committed in the order of their numbers, so that what an interruption leaves is a
    beginning; else it has gaps, and no reader is let in until they are filled.
    """

    shard: Shard = WHOLE
    request: dict[str, Any] = field(default_factory=dict)
    to_do: Callable[[Mapping[int, dict[str, Any]]], set[int]] = field(default=lambda records: set())
    command: str = ""
    in_order: bool = True

    def state(self, records: Mapping[int, dict[str, Any]], *, at_work: Mapping[Shard, str]) -> dict[str, Any] | None:
        """The manifest's entry about shards that are not done, or None where all are. JSON."""
        unfinished = {unit % self.shard.count for unit in self.to_do(records)} | {other.index for other in at_work}
        if not unfinished:
            return None
        return {
            "count": self.shard.count,
            "unfinished": sorted(unfinished),
            "request": self.request,
            "command": self.command,
        }


ALONE = Part()


def unfinished_message(state: Mapping[str, Any]) -> str:
    """Which shards are not done, and what to type; `state`: of Part."""
    if state["count"] == 1:
        return f"not done yet: some of its units are missing. Wait if it is running; else finish it with:\n  {state['command']}"
    shards = state["unfinished"]
    names = f"shard{'s' if len(shards) > 1 else ''} {', '.join(map(str, shards))} of {state['count']}"
    lines = [f"  {state['command']} shard={shard}" for shard in shards[:COMMANDS_SHOWN]]
    if more := shards[COMMANDS_SHOWN:]:
        lines.append(f"  and likewise with shard={', '.join(map(str, more))}")
    return f"not done yet: {names}. Wait for those that are running; start the others with:\n" + "\n".join(lines)


@contextmanager
def gate(folder: Path) -> Iterator[None]:
    """Wait for the gate of `folder` and hold it. The folder is made. Raises WriteError."""
    path = folder / ".lock"
    with writing_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    with handle:
        with writing_errors(path):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def place(folder: Path, shard: Shard) -> Iterator[None]:
    """Be the one process at work on `shard`. Entered behind the gate.

    Raises FolderInUse where another process has the place, or counts shards otherwise; WriteError.
    """
    for other, process in at_work(folder).items():
        role = "" if other == WHOLE else f" as {other}"
        if other == shard:
            remedy = "wait for it, stop it, or choose another output folder"
        elif other.count != shard.count:
            remedy = f"this is {shard}, and all that write at the same time need the same num_shards"
        else:
            continue
        raise FolderInUse(f"{folder}: another process ({process}) is writing there{role}; {remedy}")
    path = _place(folder, shard)
    with writing_errors(path):
        handle = path.open("ab", buffering=0)  # a buffer that could not be written would be tried again on closing
    with handle:
        with writing_errors(path):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


def at_work(folder: Path, *, but: Shard | None = None) -> dict[Shard, str]:
    """Shards with a process at work, and which. Called behind the gate; clears the places that the dead left."""
    found = {}
    for path in sorted(folder.glob(".lock-*-of-*")):
        if not (name := re.fullmatch(r"\.lock-(\d+)-of-(\d+)", path.name)):
            continue
        shard = Shard(int(name[1]), int(name[2]))
        if shard == but:
            continue
        with writing_errors(path), path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                found[shard] = handle.read().strip() or "unknown"
            else:
                path.unlink()  # places are opened behind the gate only: nobody can be about to lock this file
    return found


def clear_place(folder: Path, shard: Shard) -> None:
    """Leave for good: behind the gate, by the process whose place it is, after its last write."""
    _place(folder, shard).unlink(missing_ok=True)


def _place(folder: Path, shard: Shard) -> Path:
    return folder / f".lock-{shard.index}-of-{shard.count}"
