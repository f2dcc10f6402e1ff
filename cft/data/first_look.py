"""Finds faults of the user's rows before torch, transformers or a model load: those that need no tokenizer.

The stages read the rows again with the same functions and raise the same errors; this only raises them sooner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from cft.data.preference_rows import responses_of
from cft.data.problem_rows import BadRow, ProblemError, Quarantine, Row
from cft.data.row_contents import REMEDY, RowFields
from cft.data.row_files import file_rows
from cft.data.rows_as_problems import problem_of
from cft.files import LARGEST_READ_AHEAD
from cft.types import ASSISTANT

_FILES = ("path", "validation_path")
_FIRST = 1000  # rows of a large file that are looked at


def faults(data: Mapping[str, Any], *, annotated: bool, compared: bool, chat: bool) -> str:
    """What is wrong with the rows of local files; "" if nothing is, or if they are elsewhere.

    Args:
        data: a valid config of `data=rows`.
        annotated: whether rows are problems with responses, for `cft annotate`.
        compared: whether they are preference rows.
        chat: whether prompts are made with a chat template.
    """
    files = [Path(str(data.get(name) or "")).expanduser() for name in _FILES]
    stats = tuple((file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else () for file in files)
    return _faults(json.dumps(data, default=str), stats, annotated, compared, chat)


@lru_cache(maxsize=64)  # the steps of a pipeline and the jobs of a multirun read the same files
def _faults(settings: str, stats: tuple[tuple[int, ...], ...], annotated: bool, compared: bool, chat: bool) -> str:
    """stats: only part of the cache key, since the files may change."""
    del stats
    keys = json.loads(settings)
    if annotated:
        return _error(str(keys["path"]), keys, partial(problem_of, keys=keys), limit=keys["max_rows"])
    compared = compared or keys["shape"] == "preference"
    names = (keys[f"{name}_field"] for name in ("prompt", "completion", "messages", "id", "answer"))
    shape: Any = keys["shape"]
    fields = RowFields("auto" if compared else shape, *names, roles=tuple(keys["roles"]) or (ASSISTANT,))

    def read(row: Row) -> None:
        if row.value is None:
            raise BadRow(row.reason)
        for one in responses_of(row.value, fields) if compared else (row.value,):
            fields.check(one, chat=chat)

    return _error(str(keys["path"]), keys, read, limit=keys["max_rows"]) or _error(
        str(keys["validation_path"]), keys, read, limit=-1
    )


def _error(path: str, keys: Mapping[str, Any], read: Callable[[Row], object], *, limit: int) -> str:
    """Of a large file only the first rows are looked at, and it is an error only if all of them are bad."""
    file = Path(path).expanduser()
    if not file.is_file():
        return ""
    large = file.stat().st_size > LARGEST_READ_AHEAD
    limits = [*([limit] if limit >= 0 else []), *([_FIRST] if large else [])]
    quarantine, count = Quarantine(path, keys["max_bad_rows"], remedy=REMEDY), 0
    try:
        for row in islice(file_rows(path, config="", revision="", split=""), min(limits, default=None)):
            count += 1
            try:
                read(row)
            except BadRow as error:
                quarantine.add(row, reason=str(error))
    except ProblemError as error:
        return str(error)
    return "" if large and sum(quarantine.counts.values()) < count else quarantine.error(rows=count)
