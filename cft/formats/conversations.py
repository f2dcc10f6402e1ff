"""Formats with messages. The library applies its own chat template and tokenizes the text again, so token ids may differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cft.formats.base import EXACT, Example, Format, FormatError, Source
from cft.models.text import hidden_ids
from cft.prompts.chat import encoded

_TEMPLATE = "The library's template must match that of the annotated model; only the tokenizer was checked."


class ShareGPT(Format):
    """LLaMA-Factory's `sharegpt` with dataset_info.json, which Axolotl and ms-swift also read.

    Only for loss on complete responses, since messages cannot represent a mask.
    """

    library = "sharegpt"
    suffix = "jsonl"
    columns = (("`conversations`", "list of {from, value}", "human and gpt in turn"), ("`system`", "string", "if any"))
    use = ("yaml", "stage: sft\ndataset_dir: <this folder>\ndataset: train\ntemplate: <the model's>")
    limits = (_TEMPLATE,)

    def require(self, examples: Sequence[Example], source: Source) -> None:
        super().require(examples, source)
        masked = [example for example in examples if (example.weight[example.prompt_len :] != 1).any()]
        if masked:
            raise FormatError(
                f"format: {len(masked)} of {len(examples)} rows have loss on only a part of the response (such as response "
                f"{masked[0].row.response_id}), but {self.library} trains on whole responses. Set mask=all, or choose "
                f"format=llama_factory, which keeps the mask (as do {EXACT})"
            )

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        del split
        return pa.Table.from_pylist([self._row(example, source) for example in examples])

    def beside(self, splits: Sequence[str], source: Source) -> dict[str, str]:
        columns = {"messages": "conversations", "system": "system"}
        if not getattr(source.prompt, "system", ""):
            del columns["system"]
        entries = {
            split: {"file_name": self.place(split), "formatting": "sharegpt", "columns": columns} for split in splits
        }
        return {"dataset_info.json": json.dumps(entries, indent=2) + "\n"}

    def _row(self, example: Example, source: Source) -> dict[str, Any]:
        *system, user = source.turns(example)
        turns = [{"from": "human", "value": user["content"]}, {"from": "gpt", "value": example.row.response}]
        return {"conversations": turns, **({"system": system[0]["content"]} if system else {})}


class MsSwift(Format):
    """Messages of ms-swift (4.2 or newer): a response is several consecutive assistant messages, each with a `loss_scale`.

    Args:
        response_end: Treatment of rows whose last word carries loss but whose end token does not, since ms-swift gives such end
            tokens loss: "refuse" them, or "train" on the end token.
    """

    library = "ms-swift"
    suffix = "jsonl"
    weighted = True
    columns = (
        ("`messages`", "list of {role, content, loss_scale}", "consecutive assistant messages are one response"),
    )
    use = (
        "bash",
        "swift sft --model <the model> --dataset <this folder>/data/train-00000-of-00001.jsonl --loss_scale default "
        "--is_binary_loss_scale false",
    )
    limits = (
        "Without `--is_binary_loss_scale false`, every weight above 0 counts as 1. Texts with different weights are encoded "
        "separately; it was checked that this gives the annotation's ids.",
        _TEMPLATE,
    )

    def __init__(self, *, response_end: Literal["refuse", "train"]) -> None:
        self.response_end = response_end

    def require(self, examples: Sequence[Example], source: Source) -> None:
        changed = [example for example in examples if not _keeps_tokens(example, source)]
        if changed:
            raise FormatError(
                f"format: {len(changed)} of {len(examples)} rows (such as response {changed[0].row.response_id}) would have "
                f"other tokens if their parts are encoded separately; choose a format of token ids ({EXACT})"
            )
        ends = [example for example in examples if _end_is_lost(example)]
        if ends and self.response_end == "refuse":
            raise FormatError(
                f"format.response_end=refuse: {len(ends)} of {len(examples)} rows (such as response {ends[0].row.response_id}) "
                "have loss on the last word but none on the end token, to which ms-swift always gives loss. Accept this with "
                f"format.response_end=train, or choose a format of token ids ({EXACT})"
            )

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        del split
        return pa.Table.from_pylist([self._row(example, source) for example in examples])

    def _row(self, example: Example, source: Source) -> dict[str, Any]:
        weights = example.weight[example.prompt_len :].copy()
        if _end_is_lost(example):
            weights[-1] = 1
        answer = [
            {"role": "assistant", "content": text, "loss_scale": scale}
            for text, scale in _parts(example, weights, source)
        ]
        return {"messages": [*source.turns(example), *answer]}


def _parts(example: Example, weights: np.ndarray, source: Source) -> list[tuple[str, float]]:
    """(text, weight) of runs of tokens with equal weight. The end token is a separate text, which ends ms-swift's response."""
    row = example.row
    ends = list(row.response_ids[-1:]) if row.finish == "stop" else []
    visible = len(row.response_ids) - len(ends)
    found = []
    for weight, group in groupby(range(visible), key=lambda t: float(weights[t])):
        places = list(group)
        found.append((row.response[row.char_span[places[0], 0] : row.char_span[places[-1], 1]], weight))
    end = str(source.tokenizer.decode(ends, skip_special_tokens=False))
    return [*found, (end, float(weights[-1]))] if end else found


def _keeps_tokens(example: Example, source: Source) -> bool:
    """Whether encoding each part separately yields the response's tokens."""
    row, tokenizer = example.row, source.tokenizer
    if row.finish != "stop" or hidden_ids(tokenizer) & set(row.response_ids[:-1].tolist()):
        return False  # ms-swift would add an end token, or a text would contain hidden tokens
    parts = _parts(example, example.weight[example.prompt_len :], source)
    return [token for text, _ in parts for token in encoded(tokenizer, text)] == row.response_ids.tolist()


def _end_is_lost(example: Example) -> bool:
    """Whether ms-swift would add loss to the end token, as it does after a token with loss."""
    return len(example.row.response_ids) > 1 and bool(example.weight[-1] == 0 < example.weight[-2])
