"""Benchmarks: a test set each, with the verifier that suits it, and suites of several that are evaluated in one run.

Each `benchmark` is the `_target_` of a file in conf/benchmark: rows from a folder (`data.dir`: <name>.jsonl, or
<name>/test.jsonl, there or in its subfolder `benchmarks`), else from the hub. All rows are kept, duplicates included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cft.benchmarks.rows import LAYOUTS, Layout
from cft.data.hub_rows import hub_rows
from cft.data.problem_rows import BadRow, ProblemError, Quarantine, Row, content_hash, json_lines
from cft.data.splits import Splits, splits_of
from cft.ranges import Fraction, in_range
from cft.types import Problem, ThinkingTags, Verdict, Verifier
from cft.verifiers.stripped import stripped
from cft.verifiers.thinking import after_thinking
from cft.verifiers.verdict import require_ready


@dataclass(frozen=True, slots=True)
class Suite:
    """Several sets of problems by name, for one run of cft evaluate."""

    name: str
    members: dict[str, Splits]

    def of(self, split: str) -> tuple[Problem, ...]:
        """As for a single set; always an error here."""
        raise self._no_single_set()

    def held_out_questions(self) -> frozenset[str]:
        """As `of`."""
        raise self._no_single_set()

    def _no_single_set(self) -> ProblemError:
        return ProblemError(
            f"benchmark {self.name} is a suite of {', '.join(self.members)}: cft evaluate runs it; cft train tests on one "
            "benchmark, such as benchmark=gsm8k"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkVerifier:
    """`verifier=benchmark`: each benchmark's own verifier.

    Args:
        other: used if the source of the problems names none.
    """

    name: ClassVar[str] = "benchmark"
    version: ClassVar[str] = "1"
    other: Verifier

    def for_problems(self, splits: Splits) -> Verifier:
        return splits.verifier or self.other

    def __call__(self, response: str, answer: str) -> Verdict:
        return self.other(response, answer)

    def final(self, text: str) -> bool:
        return self.other.final(text)


@in_range
def benchmark(
    *,
    name: str,
    layout: Layout,
    verifier: Verifier,
    dir: str,
    hub_id: str,
    hub_config: str,
    hub_split: str,
    revision: str,
    max_bad_rows: Fraction,
) -> Splits:
    """One test set.

    Args:
        layout: layout of its rows (`cft/benchmarks/rows.py`).
        verifier: grades its answers.
        hub_id: data set on the hub, used if `dir` is "".
        hub_split: may join splits (`train+test`).
        max_bad_rows: fraction of the rows that may be skipped, 0 to 1; they are counted and named.

    Raises:
        ProblemError: no such file or data set, or more bad rows than that.
    """
    rows, source = _rows(name, dir=dir, hub_id=hub_id, config=hub_config, split=hub_split, revision=revision)
    problems, dropped = _problems(rows, name=name, layout=layout, source=source, max_bad_rows=max_bad_rows)
    return splits_of(name=name, seed=0, train=[], validation=[], test=problems, dropped=dropped, verifier=verifier)


def suite(*, name: str, members: dict[str, Splits]) -> Suite:
    """Several benchmarks in one run: `benchmark=cft11`, or `benchmark=gsm8k,math`. A suite in it counts as its members.

    Args:
        name: of the suite, in tables and results.
        members: benchmarks and suites by name.

    Raises:
        ProblemError: it has no members.
    """
    found: dict[str, Splits] = {}
    for key, member in members.items():
        found |= member.members if isinstance(member, Suite) else {key: member}
    if not found:
        raise ProblemError(f"benchmark {name} has no members; name them as in cft evaluate benchmark=gsm8k,math")
    return Suite(name, found)


def members_of(benchmark: Splits | Suite) -> dict[str, Splits]:
    """The sets of a benchmark by name: a suite's members, or itself."""
    return benchmark.members if isinstance(benchmark, Suite) else {benchmark.name: benchmark}


def verifier_for(splits: Splits, *, chosen: Verifier, thinking: ThinkingTags, strip: Sequence[str] = ()) -> Verifier:
    """The verifier of a set, applied to the text outside the thinking: the chosen one, or with `verifier=benchmark` the set's
    own.

    thinking: the tags, or two empty strings for none. strip: strings that are removed first.

    Raises:
        UserError: this machine cannot run it.
    """
    own = chosen.for_problems(splits) if isinstance(chosen, BenchmarkVerifier) else chosen
    require_ready(own)
    return after_thinking(stripped(own, strip), thinking)


def _problems(
    rows: Iterator[Row], *, name: str, layout: Layout, source: str, max_bad_rows: float
) -> tuple[list[Problem], Counter[str]]:
    """Ids are hashes of question and answer, so order does not matter; a repeated row gets a number."""
    others = ", ".join(other for other in LAYOUTS if other != layout)
    remedy = (
        f"benchmark.layout={layout} reads the fields {LAYOUTS[layout].fields}: repair the rows, or give the layout that they "
        f"have (benchmark.layout={others.replace(', ', ' | ')}; in a suite benchmark.members.{name}.layout)"
    )
    quarantine = Quarantine(
        source, max_bad_rows, remedy, key=f"benchmark.max_bad_rows, in a suite benchmark.members.{name}.max_bad_rows"
    )
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    count = 0
    for row in rows:
        count += 1
        try:
            if row.value is None:
                raise BadRow(row.reason)
            question, answer, solution = LAYOUTS[layout].read(row.value)
        except BadRow as error:
            quarantine.add(row, reason=str(error))
            continue
        key = content_hash(question, answer)
        seen[key] += 1
        number = f"-{seen[key]}" if seen[key] > 1 else ""
        problems.append(Problem(f"{name}-{key}{number}", question, answer, solution))
    quarantine.report(rows=count)
    return problems, quarantine.counts


def _rows(name: str, *, dir: str, hub_id: str, config: str, split: str, revision: str) -> tuple[Iterator[Row], str]:
    if dir:
        folder = Path(dir).expanduser()
        files = [
            base / file for base in (folder, folder / "benchmarks") for file in (f"{name}.jsonl", f"{name}/test.jsonl")
        ]
        for path in files:
            if path.is_file():
                return json_lines(path), str(path)
        raise ProblemError(f"data.dir={dir}: benchmark {name} found none of {', '.join(map(str, files))}")
    if not hub_id:
        raise ProblemError(
            f"benchmark {name} has no data set on the hub by default: give data.dir=<folder with {name}.jsonl>, or "
            "benchmark.hub_id=<owner/name> of one with the same fields"
        )
    return hub_rows(hub_id, config=config, revision=revision, split=split), f"{hub_id} ({split})"
