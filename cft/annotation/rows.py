"""Conversion between annotated responses and Arrow tables (one row each), and the hash that compares two annotations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cft.files import sha256_json
from cft.types import GREEDY_SAMPLE, AnnotatedResponse, Outcome

_VECTOR = {  # [P] or [R]
    "prompt_ids": pa.int32(),
    "response_ids": pa.int32(),
    "logprob": pa.float32(),
    "entropy": pa.float32(),
    "replay_outcome": pa.int8(),
    "prefix_outcome": pa.int8(),
}
_MATRIX = {  # [R, 2] or [R, K]
    "char_span": pa.int32(),
    "alt_ids": pa.int32(),
    "alt_logprob": pa.float32(),
    "alt_tokens": pa.int32(),
    "alt_outcome": pa.int8(),
    "sampled": pa.int16(),
    "sampled_right": pa.int16(),
    "sampled_cut_off": pa.int16(),
    "sampled_undecided": pa.int16(),
}
_INEXACT = {"logprob", "entropy", "alt_logprob"}  # agree only to about 1e-4 between batch sizes and machines


def _arrow_type(name: str) -> pa.DataType:
    if name in _VECTOR:
        return pa.list_(_VECTOR[name])
    if name in _MATRIX:
        return pa.list_(pa.list_(_MATRIX[name]))
    if name == "sample":
        return pa.int32()
    return pa.list_(pa.list_(pa.string())) if name == "alt_answer" else pa.string()


# Columns that only some annotations have, with the value of rows without them. Scores have tables of their own
# (`cft/scores/store.py`).
_USUAL = {"verdict": "right", "sample": GREEDY_SAMPLE}
OPTIONAL = ("verdict", "sample", "prefix_outcome", "sampled", "sampled_right", "sampled_cut_off", "sampled_undecided")
ROW_SCHEMA = pa.schema(
    [(f.name, _arrow_type(f.name)) for f in fields(AnnotatedResponse) if f.name not in ("scores", *OPTIONAL)]
)


def row_schema(further: Collection[str] = ()) -> pa.Schema:
    """Schema of a table of rows. further: the columns of OPTIONAL that it has."""
    return pa.schema([*ROW_SCHEMA, *(pa.field(name, _arrow_type(name)) for name in OPTIONAL if name in further)])


def without_evidence(tokens: int) -> dict[str, Any]:
    """Evidence columns, by name, of a response of `tokens` tokens without evidence: no alternatives, no samples."""
    none, counts = np.zeros((tokens, 0), dtype=np.int32), np.zeros((0, 0), dtype=np.int16)
    return {
        "alt_ids": none,
        "alt_logprob": none.astype(np.float32),
        "alt_answer": [[] for _ in range(tokens)],
        "alt_tokens": none,
        "alt_outcome": none.astype(np.int8),
        "replay_outcome": np.full(tokens, Outcome.UNTRIED, dtype=np.int8),
        "prefix_outcome": np.zeros(0, dtype=np.int8),
        "sampled": counts,
        "sampled_right": counts,
        "sampled_cut_off": counts,
        "sampled_undecided": counts,
    }


def rows_table(rows: Sequence[AnnotatedResponse], *, further: Collection[str] = ()) -> pa.Table:
    """Convert rows to a table. further: columns of OPTIONAL to include even if no row has a value for them."""
    held = {name for row in rows for name in OPTIONAL if _holds(row, name)}
    schema = row_schema({*further, *held})
    return pa.Table.from_pylist([_record(row, schema.names) for row in rows], schema=schema)


def table_rows(table: pa.Table) -> list[AnnotatedResponse]:
    """The inverse of rows_table."""
    names = [*ROW_SCHEMA.names, *(name for name in OPTIONAL if name in table.column_names)]
    columns = {name: _decoder(name)(table.column(name).combine_chunks()) for name in names}
    return [
        AnnotatedResponse(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
    ]


def table_hash(rows: Sequence[AnnotatedResponse]) -> str:
    """SHA-256 over ids, text and outcomes (not floats) of the rows sorted by id: equal for equal annotations."""
    ordered = sorted(rows, key=lambda row: (row.problem_id, row.response_id))
    return sha256_json([_record(row, _hashed(row)) for row in ordered])


def _hashed(row: AnnotatedResponse) -> list[str]:
    held = [name for name in OPTIONAL if _holds(row, name)]
    return [name for name in (*ROW_SCHEMA.names, *held) if name not in _INEXACT]


def _holds(row: AnnotatedResponse, name: str) -> bool:
    """Whether the row has a value other than the default in an optional column."""
    value = getattr(row, name)
    return value.size > 0 if isinstance(value, np.ndarray) else value != _USUAL[name]


def _record(row: AnnotatedResponse, names: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in names}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _decoder(name: str) -> Callable[[Any], list[Any]]:
    if name in _VECTOR:
        return _vectors
    return _matrices if name in _MATRIX else lambda array: array.to_pylist()


def _vectors(array: pa.ListArray) -> list[NDArray[Any]]:
    """Slices of the flat buffer: a hundred times faster than conversion through Python numbers."""
    at, flat = array.offsets.to_numpy(), array.values.to_numpy()
    return [flat[at[i] : at[i + 1]].copy() for i in range(len(array))]


def _matrices(array: pa.ListArray) -> list[NDArray[Any]]:
    outer, inner = array.offsets.to_numpy(), array.values
    at, flat = inner.offsets.to_numpy(), inner.values.to_numpy()
    widths = np.diff(at).tolist()
    result = []
    for start, end in pairwise(outer.tolist()):
        own = widths[start:end]
        if len(set(own)) > 1:
            raise ValueError(f"ragged rows of widths {own}, expected one width")
        result.append(flat[at[start] : at[end]].reshape(end - start, own[0] if own else 0).copy())
    return result
