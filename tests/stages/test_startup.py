"""How long it takes until something happens: what is quick to say is said quickly, and training begins soon."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.entry import FIT_ONLY

pytestmark = [pytest.mark.slow, pytest.mark.timing]

SOON_S = 3.0
FIRST_STEP_S = 10.0


def seconds(*command: str, folder: Path, status: int) -> float:
    """Of the quickest of three runs: other work on the machine is not what is measured."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        ended = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=120)
        times.append(time.monotonic() - started)
        assert ended.returncode == status, ended.stdout + ended.stderr
    return min(times)


@pytest.mark.parametrize(
    ("argument", "status"), [("--help", 0), ("mask=critcal", 2), ("mask=token_cleaning", 2), ("weighting.gamma=-1", 2)]
)
def test_help_and_mistakes_come_soon(tmp_path: Path, argument: str, status: int) -> None:
    assert seconds(str(ROOT / "train.py"), "weighting=focal", argument, folder=tmp_path, status=status) < SOON_S


def test_the_first_step_comes_soon(tmp_path: Path) -> None:
    """The process is killed when its second step begins."""
    driver = str(ROOT / "tests" / "kill_driver.py")
    assert seconds(driver, "step=2", "train", *FIT_ONLY, folder=tmp_path, status=-9) < FIRST_STEP_S
