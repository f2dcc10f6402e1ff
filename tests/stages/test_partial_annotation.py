"""Annotations of some positions, of wrong responses and with samples: resumed, completed, refused, exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cft.annotation.annotator import Annotator
from cft.annotation.rows import ROW_SCHEMA, table_hash
from cft.annotation.sampled import COLUMNS
from cft.annotation.store import AnnotationStore
from cft.config.build import build
from cft.models.load import load_tokenizer
from cft.types import Outcome
from tests.entry import SHORT, Ended, run
from tests.stage import composed

pytestmark = pytest.mark.slow  # a dozen commands
PARTLY = ("responses=given", "positions=bisect", "positions.segments=2", "evidence=sampled", "num_samples=1")


def annotate(name: str, *arguments: str) -> Ended:
    return run(
        "annotate", *SHORT, "limit=5", f"annotation={name}", "annotations_dir=made", "verify.workers=1", *arguments
    )


def store(name: str) -> AnnotationStore:
    return AnnotationStore(Path("made") / name)


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("partial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = annotate("whole", *PARTLY)
        assert ended.status == 0, ended.text
        assert "positions tried" in ended.text
        assert "5 given responses of" in ended.text  # what it will cost, before the start
        assert "mask.untried=leave_out" in ended.text
        yield folder


def test_every_file_has_the_columns_that_the_configuration_makes() -> None:
    for path in (store("whole").folder / "rows").glob("*.parquet"):
        assert pq.read_schema(path).names == [*ROW_SCHEMA.names, "prefix_outcome", *COLUMNS]
    made = store("whole").manifest()["fingerprint"]
    assert made["positions"] == {"name": "bisect", "segments": 2}
    assert made["evidence"]["num_samples"] == 1


def test_without_any_position_no_fraction_is_printed() -> None:
    ended = annotate("untried", "responses=given", "positions=stride", "positions.every=1000", "positions.first=999")
    assert "0 of them (0.0%); the others remain untried" in ended.text
    assert "nan" not in ended.text


def test_interrupted_resumed_and_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, units = Annotator.fresh, []

    def once(annotator: Annotator, problems: object) -> object:
        units.append(problems)
        if len(units) == 2:
            raise KeyboardInterrupt
        return fresh(annotator, problems)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Annotator, "fresh", once)
        assert annotate("resumed", *PARTLY).status == 130
    ended = annotate("resumed", *PARTLY)
    assert "1 of 2 units are already done" in ended.text
    assert table_hash(store("resumed").rows()) == table_hash(store("whole").rows())
    assert not all(row.tried_R.all() for row in store("resumed").rows())

    before = store("resumed").rows()
    assert annotate("resumed", *PARTLY, "complete=true").status == 0
    for was, now in zip(before, store("resumed").rows(), strict=True):
        assert (now.alt_outcome != Outcome.UNTRIED).all()
        assert (now.sampled == 1).all()
        tried = was.alt_outcome != Outcome.UNTRIED
        np.testing.assert_array_equal(now.alt_outcome[tried], was.alt_outcome[tried])
        np.testing.assert_array_equal(now.sampled_right[was.sampled > 0], was.sampled_right[was.sampled > 0])
    made = table_hash(store("resumed").rows())
    for arguments in ((), ("complete=true",)):  # nothing is left to do, and nothing is undone
        assert annotate("resumed", *PARTLY, *arguments).status == 0
        assert table_hash(store("resumed").rows()) == made


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("positions.segments=3", "positions.segments: stored 2, now 3"),
        ("positions=all", "positions.name: stored 'bisect', now None"),
        ("num_samples=2", "evidence.num_samples: stored 1, now 2"),
    ],
)
def test_other_positions_or_samples_are_another_annotation(change: str, named: str) -> None:
    ended = annotate(
        "whole", *(word for word in PARTLY if change != "positions=all" or "positions" not in word), change
    )
    assert ended.status == 2
    assert named in ended.text
    assert "another name (annotation=...)" in ended.text


def export(name: str, *arguments: str) -> Ended:
    rows = (f"annotation={name}", "annotations_dir=made", f"out=export-{name}", "data.validation_fraction=0")
    return run("export", *rows, *arguments)


def test_a_mask_over_what_was_not_tried_is_a_choice() -> None:
    refused = export("whole")
    assert refused.status == 2
    assert "positions were not tried" in refused.text
    assert "mask.untried=leave_out" in refused.text
    assert export("whole", "mask.untried=leave_out", "mask.num_alternatives=1").status == 0
    assert "the annotation has no evidence" in Path("export-whole/README.md").read_text()


def test_wrong_responses_are_not_imitated_by_accident() -> None:
    ended = annotate("wrong", "responses=wrong", "positions=stride", "limit=-1", "data.max_steps=4", "data.min_steps=4")
    assert "cft train refuses to imitate them" in ended.text, ended.text
    assert {row.verdict for row in store("wrong").rows()} == {"wrong"}
    assert store("wrong").manifest()["fingerprint"]["decoding"]["responses"] == "wrong"
    card = (store("wrong").folder / "README.md").read_text()
    assert "Wrong responses" in card
    assert "| turning tokens |" in card
    for mask in ("mask=all", "mask=turning"):
        refused = export("wrong", mask)
        assert refused.status == 2
        assert "responses end wrong" in refused.text
        assert "data.responses=wrong" in refused.text
    assert export("wrong", "mask=turning", "mask.untried=leave_out", "data.responses=wrong").status == 0
    meaningless = export("wrong", "mask=critical", "data.responses=wrong")
    assert "expected mask=turning" in meaningless.text


def test_conversations_of_your_own_are_annotated_at_their_last_turn() -> None:
    """A chat of two sums, and one sum as prompt and completion; the gold answers are those that the responses give."""
    problems = build(composed("annotate", *SHORT).data).train[:3]
    chat = [
        {"role": role, "content": text}
        for problem in problems[:2]
        for role, text in (("user", problem.question), ("assistant", problem.solution))
    ]
    rows = [{"messages": chat}, {"prompt": problems[2].question, "completion": problems[2].solution}]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("data=rows", "data.path=chats.jsonl", "annotations_dir=made", "annotation=chats", "verify.workers=1")
    ended = run("annotate", *common, "responses=given", "positions=stride")
    assert ended.status == 0, ended.text
    found = sorted(store("chats").rows(), key=lambda row: len(row.prompt_ids))
    assert [row.answer for row in found] == [problems[2].answer, problems[1].answer]
    assert [row.response for row in found] == [problems[2].solution, problems[1].solution]
    text = load_tokenizer(build(composed("annotate").model)).decode(found[1].prompt_ids)
    assert all(part in text for part in (problems[0].question, problems[0].solution, problems[1].question))
    assert run("annotate", *common, "responses=given_wrong").status == 2  # without gold answers none is wrong
