"""The export stage: writes an annotation with a mask as a data set for other trainers.

    <out>/data/train-00000-of-00001.parquet        the rows that cft train would train on with the same settings
    <out>/data/validation-00000-of-00001.parquet   the rows it would hold out, if any
    <out>/manifest.json                            lineage, counts, SHA-256 of the files
    <out>/README.md                                a card

Some formats write JSONL or a folder instead, and additional files (`cft/formats/`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from cft import run_log
from cft.annotation.store import AnnotationStore, find_annotation
from cft.config.build import ConfigError, build
from cft.config.schema import RowsExportConfig
from cft.console import console
from cft.data.annotated import AnnotatedDataModule
from cft.data.batches import TokenRow
from cft.data.module import RowsRequest
from cft.files import exclusive, sha256_file, write_bytes, write_json
from cft.formats.base import Example, Format, Source, write_table
from cft.runs.cards import PAPER, TAGS, card, code, commands, digests, size_category, table, write_card
from cft.runs.job import Job
from cft.runs.lineage import annotation_link, lineage
from cft.types import AnnotatedResponse

MANIFEST = "manifest.json"
# The keys of `data` that determine the rows.
_CHOOSE_ROWS = (
    "max_rows",
    "part",
    "parts",
    "validation_fraction",
    "max_tokens",
    "shuffle_responses",
    "responses",
    "min_pass_rate",
    "max_pass_rate",
    "responses_per_problem",
)


def export(cfg: RowsExportConfig, job: Job) -> Path:
    """Export the annotation; returns the folder written."""
    out = Path(cfg.out)
    store = AnnotationStore(find_annotation(cfg.annotation, annotations_dir=cfg.annotations_dir, key="annotation"))
    source = Source(store.manifest())
    rows_format: Format = build(cfg.format).of(source)
    benchmark, mask = build(cfg.benchmark), build(cfg.mask)
    data: AnnotatedDataModule = build(cfg.data)(
        RowsRequest(
            mask,
            mask,  # token groups are only for metrics, which an export does not have
            {},
            cfg.annotations_dir,
            source.manifest["fingerprint"]["tokenizer"],
            cfg.seed,
            benchmark.held_out_questions(),
        )
    )
    request = {
        **{key: job.config[key] for key in ("format", "mask", "benchmark", "seed")},
        "rows": {key: job.config["data"][key] for key in _CHOOSE_ROWS},
        "annotation": annotation_link(store.folder).fingerprint,
    }
    stored = {row.response_id: row for row in store.rows()}
    splits = {
        split: [_example(stored[row.row_id], row) for row in rows]
        for split, rows in (("train", data.train_rows), ("validation", data.validation_rows))
        if rows
    }
    rows_format.require([example for examples in splits.values() for example in examples], source)
    tables = {split: rows_format.table(examples, source, split=split) for split, examples in splits.items()}
    tables = {split: found for split, found in tables.items() if found.num_rows}
    with exclusive(out):
        _require_free(out, request)
        run_log.write_to(out)
        files = {}
        for split, found in tables.items():
            path = out / rows_format.place(split)
            write_table(path, found, suffix=rows_format.suffix)
            files[split] = {**_file(path, out), "rows": found.num_rows, **_counts(splits[split])}
        for name, text in rows_format.beside(list(files), source).items():
            write_bytes(out / name, text.encode())
        manifest = {
            "schema": 1,
            "format": job.choices["format"],
            "lineage": lineage(job.command, [annotation_link(store.folder)]),
            "request": request,
            "mask": job.choices["mask"],
            "tokenizer": source.manifest["fingerprint"]["tokenizer"],
            "splits": files,
            "facts": data.facts(),
        }
        write_json(out / MANIFEST, manifest)
        write_card(out, export_card(manifest, source.manifest, rows_format))
        counts = ", ".join(f"{facts['rows']:,} rows for {split}" for split, facts in files.items())
        console.print(f"{counts}; loss on {data.facts()['eligible_fraction']:.1%} of response tokens -> {out}")
    return out


def export_card(manifest: dict[str, Any], annotation: dict[str, Any], rows_format: Format) -> str:
    """The card's text. manifest: of the export. annotation: manifest of the annotation."""
    splits, facts, made = manifest["splits"], manifest["facts"], annotation["fingerprint"]
    title = f"{annotation['name']}: {manifest['format']} of mask {manifest['mask']}"
    files = [{"split": name, "path": split["file"]} for name, split in splits.items()]
    header = DatasetCardData(
        pretty_name=title,
        license="unknown",
        task_categories=["text-generation"],
        size_categories=[size_category(sum(split["rows"] for split in splits.values()))],
        tags=TAGS,
        configs=None if rows_format.suffix == "disk" else [{"config_name": "default", "data_files": files}],
    )
    (link,) = manifest["lineage"]["inputs"]
    origin = [
        ("annotation", annotation["name"]),
        *digests(annotation["fingerprint_sha256"], link["fingerprint"], of="annotation's "),
        ("model that was annotated", f"`{made['model']['path']}` at `{made['model']['revision']}`"),
        ("tokenizer", manifest["tokenizer"]),
        ("mask", f"`{json.dumps(manifest['request']['mask'], sort_keys=True)}`"),
        ("seed", manifest["request"]["seed"]),
    ]
    counts = [
        (name, f"{split['rows']:,}", f"{split['tokens']:,}", f"{split['labels']:,}") for name, split in splits.items()
    ]
    parts = [
        f"# {title}",
        f"Responses with loss on the tokens that a mask selects, made with Critical Token Fine-tuning ({PAPER}) for "
        f"{rows_format.library}. {facts['eligible_fraction']:.1%} of the response tokens for training carry loss.",
        "## Made from",
        table(("", ""), origin),
        commands(manifest["lineage"]),
        "## Contents",
        table(("split", "rows", "tokens", "tokens with loss"), counts),
        table(("column", "type", ""), rows_format.columns),
        "## Use",
        code(*rows_format.use),
        "Train a model with this tokenizer: token ids and token positions have no meaning for another tokenizer.",
        "## Limits",
        *rows_format.limits,
        *_left_out(facts),
        "The license of the problems is that of their source, and the license of the annotated model may apply to its "
        "responses; neither was recorded here.",
    ]
    return card(header, parts)


