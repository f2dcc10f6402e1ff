"""The annotation store: evidence about every token, as Parquet shards with a manifest.

    <annotations_dir>/<name>/
        manifest.json              schema version, fingerprint of all that matters, counts, compute
        rows/00003.<hash>.parquet      one row per annotated response   (columns: cft.types.AnnotatedResponse)
        problems/00003.<hash>.parquet  one row per problem tried, solved or not, and why it was skipped
        units/00003.json           commit record of unit 3: the names and SHA-256 of its two shards, counts, compute

A unit is a fixed slice of the problems. Its shards are written first and its record last, each under a temporary name
and renamed, so that a unit is committed whole or not at all: after a kill at any point a resumed run redoes at most one
unit and the table equals that of an uninterrupted run. `datasets.load_dataset("parquet", data_files=".../rows/*.parquet")`
opens the rows as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cft.errors import UserError
from cft.files import exclusive, sha256_file, sha256_json, write_atomically, write_json
from cft.types import AnnotatedResponse

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent / "assets" / "annotations"

_INT, _FLOAT, _CODE = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.int8())
_ARROW = {
    "problem_id": pa.string(),
    "response_id": pa.string(),
    "problem": pa.string(),
    "answer": pa.string(),
    "response": pa.string(),
    "finish": pa.string(),
    "prompt_ids": _INT,
    "response_ids": _INT,
    "char_span": pa.list_(_INT),
    "logprob": _FLOAT,
    "entropy": _FLOAT,
    "alt_ids": pa.list_(_INT),
    "alt_logprob": pa.list_(_FLOAT),
    "alt_answer": pa.list_(pa.list_(pa.string())),
    "alt_tokens": pa.list_(_INT),
    "alt_outcome": pa.list_(_CODE),
    "replay_outcome": _CODE,
}
ROW_SCHEMA = pa.schema(list(_ARROW.items()))
_DTYPE = {
    "prompt_ids": np.int32,
    "response_ids": np.int32,
    "char_span": np.int32,
    "logprob": np.float32,
    "entropy": np.float32,
    "alt_ids": np.int32,
    "alt_logprob": np.float32,
    "alt_tokens": np.int32,
    "alt_outcome": np.int8,
    "replay_outcome": np.int8,
}


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """What became of one problem. status: annotated | wrong | undecided | cut off | near limit | prompt too long | ..."""

    problem_id: str
    status: str
    response: str
    extracted: str
    response_tokens: int
    decoded_tokens: int


PROBLEM_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("status", pa.string()),
        ("response", pa.string()),
        ("extracted", pa.string()),
        ("response_tokens", pa.int32()),
        ("decoded_tokens", pa.int32()),
    ]
)


class StoreError(UserError, ValueError):
    """The store on disk is not what it should be; the message names the file and the remedy."""


def find_annotation(annotation: str, *, annotations_dir: str | Path) -> Path:
    """Folder of an annotation by path, by name under annotations_dir, or by name among the shipped ones."""
    path = Path(annotation)
    candidates = [path] if path.name != annotation else [Path(annotations_dir) / annotation, SHIPPED / annotation]
    for candidate in candidates:
        if (candidate / "manifest.json").is_file():
            return candidate
    known = sorted(p.parent.name for root in (Path(annotations_dir), SHIPPED) for p in root.glob("*/manifest.json"))
    raise StoreError(
        f"data.annotation={annotation}: no manifest.json in {' or '.join(map(str, candidates))}. "
        f"Known annotations: {', '.join(known) or 'none'}. Make one with: python annotate.py annotation={path.name}"
    )


def check_name(name: str, *, annotations_dir: str | Path) -> str:
    """An annotation's name is a folder name. Raises StoreError if it could leave annotations_dir or is taken."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", name):
        raise StoreError(
            f"annotation={name!r}: expected a folder name of letters, digits, '.', '_', '+', '-' (at most 100)"
        )
    if (SHIPPED / name).exists() and Path(annotations_dir).resolve() != SHIPPED:
        raise StoreError(f"annotation={name}: this name belongs to an annotation that ships with the package; choose another")
    return name


