"""python -m cft.report <folder> [...] [--out DIR] [--choose optimizer.lr] [--annotation NAME] [--strict]

Collects the results.json files below the folders, prints the comparison, writes the page, the figures and the CSV files
(`cft/report/build.py` lists them). The token explorer shows the annotation that the runs were trained on, where it is
found, or the one that is named; without folders the report is about that annotation alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from rich.console import Console

from cft import __version__
from cft.annotation.store import SHIPPED, AnnotationStore, StoreError, find_annotation
from cft.errors import UserError
from cft.masks.base import Critical, MaskError
from cft.models.smollm2 import DISTRIBUTION, converted_folder
from cft.report.arms import Comparison, ReportError
from cft.report.build import Evidence, build_report
from cft.report.choice import Choice, choose
from cft.report.compare import collect, compare
from cft.report.table import comparison_table
from cft.report.text import printable
from cft.report.transcript import Decode, legend, terminal
from cft.runs.lineage import annotation_contents
from cft.types import AnnotatedResponse

USUAL_ALTERNATIVES = 2
INTERVALS = (
    "95 %: problems resampled 2,000 times, the seeds' part drawn from a two-way random model (cft/evaluation/intervals.py); "
    "differences are paired by problem, their p-values come from 10,000 such draws, from McNemar's exact test where each arm "
    "has one seed, and are corrected by Holm's procedure over all contrasts of a metric"
)


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    console = Console(soft_wrap=False)
    try:
        comparisons, choices = _compared(arguments)
        evidence = _evidence(arguments, comparisons)
    except (ReportError, StoreError, MaskError) as error:
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
        choices=choices,
    )
    print(f"Report: {page}")
    return 0


def _compared(arguments: argparse.Namespace) -> tuple[list[Comparison], list[Choice]]:
    if not arguments.folders:
        if not arguments.annotation:
            raise ReportError("nothing to report on: give folders of runs, or --annotation NAME for its tokens alone")
        return [], []
    runs, choices = collect(arguments.folders), []
    if arguments.choose:
        runs, choices = choose(runs, key=arguments.choose)
    return compare(runs, strict=arguments.strict), choices


def facts_of(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """What the runs say of themselves: model, annotation, hyper-parameters shared by all arms, evaluation, budget."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    facts: dict[str, set[str]] = {}
    for run in runs:
        shown = {f"arm: {name}": value for name, value in run.arm.items()}
        shown |= {f"evaluation: {name}": value for name, value in (run.facts.get("evaluation") or {}).items()}
        shown |= {f"budget: {name}": value for name, value in (run.facts.get("budget") or {}).items()}
        data = run.facts.get("data") or {}
        contents = annotation_contents(run.facts.get("lineage") or {})
        shown |= {"annotation": data.get("annotation"), "annotation: conditions, SHA-256": data.get("fingerprint")}
        shown |= {"annotation: contents, SHA-256": contents or None}
        for name, value in shown.items():
            if value is not None:
                facts.setdefault(name, set()).add(str(value))
    joined = {name: " | ".join(sorted(values)) for name, values in facts.items()}
    return {**joined, "cft": __version__, "intervals": INTERVALS}


def _evidence(arguments: argparse.Namespace, comparisons: Sequence[Comparison]) -> Evidence | None:
    """Of the annotation that was asked for, else of the one that the runs say they were trained on, if it is here."""
    name, asked = arguments.annotation, bool(arguments.annotation)
    if arguments.no_annotation:
        return None
    trained_on = [run.facts.get("data") or {} for comparison in comparisons for run in comparison.runs]
    if not asked:
        name = next((data["annotation"] for data in trained_on if data.get("annotation")), "")
    if not name:
        return None
    try:
        store = AnnotationStore(find_annotation(name, annotations_dir=arguments.annotations_dir))
        manifest = store.manifest()
        fingerprints = {data.get("fingerprint") for data in trained_on} - {None}
        if not asked and manifest["fingerprint_sha256"] not in fingerprints:
            raise ReportError(f"{store.folder} is not the annotation of that name that the runs were trained on")
        decode = _decoder(arguments.tokenizer, manifest, comparisons)
        rows: list[AnnotatedResponse] = store.rows()
        mask = _mask(rows, alternatives=arguments.num_alternatives)
    except (ReportError, StoreError, MaskError) as error:
        if asked:
            raise
        print(printable(f"No token explorer: {error}"), file=sys.stderr)
        return None
    return Evidence(rows, mask, decode, manifest, arguments.responses)


def _mask(rows: Sequence[AnnotatedResponse], *, alternatives: int | None) -> Critical:
    """The one that colours: of so many alternatives, else of two, or of one where the rows hold no more. Raises MaskError
    for rows that it cannot speak of."""
    held = min((row.alt_outcome.shape[1] for row in rows), default=USUAL_ALTERNATIVES)
    mask = Critical(num_alternatives=min(USUAL_ALTERNATIVES, max(held, 1)) if alternatives is None else alternatives)
    for row in rows:
        mask(row)
    return mask


def _decoder(folder: Path | None, manifest: Mapping[str, Any], comparisons: Sequence[Comparison]) -> Decode:
    """From a named folder, else the model that annotated, else the first run that exported its model: all of them share
    the tokenizer."""
    exports = [run.folder / "export" for comparison in comparisons for run in comparison.runs]
    path = str((((manifest.get("config") or {}).get("model")) or {}).get("path") or "")
    candidates = [folder] if folder else [_folder_of(path), *exports]
    found = next((f / "tokenizer.json" for f in candidates if (f / "tokenizer.json").is_file()), None)
    if found is None:
        raise ReportError("no tokenizer.json beside the runs' exports; give its folder with --tokenizer <model folder>")
    tokenizer = tokenizers.Tokenizer.from_file(str(found))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def _folder_of(path: str) -> Path:
    """Of the model that annotated, if it is on this machine; a model of the hub is not looked for."""
    package, _, name = path.partition(":")
    if package != "package":
        return Path(path or "nowhere")
    if name != DISTRIBUTION:
        return SHIPPED.parent / name
    try:
        return converted_folder()
    except UserError as error:
        raise ReportError(str(error)) from error


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cft.report", description="Compare runs: table, CSV, figures, page."
    )
    parser.add_argument("folders", nargs="*", type=Path, help="run folders, or folders above them")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="default: outputs/report")
    parser.add_argument("--title", default="Critical Token Fine-tuning: comparison")
    parser.add_argument(
        "--choose", default="", metavar="KEY", help="compare each arm at its best value on validation: optimizer.lr"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse arms that differ in budget, normaliser or data; default: mark them",
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
        help="K of the critical mask that colours; default 2, or 1 where the annotation holds one",
    )
    parser.add_argument("--responses", type=int, default=2000, help="that the explorer holds; default 2000")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
