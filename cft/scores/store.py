"""Stored scores: one number per response token, computed once by a frozen model and stored with the annotation.

<folder of the annotation>/scores/<name>/
    manifest.json            the fingerprint in full, the name and SHA-256 of the table, the command that made it
    <fingerprint>.parquet    response_id, tokens_sha256 (of prompt and response ids), values [R] float32

The fingerprint covers the kind of score and its arguments, the model's weights, the tokenizer and the rows, so that the table's
name identifies its contents. The table is written first and the manifest last, each atomically. Annotations that ship with the
package are not changed: their scores are in annotations_dir/<name>/scores. `cft score` makes scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from cft.annotation.store import SHIPPED, AnnotationStore, StoreError, read_parquet
from cft.files import exclusive, sha256_file, sha256_json, write_bytes, write_json
from cft.quoting import setting
from cft.shipped import CONF_DIR
from cft.types import AnnotatedResponse

SCHEMA_VERSION = 1
KINDS = (  # options of conf/score
    "reference_logprob",
    "attention_received",
    "attention_to_prompt",
    "entropy",
    "contrast",
    "token_classifier",
)
LOGPROB = KINDS[0]
MODELS = CONF_DIR / "model"
DEFAULT_MODEL = "tiny_arith"  # of conf/score.yaml
_TABLE = pa.schema([("response_id", pa.string()), ("tokens_sha256", pa.string()), ("values", pa.list_(pa.float32()))])
_MANIFEST = {"schema", "fingerprint", "fingerprint_sha256", "file", "sha256", "command"}

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A score as stored on disk. values: (hash of the row's tokens, [R] float32) by response id."""

    folder: Path
    manifest: Mapping[str, Any]
    values: Mapping[str, tuple[str, Values]]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint_sha256"]

    def of(self, row: AnnotatedResponse) -> Values | None:
        """The row's values, None if the score has none for exactly these tokens."""
        tokens, values = self.values.get(row.response_id, ("", None))
        return values if tokens == tokens_hash(row) else None


def scores_folder(annotation: Path, *, annotations_dir: str | Path) -> Path:
    """Folder of the scores of the annotation in that folder."""
    shipped = annotation.resolve().parent == SHIPPED.resolve()
    return (Path(annotations_dir) / annotation.name if shipped else annotation) / "scores"


def given_scores_folder(path: str, *, annotations_dir: str | Path) -> Path:
    """Folder of the scores of the user's own rows (`data=rows data.path=...`)."""
    file = Path(path).expanduser()
    place = str(file.resolve()) if file.exists() else path
    digest = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return Path(annotations_dir) / "rows" / f"{file.stem}-{digest}" / "scores"


def with_scores(
    store: AnnotationStore, rows: Sequence[AnnotatedResponse], *, names: Collection[str], annotations_dir: str | Path
) -> tuple[list[AnnotatedResponse], dict[str, str]]:
    """The rows with `scores` filled in, and the fingerprint of each score.

    Raises StoreError, with the command to run, if a score is missing, damaged, without values for a row, or not of the kind
    that its name says.
    """
    folder = scores_folder(store.folder, annotations_dir=annotations_dir)
    annotation = called(store.folder, annotations_dir=annotations_dir)
    model = annotating_model(store.manifest()) if names else ""
    scores = {name: read_score(folder, name=name, annotation=annotation, model=model) for name in sorted(names)}
    for name, score in scores.items():
        if text := other_kind(score.manifest, name=name, kind=expected_kind(name), annotation=annotation, model=model):
            raise StoreError(f"{folder / name}: {text}")
    filled = []
    for row in rows:
        values = {name: score.of(row) for name, score in scores.items()}
        lacking = [name for name, found in values.items() if found is None]
        if lacking:
            raise StoreError(
                f"{folder / lacking[0]}: no values for response {row.response_id} with its present tokens; the annotation was "
                f"extended or recomputed after the score. Compute the missing values: {scores[lacking[0]].manifest['command']}"
            )
        filled.append(dataclasses.replace(row, scores={k: v for k, v in values.items() if v is not None}))
    return filled, {name: score.fingerprint for name, score in scores.items()}


