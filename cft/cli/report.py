"""The command that compares runs.

    cft report <folder> [...] [--out DIR] [--choose optimizer.lr] [--annotation NAME] [--strict]

Collects the results.json files below the folders, prints the comparison, writes the page, the figures and the CSV files
(`cft/report/build.py` lists them). The token explorer shows the annotation that the runs were trained on, if it can be
found, or the named one; without folders the report covers that annotation only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

SUMMARY = "compare runs: table, figures, CSV files and a page with the tokens of the annotation"


def run(argv: Sequence[str]) -> int:
    """`cft report <argv>`. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    # Heavy imports follow the arguments.
    from rich.console import Console

    from cft.errors import UserError
    from cft.report.build import build_report
    from cft.report.choice import choose
    from cft.report.compare import compare
    from cft.report.continual import print_measures, sequences
    from cft.report.read import ReportError, Runs, collect
    from cft.report.tables import print_tables
    from cft.report.text import printable
    from cft.report.tokens import legend, terminal, token_evidence

    comparisons, choices, evidence, continual = [], [], None, []
    try:
        if arguments.folders:
            runs, continual = collect(arguments.folders), sequences(arguments.folders)
            if arguments.choose:
                runs, choices = choose(runs, key=arguments.choose)
            if tested := [run for run in runs if run.metrics or run.results.benchmark]:
                runs = Runs(tested, notes=runs.notes)  # trainings without problems, whose tests are runs of their own
            comparisons = compare(runs, strict=arguments.strict)
        elif not arguments.annotation:
            raise ReportError("nothing to report on: give folders of runs, or --annotation NAME for its tokens alone")
        if not arguments.no_annotation:
            evidence = token_evidence(
                comparisons,
                annotation=arguments.annotation,
                annotations_dir=arguments.annotations_dir,
                tokenizer=arguments.tokenizer,
                num_alternatives=arguments.num_alternatives,
                responses=arguments.responses,
            )
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    print_tables(comparisons)
    print_measures(continual)
    if evidence is not None and evidence.rows:
        console = Console(soft_wrap=False)
        console.print(legend(evidence.word))
        console.print(terminal(evidence.rows[0], evidence.mask(evidence.rows[0])))
    title, out = arguments.title, arguments.out
    page = build_report(
        out, comparisons=comparisons, evidence=evidence, title=title, choices=choices, continual=continual
    )
    print(f"Report: {page}")
    return 0


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cft report", description="Compare runs: table, CSV, figures, page.")
    parser.add_argument("folders", nargs="*", type=Path, help="run folders, or folders above them")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="default: outputs/report")
    parser.add_argument("--title", default="Critical Token Fine-tuning: comparison")
    parser.add_argument(
        "--choose", default="", metavar="KEY", help="compare each arm at its best value on validation: optimizer.lr"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse arms that differ in budget, normalizer or data; default: mark them",
    )
    parser.add_argument(
        "--annotation", default="", help="name or folder, for the token explorer; default: what the runs trained on"
    )
    parser.add_argument("--no-annotation", action="store_true", help="no token explorer")
    parser.add_argument("--annotations-dir", default="outputs/annotations", help="where names are looked for")
    parser.add_argument(
        "--tokenizer", type=Path, default=None, help="folder with tokenizer.json; default: the annotating model's"
    )
    parser.add_argument(
        "--num-alternatives",
        type=_at_least_one,
        default=None,
        help="K of the critical mask that colors; default 2, or 1 where the annotation holds one",
    )
    parser.add_argument("--responses", type=int, default=2000, help="that the explorer holds; default 2000")
    return parser
