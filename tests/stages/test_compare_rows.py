"""cft compare on rows of one's own, in each shape, from one command to its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cft.console import console
from cft.data.rows_as_problems import row_problems
from tests.entry import run
from tests.given_rows import rows, write
from tests.stage import composed

SMALL = ("seeds=1", "rates=1e-4", "steps.train.trainer.max_epochs=2", "num_samples=2", "isolated=false")
BENCHMARK = ("benchmark.num_train=8", "benchmark.num_validation=8", "benchmark.num_test=16")
NO_EVIDENCE, EVIDENCE = ("sft", "cft_numeric"), ("sft", "cft", "random")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "arms"),
    [
        *(("text", NO_EVIDENCE), ("messages", NO_EVIDENCE), ("tokens", NO_EVIDENCE), ("spans", NO_EVIDENCE)),
        *(("text", EVIDENCE), ("messages", EVIDENCE)),
    ],
)
def test_rows_of_each_shape_end_in_a_table(
    shape: str, arms: tuple[str, ...], tmp_path: Path, tiny_arith_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("rows.jsonl"), rows(shape, tokenizer=AutoTokenizer.from_pretrained(tiny_arith_path)))
    data = ("data=rows", "data.path=rows.jsonl", "data.answer_field=answer")
    ended = run("compare", *data, f"arms={','.join(arms)}", *SMALL, *BENCHMARK, "hydra.run.dir=out")
    assert ended.status == 0, ended.text
    assert (Path("out") / "steps" / "annotate.json").is_file() == (arms == EVIDENCE)
    for arm in arms:
        data_of = json.loads(Path(f"out/{arm}-seed0/results.json").read_text())["data"]
        assert data_of["train_rows"] == 40, arm
        assert ("annotation" in data_of) == (arms == EVIDENCE)
    table = Path("out/report/comparison.md").read_text(encoding="utf-8")
    assert table.count("\n") > len(arms)


def test_weights_of_messages_are_not_left_out_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = rows("messages", tokenizer=None, count=6)
    brought[1]["messages"][-1]["weight"] = 0
    path = write(tmp_path / "rows.jsonl", brought)
    keys: dict[str, Any] = dict(
        composed("annotate", "data=rows", f"data.path={path}", "responses=given", "data.max_bad_rows=0.5").data.node
    )
    said: list[str] = []
    monkeypatch.setattr(console, "print", lambda text, **options: said.append(text))
    with pytest.warns(UserWarning, match=r"1 of 6 rows .*rows.jsonl:2: no loss: the last assistant turn"):
        splits = row_problems(keys)
    assert len(splits.train) == 5
    assert [text for text in said if text.startswith("Note: 5 rows have weights of messages")]
    assert {problem.place for problem in splits.train} == {f"rows.jsonl:{number}" for number in (1, 3, 4, 5, 6)}
