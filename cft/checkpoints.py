"""Reading a training checkpoint, once its checksums have been verified: torch itself does not look at them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from cft.errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing or damaged; the message names the file and the remedy."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint, on the CPU; tensors and plain values only."""
    remedy = "Delete the run folder and start the run anew, or restore the file from a copy"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; the run ended before its first epoch did, start it anew")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). {remedy}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged, part {damaged} does not match its CRC-32. {remedy}")
    return torch.load(path, weights_only=True, map_location="cpu")
