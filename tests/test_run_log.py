"""run.log holds what a job said, from its first line on, and nothing is written before the folder is known to be the job's."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from cft import run_log
from cft.console import console
from cft.run_log import RUN_LOG, recording, write_to


def job(folder: Path) -> None:
    with recording():
        console.print("before the folder is known")
        assert list(folder.iterdir()) == []
        write_to(folder)
        warnings.warn("careful", stacklevel=1)
        raise ValueError("the end")


@pytest.mark.filterwarnings("default")
def test_a_job_s_words_warnings_and_error_are_in_its_folder(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as shown, pytest.raises(ValueError, match="the end"):
        job(tmp_path)
    assert [str(w.message) for w in shown] == ["careful"]
    said = [line.split(" ", 2)[2] for line in (tmp_path / RUN_LOG).read_text(encoding="utf-8").splitlines()]
    assert said == ["INFO before the folder is known", "WARNING UserWarning: careful", "ERROR ValueError: the end"]


def test_a_job_that_is_refused_writes_nothing_and_a_resumed_one_appends(tmp_path: Path) -> None:
    for words, writes in (("one", True), ("refused", False), ("two", True)):
        with recording():
            console.print(words)
            if writes:
                write_to(tmp_path)
    write_to(tmp_path)  # outside a job
    console.print("outside")
    text = (tmp_path / RUN_LOG).read_text(encoding="utf-8")
    assert [line.rpartition(" ")[2] for line in text.splitlines()] == ["one", "two"]


def test_a_full_disk_ends_no_job_for_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / RUN_LOG).symlink_to("/dev/full")
    with recording():
        write_to(tmp_path)
        console.print("lost")
    assert "Logging error" not in capfd.readouterr().err


def test_the_package_s_own_warnings_are_shown_without_file_and_line() -> None:
    before = warnings.formatwarning
    with recording():
        assert warnings.formatwarning("few rows", UserWarning, run_log.__file__, 1) == "Warning: few rows\n"
        assert "test_run_log.py:1: UserWarning: old" in warnings.formatwarning("old", UserWarning, __file__, 1)
        assert "run_log.py:1: FutureWarning: x" in warnings.formatwarning("x", FutureWarning, run_log.__file__, 1)
    assert warnings.formatwarning is before
