"""Shared runs for tests of the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.report import figures
from cft.report.arms import Comparison
from cft.types import AnnotatedResponse, Outcome
from tests.fakes import row
from tests.results import HOSTILE, arm, compared, draws, write_run


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    root = tmp_path / "runs with = and spaces"
    for seed in (0, 1, 2):
        for i, mask in enumerate(("all", "critical", "random_like_critical")):
            write_run(root, f"{mask}{seed}", arm(mask), seed=seed, correct=draws(10 * i + seed, 0.4 + 0.2 * i))
    write_run(root, "base", {"model": "tiny"}, seed=0, correct=draws(99, 0.3), stage="evaluate")
    return root


@pytest.fixture
def comparison(runs_folder: Path) -> Comparison:
    return compared(runs_folder)


@pytest.fixture
def hostile() -> tuple[AnnotatedResponse, np.ndarray]:
    """(a response with control sequences and HTML that attack a terminal and a page, its mask)"""
    response = "2 +3\n\x1b[2J<b>"
    spans = [[0, 1], [1, 3], [3, 4], [4, 5], [5, 9], [9, 12], [12, 12]]
    outcomes = [[0, 0], [0, 1], [1, -1], [-2, 0], [-3, 0], [1, -1], [1, -1]]
    one = row([1, 2, 3, 6, 7, 8, 0], outcomes=outcomes, response=response, char_span=spans)
    answers = [[HOSTILE if outcome == Outcome.WRONG else "" for outcome in position] for position in outcomes]
    return replace(one, problem=HOSTILE, alt_answer=answers), np.array([1, 0, 0, 1, 0, 0, 0], np.float32)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty figure files instead of drawing, which takes most of a report's time."""
    monkeypatch.setattr(figures, "png_of", lambda figure: b"\x89PNG".ljust(24, b"\0"))
    monkeypatch.setattr(figures, "pdf_of", lambda figure: b"%PDF")


@pytest.fixture(scope="session")
def shipped_rows() -> list[AnnotatedResponse]:
    return AnnotationStore(SHIPPED / "tiny_arith").rows()
