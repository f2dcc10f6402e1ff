"""Checkpoints on disk: <run>/checkpoints/step-00000012.ckpt after 12 optimizer steps. Only the newest few are kept.

A checkpoint is a file or a folder of shards (`cft/training/checkpointing/sharded.py`). Its checksums are verified before it is
read, since torch does not verify them.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cft.errors import UserError
from cft.files import temporary_beside
from cft.training.checkpointing.sharded import damage_of_folder, read_facts, read_folder

CHECKPOINTS = "checkpoints"  # the folder in a run's folder
_STEP = re.compile(r"step-(\d+)\.ckpt")


class CheckpointError(UserError, ValueError):
    """A checkpoint is missing or damaged; the message names the file and the remedy."""


def path_of_step(folder: Path, *, step: int) -> Path:
    """Path of the checkpoint after `step` optimizer steps."""
    return folder / f"step-{step:08d}.ckpt"


def kept_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _STEP.fullmatch(path.name)), key=_step_of, reverse=True)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of `folder`. Raises CheckpointError if there is none, or it is damaged."""
    found = kept_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"{folder}: no checkpoint; the run ended before it wrote its first one, so start it again"
        )
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
    """The newest undamaged checkpoint of `folder`, or None. skipped: called with each damaged one and its damage."""
    for path in kept_checkpoints(folder):
        damage = damage_of(path)
        if not damage:
            return path
        skipped(path, damage)
    return None


def set_aside(folder: Path, *, start: Path | None) -> None:
    """Before training, move away checkpoints that would otherwise be newer than those about to be written.

    Args:
        folder: the folder of checkpoints.
        start: the checkpoint from which training resumes; later ones are damaged, and are renamed. None: a new run, which
            replaces the run in the folder; all its checkpoints are removed.
    """
    for path in kept_checkpoints(folder):
        if start is None:
            remove(path)
        elif _step_of(path) > _step_of(start):
            path.rename(path.with_name(f"{path.name}.damaged"))


def remove(path: Path) -> None:
    """Delete a checkpoint. A folder is renamed first, so that an interrupted deletion leaves no partial checkpoint."""
    if path.is_dir():
        old = path.rename(temporary_beside(path, end="old"))
        shutil.rmtree(old, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def damage_of(path: Path) -> str:
    """Description of a checkpoint's damage; "" if its checksums are correct."""
    if path.is_dir():
        return damage_of_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        return str(error)
    return f"part {part} does not match its CRC-32" if part is not None else ""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint, on the CPU; tensors and plain values only. Raises CheckpointError."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; the run ended before it was written, so start it again")
    damage = damage_of(path)
    if damage:
        raise CheckpointError(
            f"{path}: damaged ({damage}). Delete the run folder and start the run again, or restore the file from a copy"
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a verified checkpoint. Tensors of a single file are memory-mapped."""
    import torch

    if path.is_dir():
        return read_folder(path)
    return torch.load(path, weights_only=True, map_location="cpu", mmap=True)


def read_position(path: Path) -> dict[str, Any]:
    """The content of a verified checkpoint, without reading weights and optimizer states from disk."""
    return read_facts(path) if path.is_dir() else read_checkpoint(path)


def _step_of(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match.group(1))
