"""What a format is given, and what it must say of itself.

A format turns responses with a weight for each token into one table a split. What it cannot carry is refused by name with a
remedy, or written only where its option asks for it; nothing is rounded.
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
from cft.data.row_shapes import IGNORED
from cft.errors import UserError
from cft.files import temporary_beside, write_atomically, write_bytes
from cft.models.load import load_tokenizer, tokenizer_hash
from cft.prompts.chat import SLOT, Chat, Prompt
from cft.types import AnnotatedResponse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXACT = "format=labels or format=tinker"  # what carries every weight


class FormatError(UserError, ValueError):
    """The rows hold what the format cannot carry."""


@dataclass(frozen=True, slots=True)
class Example:
    """One response. ids, weight: [L] of prompt and response; the weight is that of a token's loss, 0 on the prompt."""

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
        """Whether a weight is neither 0 nor 1."""
        return bool(((self.weight != 0) & (self.weight != 1)).any())


class Source:
    """The annotation that the rows are of, for formats that hold text.

    Args:
        manifest: Of the annotation.
    """

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest = manifest

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model that was annotated. Raises FormatError where another one is found."""
        tokenizer = load_tokenizer(build(dict(self.manifest["config"]["model"])))
        then, now = self.manifest["fingerprint"]["tokenizer"], tokenizer_hash(tokenizer)
        if then != now:
            raise FormatError(
                f"format: the tokenizer of {self.manifest['model_name']} is {now[:12]} now, but the annotation was made with "
                f"{then[:12]}; put the model's old tokenizer back, or choose a format of token ids ({EXACT})"
            )
        return tokenizer

    @cached_property
    def prompt(self) -> Prompt:
        return build(dict(self.manifest["config"]["prompt"]))

    def turns(self, example: Example) -> list[dict[str, str]]:
        """The conversation that the response answers. Raises FormatError where there is none, or where it is not the prompt."""
        row, prompt = example.row, self.prompt
        if not isinstance(prompt, Chat):
            raise FormatError(
                f"format: {self.manifest['name']} was annotated with a plain prompt, which is no conversation; choose a format "
                f"of token ids ({EXACT})"
            )
        if prompt.ids(self.tokenizer, row.problem) != example.ids[: example.prompt_len].tolist():
            raise FormatError(
                f"format: the prompt of response {row.response_id} is not its problem under the annotation's prompt "
                f"(data.shuffle_responses, or another chat template); choose a format of token ids ({EXACT})"
            )
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return [*system, {"role": "user", "content": prompt.template.replace(SLOT, row.problem)}]


class Format(ABC):
    """Base of the formats; `table` is theirs.

    library: as messages name it. suffix: of the files. weighted: whether every weight is carried. columns: name, type,
    meaning. use: (language, text) of the card, `{folder}` being the place. limits: what is lost, in sentences.
    """

    library: ClassVar[str]
    suffix: ClassVar[Literal["parquet", "jsonl", "disk"]] = "parquet"
    weighted: ClassVar[bool] = False
    columns: ClassVar[tuple[tuple[str, str, str], ...]]
    use: ClassVar[tuple[str, str]]
    limits: ClassVar[tuple[str, ...]] = ()

    def of(self, source: Source) -> Format:
        """The format of this annotation's rows, where that depends on what it holds."""
        del source
        return self

    def require(self, examples: Sequence[Example], source: Source) -> None:
        """Raises FormatError where the format cannot carry the rows."""
        del source
        weighted = sum(example.is_weighted for example in examples)
        if weighted and not self.weighted:
            first = next(example for example in examples if example.is_weighted)
            value = next(float(w) for w in first.weight if w not in (0, 1))
            raise FormatError(
                f"format: {weighted} of {len(examples)} rows have weights that are neither 0 nor 1 (response "
                f"{first.row.response_id} has {value:g}), and {self.library} has no weights of tokens. {EXACT} carry them; or "
                "choose a mask of zeros and ones, such as mask=critical mask.rule=all"
            )

    @abstractmethod
    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        """Rows of a split in the columns that the library reads."""

    def beside(self, splits: Sequence[str], source: Source) -> dict[str, str]:
        """Name -> text of further files."""
        del splits, source
        return {}

    def place(self, split: str) -> str:
        """Of a split's file, below the folder."""
        return f"tokenized/{split}" if self.suffix == "disk" else f"data/{split}-00000-of-00001.{self.suffix}"


def write_table(path: Path, table: pa.Table, *, suffix: str) -> None:
    """Whole or not at all, with the same bytes each time."""
    if suffix == "disk":
        _write_folder(path, lambda folder: _save_to_disk(table, folder))
    elif suffix == "parquet":
        write_atomically(path, lambda temporary: pq.write_table(table, temporary))
    else:
        lines = (json.dumps(_without_null(row), ensure_ascii=False) + "\n" for row in table.to_pylist())
        write_bytes(path, "".join(lines).encode())


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Lists of numbers as they are in numpy."""
    return pa.array(values, pa.list_(kind))


def _without_null(value: Any) -> Any:
    """Of JSON: a key without a value is not there."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _save_to_disk(table: pa.Table, folder: Path) -> None:
    """As `datasets.load_from_disk` opens it. The fingerprint names the contents, so that the same rows are the same bytes."""
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
