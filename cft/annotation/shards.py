"""Shards: several processes write one annotation at the same time. Assigns units to shards and locks each shard.

    cft annotate -m num_shards=3 shard=0,1,2      # one after another; or three parallel commands, or a job array

Shard i of n annotates the units u with u % n == i, directly into the common store. Each unit has files of its own, so shards
never write the same file and nothing needs to be merged: the table equals that of a single process. An interrupted annotation
can be resumed with another number of shards. Shards share only the manifest, which is written while holding the gate. The
process that ends last finds all units and marks the annotation as finished.

    .lock            the gate: held briefly, while the manifest is written and while processes start and end
    .lock-1-of-3     the lock of shard 1 of 3: held while it runs. The kernel releases both locks when their process dies.

Processes on several machines need a file system with shared locks (flock) on which new files are visible at once.
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
    """The part of an annotation that one process writes.

    request: settings that must be equal in all shards of one annotation.
    to_do: given the commit records of all units, returns the units (of any shard) that are not yet as requested.
    command: the command of this process, without `shard=`.
    in_order: whether units are committed in the order of their numbers, so that an interrupted annotation is a complete
    beginning; otherwise it has gaps, and readers refuse it until they are filled.
    """

    shard: Shard = WHOLE
    request: dict[str, Any] = field(default_factory=dict)
    to_do: Callable[[Mapping[int, dict[str, Any]]], set[int]] = field(default=lambda records: set())
    command: str = ""
    in_order: bool = True

    def state(self, records: Mapping[int, dict[str, Any]], *, at_work: Mapping[Shard, str]) -> dict[str, Any] | None:
        """The manifest's JSON entry about unfinished shards, or None if there are none."""
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
    """Message that names the unfinished shards and the commands to run. state: from `Part.state`."""
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
    """Wait for the gate of `folder` and hold it; creates the folder. Raises WriteError."""
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
    """Hold the lock of `shard`. Must be entered while holding the gate.

    Raises FolderInUse if another process holds this lock or runs with another number of shards; WriteError.
    """
    for other, process in at_work(folder).items():
        role = "" if other == WHOLE else f" as {other}"
        if other == shard:
            remedy = "wait for it, stop it, or choose another output folder"
        elif other.count != shard.count:
            remedy = f"this is {shard}, and all processes that write at the same time need the same num_shards"
        else:
            continue
        raise FolderInUse(f"{folder}: another process ({process}) is writing there{role}; {remedy}")
    path = _place(folder, shard)
    with writing_errors(path):
        handle = path.open("ab", buffering=0)  # with a buffer, a failed write would be retried on closing
    with handle:
        with writing_errors(path):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


def at_work(folder: Path, *, but: Shard | None = None) -> dict[Shard, str]:
    """Shards with a running process, and its description. Called while holding the gate; removes locks of dead processes."""
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
                path.unlink()  # safe: lock files are opened only while holding the gate
    return found


def clear_place(folder: Path, shard: Shard) -> None:
    """Remove the lock file of `shard`. Called while holding the gate, by the process that owns it, after its last write."""
    _place(folder, shard).unlink(missing_ok=True)


def _place(folder: Path, shard: Shard) -> Path:
    return folder / f".lock-{shard.index}-of-{shard.count}"
