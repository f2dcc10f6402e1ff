"""What a report shows beside the comparison: the facts of its runs, and the tokens of the annotation behind them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from cft import __version__
from cft.annotation.store import SHIPPED, AnnotationStore, StoreError, find_annotation
from cft.errors import UserError
from cft.masks.base import Critical, MaskError
from cft.models.smollm2 import DISTRIBUTION, converted_folder
from cft.report.arms import Comparison, ReportError
from cft.report.build import Evidence
from cft.report.text import printable
from cft.report.transcript import Decode
from cft.runs.lineage import annotation_contents
from cft.types import AnnotatedResponse

USUAL_ALTERNATIVES = 2
INTERVALS = (
    "95 %: problems resampled 2,000 times, the seeds' part drawn from a two-way random model (cft/evaluation/intervals.py); "
    "differences are paired by problem, their p-values come from 10,000 such draws, from McNemar's exact test where each arm "
    "has one seed, and are corrected by Holm's procedure over all contrasts of a metric"
)


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


def token_evidence(
    comparisons: Sequence[Comparison],
    *,
    annotation: str,
    annotations_dir: str,
    tokenizer: Path | None,
    num_alternatives: int | None,
    responses: int,
) -> Evidence | None:
    """What the token explorer shows: of the annotation that is asked for, else of the one that the runs say they were
    trained on, if it is here.

    Args:
        annotation: Name or folder, "" to go by the runs.
        annotations_dir: Where names are looked for.
        tokenizer: Folder of tokenizer.json, None to look beside the annotating model and the exports.
        num_alternatives: K of the critical mask that colors, None for two or what the rows hold.
        responses: How many the explorer holds at most.

    Raises:
        ReportError, StoreError, MaskError: What was asked for cannot be shown.
    """
    name, asked = annotation, bool(annotation)
    trained_on = [run.facts.get("data") or {} for comparison in comparisons for run in comparison.runs]
    if not asked:
        name = next((data["annotation"] for data in trained_on if data.get("annotation")), "")
    if not name:
        return None
    try:
        store = AnnotationStore(find_annotation(name, annotations_dir=annotations_dir))
        manifest = store.manifest()
        fingerprints = {data.get("fingerprint") for data in trained_on} - {None}
        if not asked and manifest["fingerprint_sha256"] not in fingerprints:
            raise ReportError(f"{store.folder} is not the annotation of that name that the runs were trained on")
        decode = _decoder(tokenizer, manifest, comparisons)
        rows: list[AnnotatedResponse] = store.rows()
        mask = _mask(rows, alternatives=num_alternatives)
    except (ReportError, StoreError, MaskError) as error:
        if asked:
            raise
        print(printable(f"No token explorer: {error}"), file=sys.stderr)
        return None
    return Evidence(rows, mask, decode, manifest, responses)


def _mask(rows: Sequence[AnnotatedResponse], *, alternatives: int | None) -> Critical:
    """The one that colors: of so many alternatives, else of two, or of one where the rows hold no more. Raises MaskError
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
