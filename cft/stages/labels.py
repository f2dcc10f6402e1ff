"""A mask's choice as a data set that any trainer reads: input_ids, labels, completion_mask, and weights that are not 0 or 1.

    <out>/data/train-00000-of-00001.parquet        the rows that cft train would train on under the same settings
    <out>/data/validation-00000-of-00001.parquet   those it would hold out, if any
    <out>/manifest.json                            what it was made from, counts, SHA-256 of the files
    <out>/README.md                                a card

labels are the ids where a token carries loss, else -100 (prompt included). They are at the token they are about, and
trainers shift them, as the models of transformers do. A loss that is summed and divided by the number of labels is
`cft train`'s with `loss.normalizer=critical weighting=uniform`. `cft train data=rows` reads the data set back: the same rows
under the same loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from cft.annotation.store import AnnotationStore, find_annotation
from cft.config.build import ConfigError, build
from cft.config.schema import LabelsConfig
from cft.console import console
from cft.data.annotated import AnnotatedDataModule
from cft.data.batches import TokenRow
from cft.data.module import RowsRequest
from cft.data.row_shapes import IGNORED
from cft.files import exclusive, sha256_file, write_atomically, write_json
from cft.runs.cards import PAPER, TAGS, card, code, commands, digests, size_category, table, write_card
from cft.runs.job import Job
from cft.runs.lineage import annotation_link, lineage

MANIFEST = "manifest.json"
_CHOOSE_ROWS = (
    "max_rows",
    "part",
    "parts",
    "validation_fraction",
    "max_tokens",
    "shuffle_responses",
    "wrong_responses",
)  # of the keys of `data`


def labels(cfg: LabelsConfig, job: Job) -> Path:
    """Returns the folder written."""
    out = Path(cfg.out)
    store = AnnotationStore(find_annotation(cfg.annotation, annotations_dir=cfg.annotations_dir, key="annotation"))
    benchmark, mask = build(cfg.benchmark), build(cfg.mask)
    data: AnnotatedDataModule = build(cfg.data)(
        RowsRequest(
            mask,
            mask,  # the groups of the metrics, of which there are none here
            {},
            cfg.annotations_dir,
            store.manifest()["fingerprint"]["tokenizer"],
            cfg.seed,
            benchmark.held_out_questions(),
        )
    )
    request = {
        **{key: job.config[key] for key in ("mask", "benchmark", "seed")},
        "rows": {key: job.config["data"][key] for key in _CHOOSE_ROWS},
        "annotation": annotation_link(store.folder).fingerprint,
    }
    with exclusive(out):
        _require_free(out, request)
        splits = {"train": data.train_rows, "validation": data.validation_rows}
        weighted = any(_is_weighted(row) for rows in splits.values() for row in rows)
        files = {
            split: _write(out / "data" / f"{split}-00000-of-00001.parquet", rows, weighted=weighted)
            for split, rows in splits.items()
            if rows
        }
        manifest = {
            "schema": 1,
            "lineage": lineage(job.command, [annotation_link(store.folder)]),
            "request": request,
            "mask": job.choices["mask"],
            "tokenizer": store.manifest()["fingerprint"]["tokenizer"],
            "splits": files,
            "facts": data.facts(),
        }
        write_json(out / MANIFEST, manifest)
        write_card(out, labels_card(manifest, store.manifest()))
    counts = ", ".join(f"{facts['rows']:,} rows for {split}" for split, facts in files.items())
    console.print(f"{counts}; loss on {data.facts()['eligible_fraction']:.1%} of response tokens -> {out}")
    return out


def labels_table(rows: Sequence[TokenRow], *, weighted: bool) -> pa.Table:
    """One row a response. weighted: whether there is a column of weights."""
    columns: dict[str, Any] = {
        "response_id": pa.array([row.row_id for row in rows], pa.string()),
        "input_ids": pa.array([row.ids for row in rows], pa.list_(pa.int32())),
        "labels": pa.array([np.where(row.weight > 0, row.ids, IGNORED) for row in rows], pa.list_(pa.int32())),
    }
    columns["completion_mask"] = pa.array([(row.token_group >= 0).astype(np.int8) for row in rows], pa.list_(pa.int8()))
    if weighted:
        columns["weights"] = pa.array([row.weight for row in rows], pa.list_(pa.float32()))
    return pa.table(columns)


def labels_card(manifest: dict[str, Any], annotation: dict[str, Any]) -> str:
    """manifest: of the exported labels. annotation: the manifest of what they were made from."""
    splits, facts, made = manifest["splits"], manifest["facts"], annotation["fingerprint"]
    title = f"{annotation['name']}: labels of mask {manifest['mask']}"
    weighted = any(split["weighted"] for split in splits.values())
    files = [{"split": name, "path": split["file"]} for name, split in splits.items()]
    header = DatasetCardData(
        pretty_name=title,
        license="unknown",
        task_categories=["text-generation"],
        size_categories=[size_category(sum(split["rows"] for split in splits.values()))],
        tags=TAGS,
        configs=[{"config_name": "default", "data_files": files}],
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
    columns = [
        ("`response_id`", "string", "in the annotation"),
        ("`input_ids`", "list of int32", "prompt, chat template applied, and response, end token included"),
        ("`labels`", "list of int32", f"the id where a token carries loss, else {IGNORED}; not shifted"),
        ("`completion_mask`", "list of int8", "1 for the tokens of the response, with loss or without"),
        *([("`weights`", "list of float", "of each token's loss, 0 without one")] if weighted else []),
    ]
    counts = [
        (name, f"{split['rows']:,}", f"{split['tokens']:,}", f"{split['labels']:,}") for name, split in splits.items()
    ]
    use = (
        "from datasets import load_dataset\n"
        "from trl import SFTConfig, SFTTrainer\n\n"
        'data = load_dataset("<this folder>")\n'
        'SFTTrainer(model="<the model>", args=SFTConfig(max_length=None), train_dataset=data["train"]).train()'
    )
    parts = [
        f"# {title}",
        f"Responses as token ids, with labels on the tokens that a mask picks, made with Critical Token Fine-tuning ({PAPER})."
        f" Of the response tokens for training {facts['eligible_fraction']:.1%} carry loss.",
        "## Made from",
        table(("", ""), origin),
        commands(manifest["lineage"]),
        "## Contents",
        table(("split", "rows", "tokens", "labels"), counts),
        table(("column", "type", ""), columns),
        "## Use",
        code("python", use),
        "Train the model whose tokenizer this is: the ids mean nothing to another one."
        + (" A trainer that does not read `weights` counts every label alike." if weighted else ""),
        "## Limits",
        *_left_out(facts),
        "The license of the problems is that of their source, and the annotated model's may bind its responses; neither was "
        "recorded here.",
    ]
    return card(header, parts)


def _left_out(facts: dict[str, Any]) -> list[str]:
    if not (untried := facts.get("tokens_in_no_group", 0)):
        return []
    return [
        f"Of {untried:,} of the {facts['response_tokens']:,} response tokens for training the annotation says nothing that the "
        "mask could read: their positions were not tried, or the response ends wrong."
    ]


def _write(path: Path, rows: Sequence[TokenRow], *, weighted: bool) -> dict[str, Any]:
    write_atomically(path, lambda temporary: pq.write_table(labels_table(rows, weighted=weighted), temporary))
    return {
        "file": f"data/{path.name}",
        "sha256": sha256_file(path),
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "labels": sum(int((row.weight > 0).sum()) for row in rows),
        "weighted": weighted,
    }


def _is_weighted(row: TokenRow) -> bool:
    return bool(((row.weight != 0) & (row.weight != 1)).any())


def _require_free(out: Path, request: dict[str, Any]) -> None:
    """The folder is new, or holds an export of the same thing, which is written again."""
    there = [path.name for path in out.iterdir() if path.name != ".lock"]
    path = out / MANIFEST
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("request") == request:
        return
    if there:
        raise ConfigError(
            f"out={out}: holds something else already ({', '.join(sorted(there)[:3])}); choose another folder"
        )
