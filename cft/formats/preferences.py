"""Preference pairs for direct preference optimization. From rollouts: a right and a wrong response to the same problem. From
counterfactual evidence: a token and an alternative to it with the other outcome.

For the latter, after the same prefix, the response's own token led to the right answer and the alternative to a wrong one, or
vice versa in a wrong response. The pair is these two tokens only, as in pivotal token search (Phi-4, arXiv 2412.08905), since
continuations of alternatives are not stored. TRL's DPOTrainer encodes texts and appends an end token to each, which would
teach the model to stop after the critical token. So pairs are token ids, and texts are included only on request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cft.annotation.rollouts import holds_rollouts
from cft.formats.base import Example, Format, FormatError, Source
from cft.prompts.chat import Chat
from cft.types import Outcome

Alternatives = Literal["first", "all"]

_SCHEMA = {
    "response_id": pa.string(),
    "position": pa.int32(),
    "prompt_ids": pa.list_(pa.int32()),
    "chosen_ids": pa.list_(pa.int32()),
    "rejected_ids": pa.list_(pa.int32()),
}
_TEXTS = ("prompt", "chosen", "rejected")


class Preferences(Format):
    """prompt_ids, chosen_ids and rejected_ids, as expected by the collator of TRL's DPOTrainer.

    Args:
        alternatives: For each token with loss, a pair with the "first" alternative that has the other outcome, or with "all"
            of them. For rollouts, see `ResponsePairs`.
        text: Whether to include columns prompt, chosen and rejected. A trainer that reads them encodes them again and appends
            an end token. None: only for whole responses.
    """

    library = "a preference pair"
    columns = (
        ("`response_id`, `position`", "string, int32", "the token of the response at which the pair differs"),
        ("`prompt_ids`", "list of int32", "prompt and response up to it"),
        (
            "`chosen_ids`",
            "list of int32",
            "the token after which the answer was right (the response's own token if the response is right)",
        ),
        ("`rejected_ids`", "list of int32", "a token after which the answer was wrong"),
    )
    use = (
        "python",
        "from datasets import load_dataset\n"
        "from trl import DPOConfig, DPOTrainer\n\n"
        "class TokenPairs(DPOTrainer):\n"
        "    def _prepare_dataset(self, dataset, *args):\n"
        "        return dataset  # already token ids: nothing to encode, and no end token to append\n\n"
        'pairs = load_dataset("<this folder>")["train"]\n'
        'TokenPairs(model="<the model>", args=DPOConfig(max_length=None), train_dataset=pairs).train()',
    )
    limits = (
        "A pair is two tokens: continuations of alternatives were graded but not stored. Alternatives that were cut off, "
        "undecided or untried yield no pair.",
    )

    def __init__(self, *, alternatives: Alternatives, text: bool | None) -> None:
        self.alternatives: Alternatives = alternatives
        self.text = text

    def of(self, source: Source) -> Format:
        if not holds_rollouts(source.manifest):
            return self
        return ResponsePairs(alternatives=self.alternatives, text=self.text is not False)

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        pairs = [pair for example in examples for pair in self._pairs(example)]
        if split == "train" and not pairs:
            raise FormatError(
                "format: no token with loss has an alternative with the other outcome, so there is no pair; choose a mask of "
                "tokens that have one, such as mask=critical (mask=turning for wrong responses), or another annotation"
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
        # In a wrong response, the alternative is chosen if it leads to a right answer.
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


class ResponsePairs(Format):
    """Pairs of a right and a wrong response to the same problem, both with an end token.

    prompt, chosen and rejected are TRL's columns, as lists of messages if the prompt is a chat. The token ids from which they
    were made are included (`data=rows` reads them).

    Args:
        alternatives: "first" = each right response is paired with a different wrong one, while both remain; "all" = every
            right response is paired with every wrong one.
        text: Whether to include columns prompt, chosen and rejected.
    """

    library = "a preference pair"
    columns = (
        ("`problem_id`, `response_id`, `rejected_id`", "string", "the problem, and its two responses"),
        ("`prompt_ids`", "list of int32", "the prompt"),
        ("`chosen_ids`", "list of int32", "a right response, including its end token"),
        ("`rejected_ids`", "list of int32", "a wrong response"),
        ("`prompt`, `chosen`, `rejected`", "list of messages, or string", "the same as texts, without end tokens"),
    )
    use = (
        "python",
        "from datasets import load_dataset\n"
        "from trl import DPOConfig, DPOTrainer\n\n"
        'pairs = load_dataset("<this folder>")["train"]\n'
        'DPOTrainer(model="<the model>", args=DPOConfig(), train_dataset=pairs).train()',
    )
    limits = (
        "DPOTrainer encodes texts and appends the end of a turn. The encoding of a sampled response may differ from the "
        "sampled tokens; the columns of token ids are the sampled tokens.",
        "Responses that were cut off or undecided, and repeated ones, yield no pair.",
    )

    def __init__(self, *, alternatives: Alternatives, text: bool) -> None:
        self.alternatives: Alternatives = alternatives
        self.text = text

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        pairs = [self._pair(*two, source) for two in self._twos(examples)]
        if split == "train" and not pairs:
            verdicts = sorted({example.row.verdict for example in examples})
            raise FormatError(
                f"format: no problem has a right and a wrong response among these rows ({', '.join(verdicts)} only), so there "
                "is no pair; use both with data.responses=all, or more rollouts (cft annotate responses=rollouts "
                "num_samples=...)"
            )
        schema: dict[str, pa.DataType] = dict.fromkeys(("problem_id", "response_id", "rejected_id"), pa.string())
        schema |= {name: _SCHEMA[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        if self.text:
            message = pa.struct([("role", pa.string()), ("content", pa.string())])
            schema |= dict.fromkeys(_TEXTS, pa.list_(message) if isinstance(source.prompt, Chat) else pa.string())
        return pa.Table.from_pylist(pairs, schema=pa.schema(schema))

    def _twos(self, examples: Sequence[Example]) -> Iterator[tuple[Example, Example]]:
        by_problem: dict[str, dict[str, list[Example]]] = {}
        for example in examples:
            if example.row.verdict in ("right", "wrong") and example.row.finish == "stop":
                of_problem = by_problem.setdefault(example.row.problem_id, {"right": [], "wrong": []})
                of_problem[example.row.verdict].append(example)
        for found in by_problem.values():
            join = product if self.alternatives == "all" else zip
            yield from join(found["right"], found["wrong"])

    def _pair(self, chosen: Example, rejected: Example, source: Source) -> dict[str, Any]:
        two = {"chosen": chosen, "rejected": rejected}
        pair: dict[str, Any] = {
            "problem_id": chosen.row.problem_id,
            "response_id": chosen.row.response_id,
            "rejected_id": rejected.row.response_id,
            "prompt_ids": chosen.row.prompt_ids.tolist(),
            **{f"{name}_ids": example.row.response_ids.tolist() for name, example in two.items()},
        }
        if self.text and isinstance(source.prompt, Chat):
            pair["prompt"] = source.turns(chosen)
            pair |= {name: [{"role": "assistant", "content": one.row.response}] for name, one in two.items()}
        elif self.text:
            pair["prompt"] = source.tokenizer.decode(chosen.row.prompt_ids, skip_special_tokens=True)
            pair |= {name: one.row.response for name, one in two.items()}
        return pair