class AnnotationStore:
    """One annotation on disk. Reading needs no lock; writing is done within `writing()`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    # ---- reading

    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise StoreError(f"{path}: not found; make the annotation with annotate.py") from error
        except ValueError as error:
            raise StoreError(f"{path}: not valid JSON ({error}); delete the folder {self.folder} and annotate again") from error
        if manifest.get("schema") != SCHEMA_VERSION:
            raise StoreError(
                f"{path}: schema {manifest.get('schema')}, this version reads {SCHEMA_VERSION}; annotate again"
            )
        return manifest

    def units(self) -> dict[int, dict[str, Any]]:
        """Commit records by unit number."""
        records = {}
        for path in sorted((self.folder / "units").glob("*.json")):
            try:
                records[int(path.stem)] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise StoreError(f"{path}: damaged ({error}). {self._rebuild(int(path.stem))}") from error
        return records

    def rows(self) -> list[AnnotatedResponse]:
        """All annotated responses in order. Raises StoreError if a shard is not the one that was committed."""
        return [row for unit in self.units() for row in self.unit_rows(unit)]

    def unit_rows(self, unit: int) -> list[AnnotatedResponse]:
        return [_to_row(record) for record in self._table(unit, "rows").to_pylist()]

    def problems(self) -> list[ProblemRecord]:
        return [record for unit in self.units() for record in self.unit_problems(unit)]

    def unit_problems(self, unit: int) -> list[ProblemRecord]:
        return [ProblemRecord(**record) for record in self._table(unit, "problems").to_pylist()]

    def _table(self, unit: int, kind: str) -> pa.Table:
        record = self.units()[unit][kind]
        path = self.folder / kind / record["file"]
        if not path.is_file():
            raise StoreError(f"{path}: missing, though unit {unit} is committed. {self._rebuild(unit)}")
        found = sha256_file(path)
        if found != record["sha256"]:
            raise StoreError(f"{path}: damaged, SHA-256 {found}, expected {record['sha256']}. {self._rebuild(unit)}")
        return pq.read_table(path)

    def _rebuild(self, unit: int) -> str:
        return f"To rebuild just this unit: rm {self.folder}/units/{unit:05d}.json, then run the same annotate.py command again."

    # ---- writing

    @contextmanager
    def writing(self, *, fingerprint: dict[str, Any], info: dict[str, Any]) -> Iterator[None]:
        """Create the store or go on with it, alone. fingerprint: parts that must not change; info: for people.

        Raises FolderInUse, or StoreError naming the parts that differ from the manifest's.
        """
        with exclusive(self.folder):
            if (self.folder / "manifest.json").exists():
                self._require_same(fingerprint)
            else:
                self._write_manifest(fingerprint, info)
            self._remove_orphans()
            yield
            self._write_manifest(fingerprint, info)

    def commit(
        self,
        unit: int,
        *,
        rows: Sequence[AnnotatedResponse],
        problems: Sequence[ProblemRecord],
        facts: dict[str, Any],
    ) -> None:
        """Write a unit's shards, then its record, which makes it count. A unit committed before is replaced."""
        before = self.units().get(unit)
        record = {
            "rows": self._write_shard(unit, "rows", rows_table(rows)),
            "problems": self._write_shard(
                unit, "problems", pa.Table.from_pylist([asdict(p) for p in problems], schema=PROBLEM_SCHEMA)
            ),
            **facts,
        }
        write_json(self.folder / "units" / f"{unit:05d}.json", record)
        for kind in ("rows", "problems"):
            if before and before[kind]["file"] != record[kind]["file"]:
                (self.folder / kind / before[kind]["file"]).unlink(missing_ok=True)

    def _write_shard(self, unit: int, kind: str, table: pa.Table) -> dict[str, Any]:
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".{unit:05d}.staged"
        try:
            # Dictionary pages and zstd: short integer lists shrink to a third.
            pq.write_table(table, staged, compression="zstd", compression_level=9)
            digest = sha256_file(staged)
            path = folder / f"{unit:05d}.{digest[:12]}.parquet"
            write_atomically(path, lambda temporary: staged.replace(temporary) and None)
        finally:
            staged.unlink(missing_ok=True)
        return {"file": path.name, "sha256": digest, "count": table.num_rows}

    def _require_same(self, fingerprint: dict[str, Any]) -> None:
        stored = self.manifest()["fingerprint"]
        differing = [key for key in sorted({*stored, *fingerprint}) if stored.get(key) != fingerprint.get(key)]
        if differing:
            lines = [f"  {key}: stored {stored.get(key)!r}, now {fingerprint.get(key)!r}" for key in differing]
            raise StoreError(
                f"{self.folder}: made under other conditions, so new rows would not be comparable with its rows:\n"
                + "\n".join(lines)
                + f"\nGive the new annotation another name (annotation=...), or delete {self.folder}"
            )

    def _write_manifest(self, fingerprint: dict[str, Any], info: dict[str, Any]) -> None:
        units = self.units()
        counts: dict[str, int] = {}
        compute: dict[str, float] = {}
        for record in units.values():
            for total, part in ((counts, record.get("counts", {})), (compute, record.get("compute", {}))):
                for key, value in part.items():
                    total[key] = total.get(key, 0) + value
        write_json(
            self.folder / "manifest.json",
            {
                "schema": SCHEMA_VERSION,
                "fingerprint": fingerprint,
                "fingerprint_sha256": sha256_json(fingerprint),
                "units": len(units),
                "counts": counts,
                "compute": compute,
                **info,
            },
        )

    def _remove_orphans(self) -> None:
        """Shards and temporary files that a kill left behind, committed by no record."""
        units = self.units()
        for kind in ("rows", "problems"):
            committed = {record[kind]["file"] for record in units.values()}
            for path in (self.folder / kind).glob("*"):
                if path.name not in committed:
                    path.unlink()
        for path in (*self.folder.glob("*.tmp"), *(self.folder / "units").glob(".*.tmp")):
            path.unlink()


def rows_table(rows: Sequence[AnnotatedResponse]) -> pa.Table:
    return pa.Table.from_pylist([_to_record(row) for row in rows], schema=ROW_SCHEMA)


def table_hash(rows: Sequence[AnnotatedResponse]) -> str:
    """SHA-256 over ids, text and outcomes of the rows sorted by response id: equal for equal annotations.

    Log-probs are left out: they agree between batch sizes and machines to about 1e-4 only.
    """
    left_out = {"logprob", "entropy", "alt_logprob"}
    records = [_to_record(row) for row in sorted(rows, key=lambda row: (row.problem_id, row.response_id))]
    return sha256_json([{k: v for k, v in record.items() if k not in left_out} for record in records])


def _to_record(row: AnnotatedResponse) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _to_row(record: dict[str, Any]) -> AnnotatedResponse:
    return AnnotatedResponse(**{k: np.asarray(v, dtype=_DTYPE[k]) if k in _DTYPE else v for k, v in record.items()})
