"""python -m cft.report <folder> [...] [--out DIR] [--annotation FOLDER --tokenizer FOLDER]

Collects the results.json files below the folders, prints the comparison, writes comparison.csv, arms.csv, the figures
and report.html. With an annotation, the page shows its responses with their critical tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from rich.console import Console

from cft import __version__
from cft.masks import Critical
from cft.report.build import Evidence, build_report
from cft.report.compare import Comparison, ReportError, collect, compare
from cft.report.table import comparison_table
from cft.report.text import printable
from cft.report.transcript import Decode, legend, terminal
from cft.store import AnnotationStore, StoreError, find_annotation
from cft.types import AnnotatedResponse


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    console = Console(soft_wrap=False)
    try:
        comparisons = compare(collect(arguments.folders))
        evidence = _evidence(arguments, comparisons)
    except (ReportError, StoreError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    for comparison in comparisons:
        console.print(comparison_table(comparison, width=console.width))
        for note in comparison.notes:
            console.print(printable(note), style="dim", markup=False)
    if evidence is not None and evidence.rows:
        console.print(legend())
        console.print(terminal(evidence.rows[0], evidence.mask(evidence.rows[0])))
    page = build_report(
        arguments.out,
        comparisons=comparisons,
        evidence=evidence,
        title=arguments.title,
        lead="",
        facts=facts_of(comparisons),
    )
    print(f"Report: {page}")
    return 0


def facts_of(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """What the runs say of themselves: model, annotation, hyper-parameters shared by all arms, evaluation, budget."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    facts: dict[str, set[str]] = {}
    for run in runs:
        shown = {f"arm: {name}": value for name, value in run.arm.items()}
        shown |= {f"evaluation: {name}": value for name, value in (run.facts.get("evaluation") or {}).items()}
        shown |= {f"budget: {name}": value for name, value in (run.facts.get("budget") or {}).items()}
        data = run.facts.get("data") or {}
        shown |= {"annotation": data.get("annotation"), "annotation fingerprint": data.get("fingerprint")}
        for name, value in shown.items():
            if value is not None:
                facts.setdefault(name, set()).add(str(value))
    joined = {name: " | ".join(sorted(values)) for name, values in facts.items()}
    return {**joined, "cft": __version__, "bootstrap": "2,000 resamples of seeds and problems, percentile interval"}


def _evidence(arguments: argparse.Namespace, comparisons: Sequence[Comparison]) -> Evidence | None:
    if not arguments.annotation:
        return None
    folder = find_annotation(arguments.annotation, annotations_dir=arguments.annotations_dir)
    rows: list[AnnotatedResponse] = AnnotationStore(folder).rows()
    mask = Critical(num_alternatives=arguments.num_alternatives)
    return Evidence(rows, mask, _decoder(arguments.tokenizer, comparisons), arguments.transcripts)


def _decoder(folder: Path | None, comparisons: Sequence[Comparison]) -> Decode:
    """From a named folder, else from the first run that exported its model: all of them share the tokenizer."""
    exports = [run.folder / "export" for comparison in comparisons for run in comparison.runs]
    candidates = [folder / "tokenizer.json"] if folder else [export / "tokenizer.json" for export in exports]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise ReportError("no tokenizer.json beside the runs' exports; give its folder with --tokenizer <model folder>")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cft.report", description="Compare runs: table, CSV, figures, page."
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders above them")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="default: outputs/report")
    parser.add_argument("--title", default="Critical Token Fine-tuning: comparison")
    parser.add_argument("--annotation", default="", help="name or folder of an annotation, for transcripts")
    parser.add_argument("--annotations-dir", default="outputs/annotations", help="where names are looked for")
    parser.add_argument(
        "--tokenizer", type=Path, default=None, help="folder with tokenizer.json; default: a run's export"
    )
    parser.add_argument(
        "--num-alternatives", type=int, default=2, help="K of the critical mask that colours; default 2"
    )
    parser.add_argument("--transcripts", type=int, default=8, help="responses to show; default 8")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
