"""Formats of problems with answers, for reinforcement learning: they contain the annotation's problems, not its masks."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from cft.formats.base import Example, Format, Source


class Verl(Format):
    """verl's Parquet of prompts and ground truths, one row per problem with a response in the annotation.

    Args:
        data_source: Key by which verl selects its reward function, such as openai/gsm8k; "" = the annotation's source, for
            which verl needs a custom function.
        ability: Kind of task, which verl only records.
    """

    library = "verl"
    weighted = True  # weights are ignored, which `limits` states
    columns = (
        ("`data_source`", "string", "key by which verl selects the reward function"),
        ("`prompt`", "list of {role, content}", "verl applies the chat template"),
        ("`ability`", "string", "kind of task"),
        ("`reward_model`", "{style, ground_truth}", "rule, and the gold answer"),
        ("`extra_info`", "{split, index, problem_id, question, answer}", "passed to the reward function"),
    )
    use = (
        "bash",
        "python -m verl.trainer.main_ppo data.train_files=<this folder>/data/train-00000-of-00001.parquet "
        "custom_reward_function.path=<your file>",
    )
    limits = (
        "verl trains on its own rollouts: masks, weights and responses are omitted. The annotation's rows contain only "
        "problems that the annotated model solved, so these are the easier ones.",
    )

    def __init__(self, *, data_source: str, ability: str) -> None:
        self.data_source = data_source
        self.ability = ability

    def table(self, examples: Sequence[Example], source: Source, *, split: str) -> pa.Table:
        first = {example.row.problem_id: example for example in reversed(examples)}  # the first response of a problem
        chosen = [first[name] for name in dict.fromkeys(example.row.problem_id for example in examples)]
        return pa.Table.from_pylist(
            [
                {
                    "data_source": self.data_source or source.manifest["fingerprint"]["data"]["source"],
                    "prompt": source.turns(example),
                    "ability": self.ability,
                    "reward_model": {"style": "rule", "ground_truth": example.row.answer},
                    "extra_info": {
                        "split": split,
                        "index": index,
                        "problem_id": example.row.problem_id,
                        "question": example.row.problem,
                        "answer": example.row.answer,
                    },
                }
                for index, example in enumerate(chosen)
            ]
        )
