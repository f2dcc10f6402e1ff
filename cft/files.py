"""Atomic file writes (write to a temporary name, fsync, rename) and locks on folders."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from cft.errors import UserError

LARGEST_READ_AHEAD = 20_000_000  # bytes of a file that is read as a whole to find its faults before a stage starts

_REMEDY = {
    errno.ENOSPC: "Free some disk space",
    errno.EDQUOT: "Free some of your disk quota",
    errno.EACCES: "Make the folder writable, or choose another",
    errno.EPERM: "Make the folder writable, or choose another",
    errno.EROFS: "Choose a folder on a writable file system",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f)",
}
_TEMPORARY = re.compile(r"\..+\.(\d+)\.(?:tmp|old)")
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")


class WriteError(UserError, OSError):
    """A file cannot be written; the message gives the reason and says that committed results are kept."""


class FolderInUse(UserError, RuntimeError):
    """Another process writes to the folder."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary path), fsync, rename to `path`.

    On an error the old file is kept and the temporary file deleted. Raises WriteError.
    """
    temporary = temporary_beside(path)
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def temporary_beside(path: Path, *, end: Literal["tmp", "old"] = "tmp") -> Path:
    """Temporary path of this process next to `path`: of its new version (tmp) or of the replaced one (old)."""
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the temporary files of killed writers below `folder`; returns them.

    Call it with the lock of `folder` held. Other processes may be writing to subfolders, so temporary files of running
    processes are kept.
    """
    found = [
        path
        for path in sorted(folder.rglob(".*"))
        if (name := _TEMPORARY.fullmatch(path.name)) and not _is_running(int(name[1]))
    ]
    with writing_errors(folder):
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return found


def _is_running(process: int) -> bool:
    """Whether another process with this id runs on this machine. A file with our own id is from a dead process."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, replacing an existing one."""
    old = temporary_beside(folder, end="old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)


@contextmanager
def writing_errors(path: Path) -> Iterator[None]:
    """Convert an OSError, also one wrapped by a library's exception, into a WriteError about `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = _system_error(error)
        if found is None:
            raise
        remedy = _REMEDY.get(found.errno or 0, "Repair the disk, or choose another folder")
        raise WriteError(
            f"{path}: cannot be written ({found.strerror or found}). {remedy}, then run the same command again; what "
            "was committed before is kept"
        ) from error


def _system_error(error: Exception) -> OSError | None:
    """The system error that caused `error`, None if there is none."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__  # torch.save fails again when it closes its archive after a failed write
    if number := _NUMBER_IN_TEXT.search(str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))  # safetensors and tokenizers give it only as text
    return None


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, used as a fingerprint."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock `folder` for writing, and delete the temporary files of killed writers. The lock of a dead process does not count.

    Raises FolderInUse, WriteError.
    """
    path = folder / ".lock"
    with writing_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = path.open("ab", buffering=0)  # closing would retry a buffered write that failed
    with handle:
        with writing_errors(path):
            _lock(handle.fileno(), folder=folder, holder=path)
            handle.truncate(0)
            handle.write(f"process {os.getpid()}".encode())
        remove_leftovers(folder)
        yield


def _lock(descriptor: int, *, folder: Path, holder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        process = holder.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        raise FolderInUse(
            f"{folder}: another process ({process}) is writing there; wait for it, stop it, or choose another output "
            "folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Sync a folder, after which a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
