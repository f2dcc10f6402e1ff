"""The summary at the end of rollouts: responses by verdict, pass rates, cost, and the command that trains on them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from rich.table import Table

from cft.annotation.rollouts import VERDICTS
from cft.annotation.store import AnnotationStore, ProblemRecord
from cft.commands import train_command
from cft.console import console
from cft.runs.job import Job


def print_rollouts(store: AnnotationStore, job: Job, *, max_new_tokens: int) -> None:
    manifest, rows, problems = store.manifest(), store.rows(), store.problems()
    table = Table(title=f"Rollouts {store.folder}", show_header=False, title_justify="left")
    table.add_row("problems", f"{len(problems):,}")
    for status, count in Counter(record.status for record in problems).most_common():
        table.add_row(f"  {status}", f"{count:,} ({count / len(problems):.0%})")
    verdicts = Counter(row.verdict for row in rows)
    table.add_row("responses", f"{len(rows):,}")
    for verdict in VERDICTS.values():
        if found := verdicts[verdict]:
            table.add_row(f"  {verdict}", f"{found:,} ({found / len(rows):.0%})")
    table.add_row("mean pass rate", mean_pass_rate(problems))
    tokens, seconds = manifest["compute"].get("solve_tokens", 0), manifest["compute"].get("solve_seconds", 0)
    table.add_row("tokens decoded", f"{tokens:,.0f} in {seconds:,.0f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s)")
    console.print(table)
    if not verdicts["right"]:
        cut_off = (
            f"{verdicts['cut off']} were cut off: raise max_new_tokens={max_new_tokens}. "
            if verdicts["cut off"]
            else ""
        )
        console.print(f"No response is right. {cut_off}Use easier problems (data=...) or a stronger model (model=...).")
        return
    words = train_command(store.folder, job.overrides, choices=job.choices, flags=job.flags)
    console.print(f"Train on the right ones: {words} mask=all", markup=False, soft_wrap=True)


def mean_pass_rate(problems: list[ProblemRecord]) -> str:
    """The mean pass rate, as text, over the problems with at least one decided response."""
    rates = [record.pass_rate for record in problems if not np.isnan(record.pass_rate)]
    return f"{np.mean(rates):.3f} of {len(rates):,} problems" if rates else "-"
