"""Base class and inputs of export formats.

A format converts responses with a weight per token to one table per split. Content that it cannot represent is refused with a
remedy, or written only if an option allows it; weights are never rounded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cft.config.build import build
from cft.data.row_contents import IGNORED
from cft.errors import UserError
from cft.files import temporary_beside, write_atomically, write_bytes
from cft.models.load import load_tokenizer, tokenizer_hash
from cft.prompts.chat import SLOT, Chat, Prompt
from cft.types import AnnotatedResponse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXACT = "format=labels or format=tinker"  # formats that represent all weights


class FormatError(UserError, ValueError):
    """The format cannot represent the rows."""


@dataclass(frozen=True, slots=True)
class Example:
    """One response.

    Args:
        row: the annotated response.
        ids: [L] token ids of prompt and response.
        weight: [L] weight of each token's loss, 0 in the prompt.
    """

    row: AnnotatedResponse
    ids: NDArray[np.int64]
    weight: NDArray[np.float32]

    @property
    def prompt_len(self) -> int:
        return len(self.ids) - len(self.row.response_ids)

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.where(self.weight > 0, self.ids, IGNORED)

    @property
    def is_weighted(self) -> bool:
        """Whether any weight is neither 0 nor 1."""
        return bool(((self.weight != 0) & (self.weight != 1)).any())


class Source:
    """The source annotation of the rows, for formats with text.

    Args:
        manifest: Manifest of the annotation.
    """

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest = manifest

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the annotated model. Raises FormatError if it has changed."""
        tokenizer = load_tokenizer(build(dict(self.manifest["config"]["model"])))
        then, now = self.manifest["fingerprint"]["tokenizer"], tokenizer_hash(tokenizer)
        if then != now:
            raise FormatError(
                f"format: the tokenizer of {self.manifest['model_name']} is {now[:12]} now, but the annotation was made with "
                f"{then[:12]}; restore the model's old tokenizer, or choose a format of token ids ({EXACT})"
            )
        return tokenizer

    @cached_property
    def prompt(self) -> Prompt:
        return build(dict(self.manifest["config"]["prompt"]))

    def turns(self, example: Example) -> list[dict[str, str]]:
        """The conversation before the response. Raises FormatError if there is none, or it does not yield the prompt."""
        row, prompt = example.row, self.prompt
        if not isinstance(prompt, Chat):
            raise FormatError(
                f"format: {self.manifest['name']} was annotated with a plain prompt, not a conversation; choose a format "
                f"of token ids ({EXACT})"
            )
        if prompt.ids(self.tokenizer, row.problem) != example.ids[: example.prompt_len].tolist():
            raise FormatError(
                f"format: the prompt of response {row.response_id} is not its problem in the annotation's prompt "
                f"(data.shuffle_responses, or another chat template); choose a format of token ids ({EXACT})"
            )
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return [*system, {"role": "user", "content": prompt.template.replace(SLOT, row.problem)}]


class Format(ABC):
    """Base class of formats; subclasses implement `table`.

    library: name in messages. suffix: of the files. weighted: whether all weights are represented. columns: (name, type,
    meaning) of each column. use: (language, text) of the example on the card. limits: sentences about what is lost.
    """

    library: ClassVar[str]
    suffix: ClassVar[Literal["parquet", "jsonl", "disk"]] = "parquet"
    weighted: ClassVar[bool] = False
    columns: ClassVar[tuple[tuple[str, str, str], ...]]
    use: ClassVar[tuple[str, str]]
    limits: ClassVar[tuple[str, ...]] = ()

    def of(self, source: Source) -> Format:
        """The format for this annotation's rows; it may depend on the annotation's kind."""
        del source
        return self

    def require(self, examples: Sequence[Example], source: Source) -> None:
        """Raises FormatError if the format cannot represent the rows."""
        del source
        weighted = sum(example.is_weighted for example in examples)
        if weighted and not self.weighted:
            first = next(example for example in examples if example.is_weighted)
            value = next(float(w) for w in first.weight if w not in (0, 1))
            raise FormatError(
                f"format: {weighted} of {len(examples)} rows have weights that are neither 0 nor 1 (response "
                f"{first.row.response_id} has {value:g}), and {self.library} has no token weights. Use {EXACT}, or choose a "
                "mask of zeros and ones, such as mask=critical mask.rule=all"
            )

    @abstractmethod
    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        """Rows of a split, in the columns that the library reads."""

    def beside(self, splits: Sequence[str], source: Source) -> dict[str, str]:
        """Name -> text of additional files."""
        del splits, source
        return {}

    def place(self, split: str) -> str:
        """Path of a split's file, relative to the folder."""
        return f"tokenized/{split}" if self.suffix == "disk" else f"data/{split}-00000-of-00001.{self.suffix}"


def write_table(path: Path, table: pa.Table, *, suffix: str) -> None:
    """Write a table atomically, with deterministic bytes."""
    if suffix == "disk":
        _write_folder(path, lambda folder: _save_to_disk(table, folder))
    elif suffix == "parquet":
        write_atomically(path, lambda temporary: pq.write_table(table, temporary))
    else:
        lines = (json.dumps(_without_null(row), ensure_ascii=False) + "\n" for row in table.to_pylist())
        write_bytes(path, "".join(lines).encode())


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow column of number lists, from numpy arrays."""
    return pa.array(values, pa.list_(kind))


def _without_null(value: Any) -> Any:
    """A JSON value without keys whose value is null."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _save_to_disk(table: pa.Table, folder: Path) -> None:
    """Write a folder for `datasets.load_from_disk`. Its fingerprint is a content hash, so that equal rows give equal bytes."""
    from datasets import Dataset, disable_progress_bars, enable_progress_bars
    from datasets.table import InMemoryTable
    from datasets.utils import are_progress_bars_disabled

    digest = hashlib.sha256(table.schema.to_string().encode())
    for batch in table.combine_chunks().to_batches():
        for buffer in (b for array in batch.columns for b in array.buffers() if b is not None):
            digest.update(buffer)
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        Dataset(InMemoryTable(table), fingerprint=digest.hexdigest()[:16]).save_to_disk(folder)
    finally:
        if not hidden:
            enable_progress_bars()


def _write_folder(path: Path, write: Callable[[Path], None]) -> None:
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