def read_score(folder: Path, *, name: str, annotation: str, model: str, given: str = "") -> StoredScore:
    """Read a stored score.

    Args:
        folder: Folder of all scores of the annotation.
        name: Name of the score.
        annotation: The annotation's name on the command line.
        model: As for `command_for`.
        given: As for `command_for`.

    Raises:
        StoreError: The score is missing or damaged.
    """
    path = folder / name / "manifest.json"
    if not path.is_file():
        command = command_for(name, annotation, model=model, given=given)
        raise StoreError(f"{path.parent}: no stored score of that name; make it with: {command}")
    again = f"Make it again: {command_for(name, annotation, model=model, given=given)} replace=true"
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path}: damaged ({error}). {again}") from error
    if not (isinstance(manifest, dict) and manifest.keys() >= _MANIFEST):
        raise StoreError(f"{path}: damaged, expected the keys {', '.join(sorted(_MANIFEST))}. {again}")
    if manifest["schema"] != SCHEMA_VERSION:
        raise StoreError(f"{path}: schema {manifest['schema']}, but this version reads {SCHEMA_VERSION}. {again}")
    again = f"Make it again: {manifest['command']} replace=true"
    table = path.parent / str(manifest["file"])
    if not table.is_file():
        raise StoreError(f"{table}: missing, though {path} names it. {again}")
    found = sha256_file(table)
    if found != manifest["sha256"]:
        raise StoreError(f"{table}: damaged, SHA-256 {found}, expected {manifest['sha256']}. {again}")
    return StoredScore(path.parent, manifest, _values(read_parquet(table)))


