"""Stored scores: one number per response token, computed once by a frozen model, kept beside the annotation.

<annotation>/scores/<name>/<fingerprint>.parquet      response_id, values [R] float32
<annotation>/scores/<name>/manifest.json              the fingerprint in full and the command that made it
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow.parquet as pq

from cft.store import AnnotationStore, StoreError
from cft.types import AnnotatedResponse


def with_scores(
    store: AnnotationStore, rows: Sequence[AnnotatedResponse], *, names: Collection[str]
) -> list[AnnotatedResponse]:
    """The rows with `scores` filled. Raises StoreError with the command for a score that is missing or incomplete."""
    tables = {name: _read(store, name) for name in sorted(names)}
    filled = []
    for row in rows:
        scores = {}
        for name, values in tables.items():
            found = values.get(row.response_id)
            if found is None or len(found) != len(row.response_ids):
                raise StoreError(
                    f"{store.folder}: score {name} has no values for response {row.response_id}; the annotation grew after "
                    f"the score was made. Make it again: {_command(store, name)}"
                )
            scores[name] = found
        filled.append(dataclasses.replace(row, scores=scores))
    return filled


def _read(store: AnnotationStore, name: str) -> dict[str, np.ndarray]:
    folder = store.folder / "scores" / name
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise StoreError(f"{folder}: no stored score of that name; make it with: {_command(store, name)}")
    fingerprint = json.loads(manifest.read_text())["fingerprint_sha256"]
    table = pq.read_table(folder / f"{fingerprint[:16]}.parquet")
    return {
        key: np.asarray(values, dtype=np.float32)
        for key, values in zip(table["response_id"].to_pylist(), table["values"].to_pylist(), strict=True)
    }


def _command(store: AnnotationStore, name: str) -> str:
    return f"python -m cft.score annotation={store.folder.name} name={name}"
