"""Files are whole or absent, errors of writing say what to do, and one process at a time writes to a folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cft.errors import UserError
from cft.files import (
    FolderInUse,
    WriteError,
    exclusive,
    sha256_file,
    sha256_json,
    temporary_beside,
    write_atomically,
    write_bytes,
)
from tests.conftest import ROOT

HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from cft.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_data_is_synced_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("sync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("rename") or replace(a, b))
    write_bytes(tmp_path / "new folder" / "a", b"x")
    assert calls == ["sync", "rename", "sync"]  # the last one is the folder's


@pytest.mark.parametrize(
    "number, remedy",
    [
        (errno.ENOSPC, "Free some disk space"),
        (errno.EACCES, "writable"),
        (errno.EROFS, "writable"),
        (errno.EIO, "disk"),
    ],
)
def test_an_error_of_writing_names_the_file_the_reason_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError) as caught:
        write_bytes(tmp_path / "a", b"x")
    for part in (str(tmp_path / "a"), os.strerror(number), remedy, "same command again"):
        assert part in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match="Not a directory"), exclusive(tmp_path / "file" / "folder"):
        pass
    with pytest.raises(WriteError, match="File exists"):
        write_bytes(tmp_path / "file" / "a", b"x")


def test_one_writer_at_a_time_and_the_message_names_the_other(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        with pytest.raises(FolderInUse, match=rf"process {os.getpid()}") as caught, exclusive(tmp_path):
            pass
        assert isinstance(caught.value, UserError)
        with exclusive(tmp_path / "another"):
            pass
    with exclusive(tmp_path):  # free again
        pass


def test_an_error_inside_passes_through_and_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive(tmp_path):
        (tmp_path / "nothing").read_text()
    with exclusive(tmp_path):
        pass


def test_a_lock_is_felt_across_processes_and_dies_with_its_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_AND_DIE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"process {other.pid}"), exclusive(tmp_path):
            pass
        other.stdin.write("die\n")
        other.stdin.flush()
        assert other.wait(20) == -9
    with exclusive(tmp_path):
        pass


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2
    assert sha256_json({"a": 1, "b": "é"}) == sha256_json({"b": "é", "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})


def test_what_dead_writers_left_goes_with_the_next_lock_and_what_the_living_write_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    (tmp_path / "checkpoints").mkdir()
    left = [
        temporary_beside(tmp_path / "checkpoints" / "step-00000002.ckpt"),  # of a process that had our number
        tmp_path / "checkpoints" / f".step-00000003.ckpt.{dead.pid}.tmp",
        tmp_path / f".export.{dead.pid}.tmp",
        tmp_path / f".export.{dead.pid}.old",
    ]
    kept = [tmp_path / "a.1.tmp", tmp_path / ".hydra.tmp", tmp_path / f".other.{os.getppid()}.tmp"]
    for path in (*left[:2], *kept):
        path.write_bytes(b"x")
    for path in left[2:]:
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"x")
    with exclusive(tmp_path):
        pass
    assert [path for path in (*left, *kept) if path.exists()] == kept
