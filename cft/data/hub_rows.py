"""Loads rows with the `datasets` package, from the hub or a folder, and explains errors in local files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cft.data.problem_rows import Number, ProblemError, Row, json_lines


def hub_rows(path: str, *, config: str, revision: str, split: str) -> Iterator[Row]:
    """Rows of one split, numbered from 0. Remote code is never run.

    A folder is read without the cache of `datasets`: for a folder whose README lists its files, as `cft export` writes it,
    the cache's key has neither the place nor the content of the files, so it would return the rows of an earlier export.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    folder, name = Path(path).expanduser(), config or None
    try:
        if folder.is_dir():
            with TemporaryDirectory(prefix="cft-rows-") as cache:
                dataset = load_dataset(str(folder), name, split=split, cache_dir=cache, keep_in_memory=True)
        else:
            commit = _commit(path, revision)
            dataset = load_dataset(path, name, revision=commit or revision or None, split=split)
            files = [Path(file["filename"]) for file in dataset.cache_files]
            _require_commit(path, revision, wanted=commit, found=files[0].parent.name if files else "")
    except DatasetGenerationError as error:
        raise ProblemError(_not_generated(path, split=split, error=error)) from error
    except ProblemError:
        raise
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, HTTPError) as error:
        raise ProblemError(
            f"cannot load data set {path!r} (config {config!r}, split {split!r}, revision {revision!r}): {error}. "
            "Check the names and the network, or give a local folder (data.dir or data.path)."
        ) from error
    return (Row(f"{path}[{split}] row {i}", row) for i, row in enumerate(dataset) if isinstance(row, Mapping))


_COMMIT = re.compile("[0-9a-f]{40}")


def _commit(path: str, revision: str) -> str:
    """The commit of a revision, by default of the newest; "" if the hub cannot be reached."""
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if _COMMIT.fullmatch(revision):
        return revision
    try:
        return str(HfApi().dataset_info(path, revision=revision or None, timeout=30).sha)
    except HfHubHTTPError:
        raise
    except (OSError, HTTPError):
        return ""


def _require_commit(path: str, revision: str, *, wanted: str, found: str) -> None:
    """Check the commit of the loaded rows: without the hub, `datasets` returns the latest one in its cache.

    Args:
        path: the data set.
        revision: what was asked for; "" = the newest.
        wanted: its commit; "" = not known.
        found: the commit of the loaded rows, the name of their folder in the cache.

    Raises:
        ProblemError: they are of another commit, or of an unknown one.
    """
    if not _COMMIT.fullmatch(found) or wanted == found:
        return
    if not revision and not wanted:
        warnings.warn(
            f"data set {path!r}: the hub cannot be reached, so the rows are those of the latest commit in the cache, {found}",
            stacklevel=3,
        )
        return
    raise ProblemError(
        f"data set {path!r}: expected revision {revision or wanted!r}, but the hub cannot be reached, and the latest commit in "
        f"the cache is {found}. Connect to the hub, or set the revision to that commit to use its rows"
    )


def _not_generated(path: str, *, split: str, error: Exception) -> str:
    """Error message that names the file and row that `datasets` cannot read, which its own error does not."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    reason = str(causes[-1]).strip().splitlines()[0][:200] if str(causes[-1]).strip() else type(causes[-1]).__name__
    folder = Path(path).expanduser()
    files = sorted(file for kind in ("*.jsonl", "*.json") for file in folder.rglob(kind)) if folder.is_dir() else []
    found = next((text for file in files if (text := _first_misfit(file))), "") or _other_fields(files)
    place = f"{found}; " if found else ""
    return (
        f"data set {path!r} (split {split!r}) cannot be read: {place}{reason}. Repair the file; files of one split need the "
        "same fields with values of the same types, or read one file with data=jsonl data.path=FILE"
    )


def _first_misfit(file: Path) -> str:
    """The first row of a JSONL file that is malformed, or in which a value's type differs from earlier rows; "" if none."""
    kinds: dict[str, tuple[str, str]] = {}  # field -> (kind, place it was first seen)
    try:
        rows = list(json_lines(file))
    except ProblemError as error:
        return str(error)
    for row in rows:
        if row.value is None:
            return f"{file.parent}/{row.place}: {row.reason}"
        for name, value in row.value.items():
            kind = "number" if isinstance(value, Number) else type(value).__name__
            known, place = kinds.setdefault(name, (kind, row.place))
            if value is not None and known not in (kind, "NoneType"):
                return f"{file.parent}/{row.place}: {name} is {kind}, in {place} it is {known}"
    return ""


def _other_fields(files: Sequence[Path]) -> str:
    """The first file whose first row has other fields than that of the first file; "" if none."""
    fields = [next((frozenset(row.value) for row in json_lines(file) if row.value is not None), None) for file in files]
    for file, found in zip(files, fields, strict=True):
        if found is not None and fields[0] is not None and found != fields[0]:
            return f"{file}, row 1: fields {', '.join(sorted(found))}, but {files[0].name} has {', '.join(sorted(fields[0]))}"
    return ""
