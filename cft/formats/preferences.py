"""Pairs for direct preference optimization from the counterfactual evidence: a token against one that fails in its place.

After the same prefix, the response's own token led to the right answer and the alternative to a wrong one, or the other way
round in a wrong response. A pair is these two tokens and no more, as in pivotal token search (Phi-4, arXiv 2412.08905):
continuations of alternatives are not stored. TRL's DPOTrainer encodes texts and puts an end token behind each, which would
teach to stop after the critical token; so pairs are ids, and texts come only where they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cft.formats.base import Example, Format, FormatError, Source
from cft.types import Outcome

_SCHEMA = {
    "response_id": pa.string(),
    "position": pa.int32(),
    "prompt_ids": pa.list_(pa.int32()),
    "chosen_ids": pa.list_(pa.int32()),
    "rejected_ids": pa.list_(pa.int32()),
}
_TEXTS = ("prompt", "chosen", "rejected")


class Preferences(Format):
    """prompt_ids, chosen_ids and rejected_ids, as the collator of TRL's DPOTrainer takes them.

    Args:
        alternatives: Of each token with loss: the "first" alternative that ended otherwise, or a pair for each ("all").
        text: Whether there are columns prompt, chosen and rejected, too. A trainer that reads them encodes them again and
            adds an end token.
    """

    library = "a preference pair"
    columns = (
        ("`response_id`, `position`", "string, int32", "the token of the response that the pair is about"),
        ("`prompt_ids`", "list of int32", "prompt and response up to it"),
        (
            "`chosen_ids`",
            "list of int32",
            "the token after which the answer was right: the response's own, if it is right",
        ),
        ("`rejected_ids`", "list of int32", "one after which the answer was wrong"),
    )
    use = (
        "python",
        "from datasets import load_dataset\n"
        "from trl import DPOConfig, DPOTrainer\n\n"
        "class TokenPairs(DPOTrainer):\n"
        "    def _prepare_dataset(self, dataset, *args):\n"
        "        return dataset  # ids already: nothing to encode, and no end token behind a pair\n\n"
        'pairs = load_dataset("<this folder>")["train"]\n'
        'TokenPairs(model="<the model>", args=DPOConfig(max_length=None), train_dataset=pairs).train()',
    )
    limits = (
        "A pair is two tokens: what came after an alternative was judged and not stored. Alternatives that were cut off, "
        "undecided or untried make no pair.",
    )

    def __init__(self, *, alternatives: Literal["first", "all"], text: bool) -> None:
        self.alternatives = alternatives
        self.text = text

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        pairs = [pair for example in examples for pair in self._pairs(example)]
        if split == "train" and not pairs:
            raise FormatError(
                "format: no token with loss has an alternative that ended otherwise, so there is no pair; choose a mask of "
                "tokens that have, such as mask=critical (mask=turning for wrong responses), or another annotation"
            )
        schema = dict(_SCHEMA)
        if self.text:
            schema |= dict.fromkeys(_TEXTS, pa.string())
            decode = source.tokenizer.decode
            for pair in pairs:
                pair |= {name: decode(pair[f"{name}_ids"], skip_special_tokens=False) for name in _TEXTS}
        return pa.Table.from_pylist(pairs, schema=pa.schema(schema))

    def _pairs(self, example: Example) -> Iterator[dict[str, Any]]:
        row, start = example.row, example.prompt_len
        # Of a wrong response the alternative is the better one, where it turns the answer right.
        other = Outcome.WRONG if row.verdict == "right" else Outcome.RIGHT
        for t in np.flatnonzero(example.weight[start:] > 0).tolist():
            found = np.flatnonzero(row.alt_outcome[t] == other).tolist()
            for k in found[:1] if self.alternatives == "first" else found:
                own, alternative = [int(row.response_ids[t])], [int(row.alt_ids[t, k])]
                chosen, rejected = (own, alternative) if row.verdict == "right" else (alternative, own)
                yield {
                    "response_id": row.response_id,
                    "position": t,
                    "prompt_ids": example.ids[: start + t].tolist(),
                    "chosen_ids": chosen,
                    "rejected_ids": rejected,
                }
