"""The progress bar over all units of an annotation, from all workers: problems done, solved, annotated, tokens/s."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cft.annotation.annotator import Unit
from cft.console import Bar, console
from cft.stages.annotation_worker import UnitProgress
from cft.types import Problem

RIGHT = "right"


@dataclass(slots=True)
class Watch:
    """Shows the progress reports of all units in one bar: problems done, solved, annotated, critical fraction, tokens/s.

    The newest report of a unit replaces earlier ones: if another worker restarts a unit, its progress restarts at 0.

    Args:
        bar: the progress bar.
        units: problems of each unit.
        word: name of the deciding tokens; "right" for rollouts, whose fraction is that of responses.
        in_progress: newest report of each current unit.
        done: sum over finished units.
        critical: fraction of deciding tokens of each finished unit.
        started: start time.
    """

    bar: Bar
    units: Mapping[int, Sequence[Problem]]
    word: str = "critical"
    in_progress: dict[int, UnitProgress] = field(default_factory=dict)
    done: UnitProgress = field(default_factory=UnitProgress)
    critical: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _estimated: bool = False

    def update(self, u: int, word: UnitProgress) -> None:
        self.in_progress[u] = word
        if not self._estimated and not np.isnan(word.expected_tokens):
            self._estimated = True
            self._print_estimate(word, problems=len(self.units[u]))
        self._show()

    def unit_done(self, u: int, unit: Unit, *, critical: float) -> None:
        if not np.isnan(critical):
            self.critical.append(critical)
        self.in_progress.pop(u, None)
        tokens = int(unit.compute["solve_tokens"] + unit.compute.get("counterfactual_tokens", 0))
        solved = sum(max(record.responses, record.decoded_tokens > 0) for record in unit.problems)
        self.done += UnitProgress(len(self.units[u]), solved, len(unit.rows), unit.counts.get("forks", 0), tokens)
        self._show()

    def _print_estimate(self, report: UnitProgress, *, problems: int) -> None:
        whole, forks = (
            expected / max(1, problems) * self.bar.total for expected in (report.expected_tokens, report.expected_forks)
        )
        tokens = sum(self.in_progress.values(), self.done).tokens
        rate = tokens / max(1e-9, time.monotonic() - self.started)
        console.print(
            f"Estimate from the first {problems} problems ({report.annotated} to annotate, {report.mean_tokens:.0f} tokens "
            f"each): {forks:,.0f} continuations, {whole:,.0f} tokens"
            # Given responses are not decoded, so the speed is not known yet.
            + (f", about {whole / rate:,.0f} s at the {rate:,.0f} tokens/s of solving" if tokens else "")
        )

    def _show(self) -> None:
        whole = sum(self.in_progress.values(), self.done)
        rate = whole.tokens / max(1e-9, time.monotonic() - self.started)
        critical = f"{np.mean(self.critical):.0%}" if self.critical else "-"
        answered = f"answered {whole.solved} " if whole.solved else ""  # given responses are not solved
        facts = f"{answered}annotated {whole.annotated} {self.word} {critical} continuations {whole.forks:,}"
        if self.word == RIGHT:
            facts = f"responses {whole.solved:,} right {critical}"
        self.bar.advance(whole.problems - self.bar.done, facts=f"{facts} {rate:,.0f} tokens/s")
