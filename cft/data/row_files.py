"""Reads rows to train on from a file, a folder or the hub, as plain JSON values with their places."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cft.data.hub_rows import hub_rows
from cft.data.problem_rows import Number, ProblemError, Row, json_lines
from cft.files import sha256_file, sha256_json

_PARQUET = b"PAR1"


def file_rows(path: str, *, config: str, revision: str, split: str) -> Iterator[Row]:
    """Rows of a JSONL or Parquet file, or of one split of a folder or data set that `datasets` loads.

    Raises:
        ProblemError: there is no such file or data set, or its format is not supported.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        if text := not_there(path):
            raise ProblemError(f"data.path={path}: {text}")
        return _dense(hub_rows(str(file) if file.is_dir() else path, config=config, revision=revision, split=split))
    with file.open("rb") as handle:
        parquet = handle.read(len(_PARQUET)) == _PARQUET
    if parquet:
        return _dense(_parquet_rows(file))
    rows = (Row(row.place, None if row.value is None else plain(row.value), row.reason) for row in json_lines(file))
    # As in a table, a field without a value is none; a null within tools is part of their schema.
    return (
        Row(row.place, row.value and {k: v for k, v in row.value.items() if v is not None}, row.reason) for row in rows
    )


def not_there(path: str) -> str:
    """Error message if a path is neither a file, nor a folder, nor a name on the hub; "" if it may be one of these."""
    file = Path(path).expanduser()
    if file.exists() or (path.count("/") == 1 and not file.parent.is_dir() and path[0] not in "./~"):
        return ""
    return (
        f"no such file (looked in {file.parent.absolute()}); expected a JSONL file, a Parquet file, a folder that "
        "datasets can load, or owner/name on the hub"
    )


def fingerprint_of(path: str, rows: list[Row]) -> str:
    """SHA-256 of the file, or of the rows of a folder or data set."""
    file = Path(path).expanduser()
    return sha256_file(file) if file.is_file() else sha256_json([row.value for row in rows])


def plain(value: Any) -> Any:
    """The value with `Number`s, which `json_lines` keeps as text, converted to numbers."""
    if isinstance(value, Number):
        try:
            return json.loads(value)
        except ValueError:  # more digits than Python converts
            return str(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        number = 0
        for batch in parquet.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                yield Row(f"{file.name} row {number}", value)
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise ProblemError(f"{file} cannot be read as Parquet: {error}") from error


def _dense(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows without null values, with which tables fill missing keys."""
    return (Row(row.place, None if row.value is None else _without_null(row.value), row.reason) for row in rows)


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value
