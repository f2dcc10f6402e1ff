"""bash completes commands by itself, and options and keys by asking the command."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from cft.cli.main import COMMANDS, main
from tests.conftest import ROOT


def completed(line: str, script: str) -> list[str]:
    """What bash offers at the end of a line."""
    asked = (
        f'eval "$SCRIPT"; cft() {{ "{sys.executable}" -m cft "$@"; }}; '
        'COMP_LINE="$LINE" COMP_POINT=${#LINE}; _cft_completion; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {"SCRIPT": script, "LINE": line, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", asked], env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 0
    script = capsys.readouterr().out
    assert completed("cft ", script) == list(COMMANDS)
    assert completed("cft ex", script) == ["export"]
    # = ends a word for bash, so that what follows it is offered alone.
    assert completed("cft export seed=1 format=l", script) == ["labels", "llama_factory"]
    assert completed("cft report sm", script) == []


def test_another_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "expected no argument, found tcsh" in capsys.readouterr().err
