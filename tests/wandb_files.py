"""Reads the files of an offline W&B run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FULL, FIRST, MIDDLE, LAST = 32768, 7, 1, 2, 3, 4  # of the record log, as in LevelDB


def records(path: Path) -> Iterator[Any]:
    """Yields the records of an offline run's .wandb file."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class Logged:
    """Contents of one offline run."""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= {u.key: json.loads(u.value_json) for u in record.run.config.update if u.key}
            elif kind == "history":
                items = record.history.item
                self.history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
            elif kind == "summary":
                self.summary |= {u.key or u.nested_key[0]: json.loads(u.value_json) for u in record.summary.update}
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    @property
    def names(self) -> set[str]:
        return {name for row in self.history for name in row}
