"""Checkpoints on disk: <run>/checkpoints/step-00000012.ckpt after 12 optimizer steps, the newest few are kept.

A file is read once its checksums have been verified: torch itself does not look at them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cft.errors import UserError

CHECKPOINTS = "checkpoints"  # the folder in a run's folder
_STEP = re.compile(r"step-(\d+)\.ckpt")


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing or damaged; the message names the file and the remedy."""


def path_of_step(folder: Path, *, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps is."""
    return folder / f"step-{step:08d}.ckpt"


def kept_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints to resume from, the newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _STEP.fullmatch(path.name)), key=_step_of, reverse=True)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of `folder`, if it is sound. Raises CheckpointError if there is none, or it is damaged."""
    found = kept_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint; the run ended before it wrote its first one, start it again")
    damage = damage_of(found[0])
    if damage:
        remedy = (
            f"Delete it to resume from {found[1].name}, or restore it from a copy"
            if len(found) > 1
            else "Delete the run folder and start the run again, or restore the file from a copy"
        )
        raise CheckpointError(f"{found[0]}: damaged ({damage}). {remedy}")
    return found[0]


def newest_sound_checkpoint(folder: Path, *, skipped: Callable[[Path, str], None]) -> Path | None:
    """The newest checkpoint of `folder` that is sound, None without one. skipped: told of each damaged one and why."""
    for path in kept_checkpoints(folder):
        damage = damage_of(path)
        if not damage:
            return path
        skipped(path, damage)
    return None


def set_aside(folder: Path, *, start: Path | None) -> None:
    """Before training from `start`: files that were written later are damaged and renamed. None: they are those of a run
    that this one replaces, and go. Either way they would be taken for newer ones than those to come."""
    for path in kept_checkpoints(folder):
        if start is None:
            path.unlink()
        elif _step_of(path) > _step_of(start):
            path.rename(path.with_name(f"{path.name}.damaged"))


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint file, "" if its checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        return str(error)
    return f"part {part} does not match its CRC-32" if part is not None else ""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint, on the CPU; tensors and plain values only. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; the run ended before it was written, start it again")
    damage = damage_of(path)
    if damage:
        raise CheckpointError(
            f"{path}: damaged ({damage}). Delete the run folder and start the run again, or restore the file from a copy"
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint known to be sound; tensors are read from disk when they are used."""
    import torch

    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def _step_of(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match.group(1))
