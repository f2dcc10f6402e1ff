"""Rows of the training benchmark: GSM8K's problems and solutions, tokenized for SmolLM2, with seeded masks.

Rows of one optimizer step are adjacent, longest first, so that an arm that takes them in order has its lengths grouped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cft.data.batches import TokenRow

DENSITY = 0.12
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A row. ids: [L]. prompt_len: leading tokens that are the prompt. sparse: [L] bool, a fraction DENSITY of the response
    tokens, at least one."""

    ids: NDArray[np.int64]
    prompt_len: int
    sparse: NDArray[np.bool_]

    def weight(self, mask: str) -> NDArray[np.bool_]:
        """mask: sparse | full."""
        return self.sparse if mask == "sparse" else np.arange(len(self.ids)) >= self.prompt_len

    def token_row(self, mask: str, *, name: str) -> TokenRow:
        probe = np.where(np.arange(len(self.ids)) < self.prompt_len, -1, self.sparse).astype(np.int8)
        return TokenRow(name, self.ids, self.weight(mask).astype(np.float32), probe)

    def labels(self, mask: str) -> list[int]:
        return np.where(self.weight(mask), self.ids, -100).tolist()


def make_rows(tokenizer: Any, *, folder: Path, steps: int, rows_per_step: int, seed: int = 0) -> list[BenchRow]:
    """Read the rows. folder: contains GSM8K's train.jsonl."""
    rng = np.random.default_rng(seed)
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    made: list[BenchRow] = []
    for number in rng.permutation(len(lines)).tolist():
        problem = json.loads(lines[number])
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem["question"]}], add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        response = [*tokenizer(problem["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(prompt) + len(response) > MAX_TOKENS:
            continue
        chosen = rng.random(len(response)) < DENSITY
        chosen[rng.integers(len(response))] |= not chosen.any()
        sparse = np.r_[np.zeros(len(prompt), bool), chosen]
        made.append(BenchRow(np.array(prompt + response, dtype=np.int64), len(prompt), sparse))
        if len(made) == steps * rows_per_step:
            break
    steps_of_rows = [made[i : i + rows_per_step] for i in range(0, len(made), rows_per_step)]
    return [row for step in steps_of_rows for row in sorted(step, key=lambda row: -len(row.ids))]


def save_rows(path: Path, rows: list[BenchRow]) -> None:
    np.savez(
        path,
        ids=np.concatenate([row.ids for row in rows]),
        sparse=np.concatenate([row.sparse for row in rows]),
        length=np.array([len(row.ids) for row in rows]),
        prompt_len=np.array([row.prompt_len for row in rows]),
    )


def load_rows(path: Path) -> list[BenchRow]:
    with np.load(path) as stored:
        cuts = stored["length"].cumsum()[:-1]
        columns = np.split(stored["ids"], cuts), stored["prompt_len"].tolist(), np.split(stored["sparse"], cuts)
    return [BenchRow(*row) for row in zip(*columns, strict=True)]
