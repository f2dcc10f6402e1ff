"""Runs the real commands in this process: torch is imported once; exit status and output are returned."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass

from cft.cli.main import main

# Few short problems, since these tests are not about the method itself. The last unit of 6 is short.
SHORT = ("data.max_steps=2", "data.num_train=6", "data.num_validation=3", "data.num_test=3", "unit_size=4", "limit=6")
# No evaluation; the best epoch is chosen by the loss on a large fraction of the few rows.
FIT_ONLY = ("validation.problems=0", "evaluation.problems=0", "callbacks=best_loss", "data.validation_fraction=0.5")


@dataclass(frozen=True, slots=True)
class Ended:
    """Result of a run. status: exit status, 0 if it returned."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All output, with runs of white space as one space."""
        return " ".join((self.out + self.err).split())


def run(stage: str, *arguments: str) -> Ended:
    """Run `cft <stage> <arguments>` in the current folder. Never raises: a traceback is part of the output."""
    out, err = io.StringIO(), io.StringIO()
    argv, status = sys.argv, 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([stage, *arguments])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = argv
    return Ended(status, out.getvalue(), err.getvalue())
