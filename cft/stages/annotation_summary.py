"""The summary at the end of an annotation: counts, cost, advice, and the command that trains on it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from cft.annotation.responses import wanted
from cft.annotation.store import AnnotationStore
from cft.commands import train_command
from cft.console import console
from cft.data.rows_as_problems import first_place
from cft.masks.critical import critical_fraction, deciding_word
from cft.runs.job import Job
from cft.types import Problem

_INPUT_ERRORS = re.compile("not encodable|no solution|too long")  # statuses of rows that a user may want to repair
RL_SAMPLES = 8  # samples per problem in a group-relative policy-gradient step, for the comparison of cost


def print_summary(store: AnnotationStore, job: Job, *, problems_asked: Sequence[Problem], max_new_tokens: int) -> None:
    """Print the summary. problems_asked: the requested problems, with their places in the source."""
    manifest, rows, problems = store.manifest(), store.rows(), store.problems()
    counts, compute = manifest["counts"], manifest["compute"]
    table = Table(title=f"Annotation {store.folder}", show_header=False, title_justify="left")
    table.add_row("problems", f"{len(problems):,}")
    statuses: dict[str, int] = {}
    for record in problems:
        statuses[record.status] = statuses.get(record.status, 0) + 1
    places = {problem.id: problem.place for problem in problems_asked}
    for status, count in sorted(statuses.items(), key=lambda item: -item[1]):
        where = [places.get(record.problem_id, "") for record in problems if record.status == status]
        first = f", first {first_place(where)}" if _INPUT_ERRORS.search(status) and all(where) else ""
        table.add_row(f"  {status}", f"{count:,} ({count / len(problems):.0%}){first}")
    if rows:
        fraction = critical_fraction(rows, num_alternatives=min(row.alt_ids.shape[1] for row in rows))
        tokens, tried = sum(len(row.response_ids) for row in rows), sum(int(row.tried_R.sum()) for row in rows)
        table.add_row("response tokens", f"{tokens:,}")
        if tried < tokens:
            table.add_row("positions tried", f"{tried:,} of them ({tried / tokens:.1%}); the others remain untried")
        if tried:
            table.add_row(deciding_word(rows), f"{fraction:.1%}" + (" of those tried" if tried < tokens else ""))
    table.add_row("continuations", f"{counts.get('forks', 0):,}")
    if probes := counts.get("probes"):
        table.add_row("probes", f"{probes:,} prefixes of responses continued, to choose positions")
    if samples := counts.get("samples"):
        table.add_row("samples", f"{samples:,} sampled continuations")
    table.add_row("ties re-scored", f"{counts.get('num_ties_rescored', 0):,} (near ties)")
    table.add_row("self-replay flips", f"{counts.get('replay_flips', 0)} of {counts.get('replays', 0)}")
    spent = sum(value for name, value in compute.items() if name.endswith("_tokens"))
    seconds = compute.get("solve_seconds", 0) + compute.get("counterfactual_seconds", 0)
    table.add_row("tokens decoded", f"{spent:,} in {seconds:,.0f} s ({spent / max(seconds, 1e-9):,.0f} tokens/s)")
    lengths = [r.response_tokens for r in problems if r.response_tokens]
    if lengths:
        rl = RL_SAMPLES * sum(lengths)
        table.add_row(
            f"one {RL_SAMPLES}-sample RL step",
            f"{rl:,} tokens on the same problems: annotation cost {spent / rl:,.1f} such steps",
        )
    console.print(table)
    if not rows:
        cut_off = statuses.get("cut off", 0) + statuses.get("near limit", 0)
        kept = wanted(manifest["fingerprint"]["decoding"]["responses"]).name.lower()
        console.print(
            f"No response was both finished and {kept}, so there is nothing to annotate and nothing to train on. "
            + (f"{cut_off} were cut off: raise max_new_tokens={max_new_tokens}. " if cut_off else "")
            + (
                "Use easier problems (data=...), a stronger model (model=...), or annotate the data's own solutions "
                "(responses=given)."
                if kept == "right"
                else "Use harder problems (data=...), or more of them (limit=...)."
            )
        )
        return
    solved_lengths = [len(row.response_ids) for row in rows]
    p95 = float(np.percentile(solved_lengths, 95))
    if max_new_tokens < 2 * p95:
        console.print(
            f"Note: max_new_tokens={max_new_tokens} is less than twice the 95th percentile of the solved "
            f"lengths ({p95:.0f}): many continuations may be cut off. Annotate again with max_new_tokens={int(2 * p95) + 1}."
        )
    if any(row.verdict == "wrong" for row in rows):
        console.print(
            "These responses end wrong: cft train refuses to imitate them. mask=turning selects the turning tokens."
        )
        return
    train = train_command(store.folder, job.overrides, choices=job.choices, flags=job.flags)
    partly = "" if all(row.tried_R.all() for row in rows) else " mask.untried=leave_out"
    console.print(f"Train on it: {train}{partly}", markup=False, soft_wrap=True)
