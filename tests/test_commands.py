"""Printed commands run as they stand."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cft.commands import _carried, command
from cft.quoting import setting
from tests.entry import FIT_ONLY, SHORT, run
from tests.stage import CONF

DEFAULTS = {"model": "tiny_arith", "prompt": "chat", "verifier": "benchmark", "data": "arithmetic"}


@pytest.mark.parametrize(
    ("overrides", "choices", "expected"),
    [
        ([], {}, []),
        (["max_new_tokens=200"], {}, ["evaluation.max_new_tokens=200"]),
        (["limit=8", "unit_size=4", "engine=reference"], {}, []),
        (["data.max_steps=3", "+data.extra=1"], {}, ["benchmark.max_steps=3", "+benchmark.extra=1"]),
        (["data=jsonl", "data.path=a"], {"data": "jsonl"}, ["benchmark=jsonl", "benchmark.path=a"]),
        (["data.dir=x"], {}, ["data.dir=x"]),
        (
            ["verifier.other.fallback_last_number=false"],
            {},
            ["verifier.other.fallback_last_number=false"],
        ),
        (["verifier=math", "verifier.lists=set"], {"verifier": "math"}, ["verifier=math", "verifier.lists=set"]),
        (["allow_targets=[mine]", "model.dtype=float32"], {}, ["allow_targets=[mine]", "model.dtype=float32"]),
        (["prompt.system='a, b=c'"], {}, ["prompt.system='a, b=c'"]),
    ],
)
def test_what_decides_an_annotation_is_carried_over(
    overrides: list[str], choices: dict[str, str], expected: list[str]
) -> None:
    assert _carried(overrides, choices={**DEFAULTS, **choices}) == expected


def test_the_form_that_was_used_to_start_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["somewhere/train.py"])
    assert command("train", ["a=1"]) == "cft train a=1"
    assert command("score", ["a=b c"]) == "cft score 'a=b c'"
    for started in ("somewhere/bin/cft", "cft annotate"):
        monkeypatch.setattr(sys, "argv", [started])
        assert command("train", ["a=1"]) == "cft train a=1"


def test_any_value_comes_back_from_hydras_grammar() -> None:
    values = ["plain/path-1.0", "a b=c é", "it's", "back\\slash", "back\\", "\\'", "[x, y]", "{seed}x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = compose("train", [setting(f"+extra.value{i}", value) for i, value in enumerate(values)]).extra
    assert list(given.values()) == values


@pytest.mark.slow
def test_the_printed_train_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my conf" / "verifier").mkdir(parents=True)
    (tmp_path / "my conf" / "verifier" / "strict.yaml").write_text(
        "_target_: cft.verifiers.Numeric\nfallback_last_number: false\n"
    )
    ended = run(
        "annotate", "--config-dir", "my conf", *SHORT, "verifier=strict", "verifier.fallback_last_number=true",
        "max_new_tokens=100", "annotation=own", "annotations_dir='a b=c'", "allow_targets=[tests.]", "seed=1",
    )  # fmt: skip
    assert ended.status == 0, ended.text
    printed = ended.out.partition("Train on it: ")[2].splitlines()[0]
    words = shlex.split(printed)
    assert words[:2] == ["cft", "train"]
    for kept in (
        "verifier=strict",
        "verifier.fallback_last_number=true",
        "evaluation.max_new_tokens=100",
        "--config-dir",
    ):
        assert kept in words
    trained = run("train", *words[2:], *FIT_ONLY, "trainer.max_epochs=1", "hydra.run.dir=run")
    assert trained.status == 0, trained.text
    assert "judged by" not in trained.text  # the annotation's verifier