def write_score(
    folder: Path,
    *,
    name: str,
    method: Mapping[str, Any],
    rows: Sequence[AnnotatedResponse],
    values: Mapping[str, Values],
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """Store the values of all rows, replacing a score of the same name.

    Args:
        folder: Folder of all scores of the annotation.
        name: Name of the score.
        method: Everything besides the rows that determines the values.
        rows: The rows.
        values: [R] float32 by response id.
        info: Further entries of the manifest, including `command`.

    Returns:
        The manifest.

    Raises:
        WriteError: A file cannot be written; the earlier score is unchanged.
        FolderInUse: Another process writes this score.
    """
    fingerprint = {**method, "rows": sha256_json(sorted([row.response_id, tokens_hash(row)] for row in rows))}
    digest = sha256_json(fingerprint)
    table = pa.Table.from_pydict(
        {
            "response_id": [row.response_id for row in rows],
            "tokens_sha256": [tokens_hash(row) for row in rows],
            "values": [np.asarray(values[row.response_id], dtype=np.float32) for row in rows],
        },
        schema=_TABLE,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    file = f"{digest[:16]}.parquet"
    with exclusive(folder / name):
        write_bytes(folder / name / file, data)
        manifest = {
            "schema": SCHEMA_VERSION,
            "name": name,
            "fingerprint": fingerprint,
            "fingerprint_sha256": digest,
            "file": file,
            "sha256": hashlib.sha256(data).hexdigest(),
            "rows": len(rows),
            **info,
        }
        write_json(folder / name / "manifest.json", manifest)
        for old in (folder / name).glob("*.parquet"):
            if old.name != file:
                old.unlink()
    return manifest


def check_score_name(name: str, *, kind: str) -> str:
    """Check a score's name: a folder name that is not reserved for something else. Raises StoreError."""
    if name in KINDS and name != kind:
        raise StoreError(
            f"name={name}: the name of another kind of score than {kind}, and methods would mistake it for that kind; choose "
            f"another name, or score={name}"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", name) or name in ("logprob", "group"):
        raise StoreError(
            f"name={name!r}: expected a folder name of letters, digits, '.', '_', '+', '-' (at most 100) other than "
            "logprob (the annotation's own column) and group (see groups=...)"
        )
    return name


def tokens_hash(row: AnnotatedResponse) -> str:
    """16 hexadecimal digits of a row's prompt and response ids."""
    digest = hashlib.sha256(f"{len(row.prompt_ids)} ".encode())
    for ids in (row.prompt_ids, row.response_ids):
        digest.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()[:16]


def called(folder: Path, *, annotations_dir: str | Path) -> str:
    """The annotation's name or path for the command line."""
    known = folder.resolve().parent in (SHIPPED.resolve(), Path(annotations_dir).resolve())
    return folder.name if known else str(folder)


def command_for(name: str, annotation: str, *, model: str, given: str = "") -> str:
    """The command that makes a score of that name. Names other than those of kinds are log-probs of another model.

    Args:
        name: Name of the score.
        annotation: The annotation's name on the command line.
        model: Overrides that select the annotating model, see `annotating_model`.
        given: Path of the user's own rows, used instead of an annotation.

    Returns:
        A command in which the user replaces RUN_FOLDER (a trained model) and CLASSIFIER (a token classifier).
    """
    kind = expected_kind(name) or LOGPROB
    of = ["data=rows", _setting("data.path", given)] if given else [_setting("annotation", annotation)]
    parts = [*of, f"score={kind}", _setting("name", name), model]
    if kind == "contrast":  # of two trained models, one of right and one of wrong responses
        parts += ["checkpoint=RUN_FOLDER", "score.negative=OTHER_RUN_FOLDER"]
    if kind == "token_classifier":
        parts.append("score.path=CLASSIFIER")
    return " ".join(["cft score", *filter(None, parts), *(() if kind == name else ("checkpoint=RUN_FOLDER",))])


def annotating_model(manifest: Mapping[str, Any]) -> str:
    """Overrides that select the model of an annotation, given its manifest; "" if it is the default."""
    made = manifest["fingerprint"].get("model", {})
    name = str(manifest["model_name"])
    path, revision = str(made.get("path", "")), str(made.get("revision", "main"))
    if f"package:{DEFAULT_MODEL}" == path:
        return ""
    file = MODELS / f"{name}.yaml"
    known: Any = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if path in ("", known.get("path")) and revision == known.get("revision", "main"):
        return f"model={shlex.quote(name)}"
    chosen = ["model=hub", _setting("model.name", name), _setting("model.path", path)]
    return " ".join([*chosen, *([] if revision == "main" else [_setting("model.revision", revision)])])


def _setting(key: str, value: str) -> str:
    """An override for the command line, quoted for Hydra's grammar and then for the shell."""
    return shlex.quote(setting(key, value))


def expected_kind(name: str) -> str:
    """The kind that a score of this name must have, "" if any."""
    return name if name in KINDS else ""


def other_kind(
    manifest: Mapping[str, Any], *, name: str, kind: str, annotation: str, model: str, given: str = ""
) -> str:
    """Error message if a stored score is not of the required kind; "" if it is, or if any kind is allowed."""
    found = manifest["fingerprint"].get("score", {}).get("kind", "unknown")
    if not kind or found == kind:
        return ""
    if name == kind:
        remedy = f"make it again: {command_for(name, annotation, model=model, given=given)} replace=true"
    else:
        make = "contrast" if kind == "contrast" else "reference"
        remedy = f"name one that holds it, or make one: {command_for(make, annotation, model=model, given=given)}"
    return f"the stored score {name} is of the kind {found}, but {kind} is needed here; {remedy}"


def _values(table: pa.Table) -> dict[str, tuple[str, Values]]:
    column = table["values"].combine_chunks()
    at, flat = column.offsets.to_numpy(), column.values.to_numpy()
    ids, tokens = table["response_id"].to_pylist(), table["tokens_sha256"].to_pylist()
    return {key: (tokens[i], np.asarray(flat[at[i] : at[i + 1]], dtype=np.float32).copy()) for i, key in enumerate(ids)}