def _left_out(facts: dict[str, Any]) -> list[str]:
    if not (untried := facts.get("tokens_in_no_group", 0)):
        return []
    return [
        f"For {untried:,} of the {facts['response_tokens']:,} response tokens for training, the annotation has no evidence for "
        "the mask: their positions were not tried, or the response ends wrong."
    ]


def _example(row: AnnotatedResponse, made: TokenRow) -> Example:
    return Example(row, made.ids, made.weight)


def _file(path: Path, out: Path) -> dict[str, Any]:
    name = path.relative_to(out).as_posix()
    if path.is_file():
        return {"file": name, "sha256": sha256_file(path)}
    return {"file": name, "sha256": {one.name: sha256_file(one) for one in sorted(path.iterdir())}}


def _counts(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "tokens": sum(len(example.ids) for example in examples),
        "labels": sum(int((example.weight > 0).sum()) for example in examples),
        "weighted": any(example.is_weighted for example in examples),
    }


def _require_free(out: Path, request: dict[str, Any]) -> None:
    """Raises ConfigError unless the folder is new, or holds an export of the same request, which is written again."""
    there = [path.name for path in out.iterdir() if path.name not in (".lock", run_log.RUN_LOG)]
    path = out / MANIFEST
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("request") == request:
        return
    if there:
        raise ConfigError(
            f"out={out}: already holds other files ({', '.join(sorted(there)[:3])}); choose another folder"
        )
