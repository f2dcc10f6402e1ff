"""What is typed for steps, what Hydra gets, and what a stage is told."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cft.config.step_words import as_typed, of_compare, of_pipeline
from cft.pipelines.entries import Entry, entries_of, shared_with

TYPED = [
    "pipeline=cft",
    "steps.train.optimizer.lr=1e-5,2e-5",
    "+steps.train.trainer.max_steps=5",
    "++steps.train.a.b=1",
    "~steps.train.callbacks.best",
    "~steps.evaluate",
    "steps.train.model@reference.model=smollm2",
    "model=smollm2",
    "model/lora=default",
    "+regularizer@loss.regularizers.k-l=sed",
    "steps.train.optimizer.betas.0=1",
    "steps.train.a$b=1",
    "hydra.run.dir=a/b",
    "allow_targets=[mine.]",
    "isolated=false",
]


def test_words_survive_the_way_to_hydra_and_back() -> None:
    coded = of_pipeline(TYPED)
    assert [as_typed(word) for word in coded] == TYPED
    for word in coded:
        OverridesParser.create().parse_overrides([word])
    ours = [
        word for word in TYPED if word.partition("=")[0] in ("pipeline", "hydra.run.dir", "allow_targets", "isolated")
    ]
    assert [word for word in coded if word in TYPED] == [ours[0], "~steps.evaluate", *ours[1:]]


def test_flags_are_no_overrides() -> None:
    words = ["-m", "--config-dir", "a=b", "--cfg", "job", "seed=1"]
    assert of_pipeline(words) == [*words[:-1], "++shared.seed=1"]


def test_lists_of_a_comparison() -> None:
    assert of_compare(["arms=sft,cft", "rates=1e-5", "seeds=3", "limit=4"]) == [
        *("arms=[sft,cft]", "rates=[1e-5]", "seeds=3", "++shared.limit=4")
    ]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        1e-05,
        "text",
        "a b, c",
        "it's",
        "5",
        "null",
        "1e-3",
        "",
        "a\\'b",
        [1, "x y", None],
        {"a": 1, "b": "c d"},
    ],
    ids=repr,
)
def test_values_come_through_the_grammar_as_they_are(value: Any) -> None:
    override = OverridesParser.create().parse_overrides([Entry("", "key", value).word])[0]
    assert override.value() == value
    assert type(override.value()) is type(value)


def test_nested_yaml_is_spelled_out_and_what_is_typed_wins() -> None:
    node = {"mask": "prefix", "optimizer": {"lr": 1e-4}, "+data.config": {"a": 1}, "optimizer$lr": 2e-4, "x$0y$z": "o"}
    words = [entry.word for entry in entries_of(node)]
    assert words == ["mask=prefix", "optimizer.lr=0.0002", "+data.config={a:1}", "x@y.z=o"]


def test_shared_words_reach_the_stages_that_have_the_key() -> None:
    shared = entries_of(
        {"model": "m", "data": "jsonl", "data.path": "p", "max_new_tokens": 9, "mask": "all", "top_p": 0.5}
    )
    as_told = {stage: [e.word for e in shared_with(stage, shared).values()] for stage in ("annotate", "train", "score")}
    assert as_told["annotate"] == ["model=m", "data=jsonl", "data.path=p", "max_new_tokens=9"]
    assert as_told["train"] == [
        *(
            "model=m",
            "benchmark=jsonl",
            "benchmark.path=p",
            "evaluation.max_new_tokens=9",
            "mask=all",
            "evaluation.top_p=0.5",
        )
    ]
    assert as_told["score"] == ["model=m"]


def test_rows_to_train_on_are_no_benchmark() -> None:
    """`data` that only training knows is that of the training, not of the test."""
    shared = entries_of({"data": "annotated", "data.max_rows": 3})
    assert [entry.word for entry in shared_with("train", shared).values()] == ["data=annotated", "data.max_rows=3"]
    assert shared_with("train", shared, annotated=True) == {}  # rows that an earlier step annotates
    assert shared_with("evaluate", shared) == {}
    assert shared_with("score", shared, annotated=True) == {}
    assert list(shared_with("score", shared)) == ["data", "data.max_rows"]  # rows are scored as they are
