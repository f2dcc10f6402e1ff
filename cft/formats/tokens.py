"""Formats with token ids: nothing is tokenized again, so the loss is on exactly the tokens that the mask selected."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cft.data.row_contents import IGNORED
from cft.formats.base import Example, Format, Source, column

_IDS = ("`input_ids`", "list of int32", "prompt, with the chat template applied, and response, including the end token")
_LABELS = ("`labels`", "list of int32", f"the id if a token carries loss, else {IGNORED}; not shifted")
_TRL = (
    "from datasets import load_dataset\n"
    "from trl import SFTConfig, SFTTrainer\n\n"
    'data = load_dataset("<this folder>")\n'
    'SFTTrainer(model="<the model>", args=SFTConfig(max_length=None), train_dataset=data["train"]).train()'
)


class Labels(Format):
    """input_ids, labels, completion_mask, and weights if any is not 0 or 1, for any trainer that accepts token ids.

    `cft train data=rows` reads these rows and trains with the same loss.
    """

    library = "a trainer that reads only labels"
    weighted = True
    columns = (
        ("`response_id`", "string", "in the annotation"),
        _IDS,
        _LABELS,
        ("`completion_mask`", "list of int8", "1 for the tokens of the response, with or without loss"),
        ("`weights`", "list of float32", "weight of each token's loss; only if any is neither 0 nor 1"),
    )
    use = ("python", _TRL)
    limits = ("A trainer that does not read `weights` weights all labels equally.",)

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        del source, split
        columns: dict[str, Any] = {
            "response_id": pa.array([example.row.response_id for example in examples], pa.string()),
            **_labelled(examples),
            "completion_mask": column([_completed(example) for example in examples], pa.int8()),
        }
        if any(example.is_weighted for example in examples):
            columns["weights"] = column([example.weight for example in examples], pa.float32())
        return pa.table(columns)


class TRL(Format):
    """Tokenized rows for TRL's SFTTrainer, which uses `labels` unchanged (TRL 1.16)."""

    library = "TRL's SFTTrainer"
    columns = (("`response_id`", "string", "in the annotation"), _IDS, _LABELS)
    use = ("python", _TRL)
    limits = (
        "SFTTrainer divides the sum of the loss by the number of labels in a step, as `loss.normalizer=critical` does. Its "
        "`max_length` truncates rows to 1,024 tokens unless it is set.",
    )

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        del source, split
        ids = pa.array([example.row.response_id for example in examples], pa.string())
        return pa.table({"response_id": ids, **_labelled(examples)})


class Axolotl(Format):
    """A custom pre-tokenized data set for Axolotl: exactly input_ids, attention_mask and labels, with an empty `type:`."""

    library = "Axolotl"
    suffix = "jsonl"
    columns = (_IDS, ("`attention_mask`", "list of int8", "1: nothing is padded"), _LABELS)
    use = (
        "yaml",
        "datasets:\n  - path: <this folder>/data/train-00000-of-00001.jsonl\n    ds_type: json\n    type:\n"
        "sequence_len: <the longest row>",
    )
    limits = ("Axolotl requires exactly these three columns, so the ids of the responses are omitted.",)

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        del source, split
        return pa.table(_labelled(examples, attended=True))


class LlamaFactory(Format):
    """A tokenized data set for LLaMA-Factory (`tokenized_path`), which keeps the mask, unlike its chat formats."""

    library = "LLaMA-Factory"
    suffix = "disk"
    columns = (_IDS, ("`attention_mask`", "list of int8", "1: nothing is padded"), _LABELS)
    use = (
        "yaml",
        "stage: sft\ntokenized_path: <this folder>/tokenized\nmodel_name_or_path: <the model>\ntemplate: <the model's>",
    )
    limits = ("A tokenized data set replaces `dataset`, `cutoff_len` and the template: rows are used unchanged.",)

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        del source, split
        return pa.table(_labelled(examples, attended=True))

    def beside(self, splits: Sequence[str], source: Source) -> dict[str, str]:
        """The file that combines the folders to a DatasetDict."""
        del source
        return {"tokenized/dataset_dict.json": json.dumps({"splits": list(splits)})}


class Tinker(Format):
    """`tinker.Datum`s for the loss `cross_entropy`: the only trainer here with a weight per token.

    Inputs and targets are shifted by one token, as Tinker expects, so the first token is never a target.
    """

    library = "Tinker"
    suffix = "jsonl"
    weighted = True
    columns = (
        ("`model_input`", "ModelInput", "one chunk of encoded text: all tokens but the last"),
        ("`loss_fn_inputs.target_tokens`", "int64", "all tokens but the first"),
        ("`loss_fn_inputs.weights`", "float32", "weight of each target's loss"),
    )
    use = (
        "python",
        "import json, tinker\n"
        "from tinker.types import Datum, ModelInput, TensorData\n\n"
        "def datum(row):\n"
        "    tokens = [t for chunk in row['model_input']['chunks'] for t in chunk['tokens']]\n"
        "    inputs = {name: TensorData(**values) for name, values in row['loss_fn_inputs'].items()}\n"
        "    return Datum(model_input=ModelInput.from_ints(tokens), loss_fn_inputs=inputs)\n\n"
        "data = [datum(json.loads(line)) for line in open('<this folder>/data/train-00000-of-00001.jsonl')]\n"
        "training_client.forward_backward(data, 'cross_entropy')",
    )
    limits = (
        "Tinker's cross_entropy is a weighted sum: divide the weights by their total over a batch for a mean over tokens.",
    )

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        del source, split
        return pa.Table.from_pylist([_datum(example) for example in examples])


def _completed(example: Example) -> np.ndarray:
    return (np.arange(len(example.ids)) >= example.prompt_len).astype(np.int8)


def _labelled(examples: Sequence[Example], *, attended: bool = False) -> dict[str, pa.Array]:
    ones = {"attention_mask": column([np.ones(len(e.ids), dtype=np.int8) for e in examples], pa.int8())}
    return {
        "input_ids": column([example.ids for example in examples], pa.int32()),
        **(ones if attended else {}),
        "labels": column([example.labels for example in examples], pa.int32()),
    }


def _datum(example: Example) -> dict[str, Any]:
    ids, weight = example.ids, example.weight
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": ids[:-1].tolist()}]},
        "loss_fn_inputs": {
            "target_tokens": _tensor(ids[1:].tolist(), "int64"),
            "weights": _tensor(weight[1:].tolist(), "float32"),
        },
    }


def _tensor(data: list[Any], dtype: str) -> dict[str, Any]:
    return {"data": data, "dtype": dtype, "shape": [len(data)]}
