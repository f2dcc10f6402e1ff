"""Bad input through the real entry points: a clear message and exit status 2, or skipped, counted and exit status 0."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from cft.annotation.store import AnnotationStore
from tests.entry import FIT_ONLY, SHORT, Ended, run

GOOD = [{"id": str(n), "question": f"{n} + 2 =", "answer": str(n + 2)} for n in range(1, 7)]
ALL_TRAIN = ("data.validation_fraction=0", "data.test_fraction=0", "data.id_field=id")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def annotate_lines(lines: Sequence[str | bytes], *arguments: str) -> Ended:
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    Path("problems.jsonl").write_bytes(b"".join(line + b"\n" for line in raw))
    return run(
        "annotate", "data=jsonl", "data.path=problems.jsonl", *ALL_TRAIN, "annotation=a", "unit_size=4", *arguments
    )


def annotate_rows(rows: Sequence[dict[str, object]], *arguments: str) -> Ended:
    return annotate_lines([json.dumps(row) for row in rows], *arguments)


def refused(ended: Ended, *parts: str) -> None:
    """Status 2, the message alone on stderr, and every part in it."""
    assert ended.status == 2, ended.text
    assert "Traceback" not in ended.text
    message = " ".join(ended.err.split())
    for part in parts:
        assert part in message, message


def statuses() -> dict[str, str]:
    return {record.problem_id: record.status for record in AnnotationStore("outputs/annotations/a").problems()}


# ---- problems


def test_an_empty_file() -> None:
    refused(annotate_lines([]), "problems.jsonl holds no rows; expected one JSON object per line")


BAD_LINES: list[tuple[str | bytes, str]] = [
    ('{"id": "9", "question": "1 + 1 ="', "malformed JSON"),
    ('{"id": "9", "question": "1 + 1 ="}', "missing field: answer"),
    ('{"id": "1", "question": "1 + 1 =", "answer": "2"}', "duplicate id: 1"),
    ('{"id": "9", "question": 5, "answer": "2"}', "wrong type: question is number, expected text"),
    (b'{"id": "9", "question": "\xff", "answer": "2"}', "not UTF-8"),
    ('{"id": "9", "question": "\\ud83d", "answer": "2"}', "lone surrogate: question"),
]


def test_bad_lines_over_the_budget_are_named_by_their_places() -> None:
    """The first five."""
    lines = [*(json.dumps(row) for row in GOOD), *(line for line, _ in BAD_LINES[:5])]
    places = [f"problems.jsonl:{7 + i}: {reason}" for i, (_, reason) in enumerate(BAD_LINES[:5])]
    refused(annotate_lines(lines), "5 of 11 rows cannot be used", *places, "max_bad_rows")
    assert not Path("outputs/annotations").exists()


@pytest.mark.parametrize(
    "line, reason", [*(pytest.param(*case, marks=pytest.mark.slow) for case in BAD_LINES[:5]), BAD_LINES[5]]
)
def test_a_bad_line_over_the_budget_is_named_by_its_place(line: str | bytes, reason: str) -> None:
    lines = [*(json.dumps(row) for row in GOOD), line]
    refused(annotate_lines(lines), "1 of 7 rows cannot be used", f"problems.jsonl:7: {reason}", "max_bad_rows")
    assert not Path("outputs/annotations").exists()


def test_the_first_five_offenders_are_named() -> None:
    ended = annotate_rows([{"id": str(n)} for n in range(9)])
    refused(ended, "9 of 9 rows", "First: problems.jsonl:1, ", "problems.jsonl:5: missing field: question")
    assert "problems.jsonl:6" not in ended.err


def test_bad_lines_within_the_budget_are_skipped_and_counted() -> None:
    with pytest.warns(UserWarning, match=r"1 of 7 rows cannot be used.*problems.jsonl:7: malformed JSON"):
        ended = annotate_lines([*(json.dumps(row) for row in GOOD), "{"], "data.max_bad_rows=0.2")
    assert ended.status == 0, ended.text
    assert "Problems dropped: 1 (malformed JSON)" in ended.text
    assert len(statuses()) == 6


def test_awkward_problems_are_solved_or_skipped_and_counted(recwarn: pytest.WarningsRecorder) -> None:
    rows = [
        *GOOD[:2],
        {"id": "long", "question": "1 + " * 5000 + "1 =", "answer": "5001"},
        {"id": "emoji", "question": "\N{GRINNING FACE} + 1 =", "answer": "2"},
        {"id": "nul", "question": "1 \0+ 1 =", "answer": "2"},
        {"id": "rtl", "question": "שלום \u202e 1 + 1 =", "answer": "2"},
        {"id": "\0/../\N{GRINNING FACE}", "question": "2 + 1 =", "answer": "\0"},
    ]
    ended = annotate_rows(rows)
    assert ended.status == 0, ended.text
    assert "Traceback" not in ended.text
    found = statuses()
    assert set(found) == {str(row["id"]) for row in rows}
    assert found["long"] == "prompt too long"
    assert re.search(r"prompt too long │ 1 \(14%\)", ended.text)
    assert not [warning for warning in recwarn if "longer than the specified maximum" in str(warning.message)]


@pytest.mark.slow
def test_problems_of_which_none_is_solved_end_well_with_advice() -> None:
    ended = annotate_rows([{**row, "answer": "-77"} for row in GOOD])
    assert ended.status == 0, ended.text
    assert set(statuses().values()) <= {"wrong", "cut off"}
    assert "No response was both finished and right" in ended.text
    assert "responses=given" in ended.text
    refused(run("train", "data.annotation=a", *FIT_ONLY), "nothing to train on", "Annotate more problems")


@pytest.mark.slow
def test_problems_of_which_none_is_solved_have_nothing_to_complete() -> None:
    rows = [{**row, "answer": "-77"} for row in GOOD]
    for more in ((), ("complete=true",)):
        assert annotate_rows(rows, *more).status == 0


@pytest.mark.slow
def test_responses_that_are_all_cut_off_end_well_with_advice() -> None:
    ended = run("annotate", *SHORT, "annotation=a", "max_new_tokens=2")
    assert ended.status == 0, ended.text
    assert set(statuses().values()) == {"cut off"}
    assert "6 were cut off: raise max_new_tokens=2." in ended.text
    assert AnnotationStore("outputs/annotations/a").rows() == []


def test_a_split_without_problems() -> None:
    refused(annotate_rows(GOOD, "split=test"), "data jsonl has no test problems (found train 6")


# ---- annotations


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotations")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = run("annotate", *SHORT, "annotation=a", f"annotations_dir={folder}")
    assert ended.status == 0, ended.text
    return folder


def test_an_annotation_that_is_not_there(made: Path) -> None:
    ended = run("train", "data.annotation=b", f"annotations_dir={made}")
    refused(ended, f"no manifest.json in {made}/b", "Known annotations: a", "cft annotate annotation=b")
    refused(run("train", f"data.annotation={made}/c"), f"no manifest.json in {made}/c")


@pytest.mark.slow
def test_a_model_with_another_tokenizer(made: Path, tiny_folder: Path) -> None:
    ended = run(
        "train",
        "data.annotation=a",
        f"annotations_dir={made}",
        *FIT_ONLY,
        "model=hub",
        "model.name=other",
        f"model.path='{tiny_folder}'",
    )
    refused(ended, f"{made}/a: annotated with tokenizer", "(tiny_arith)", "cft annotate model=<this model>")


def test_another_prompt_than_the_annotation_s(made: Path) -> None:
    ended = run("train", "data.annotation=a", f"annotations_dir={made}", "prompt=plain", *FIT_ONLY)
    refused(
        ended, "the prompt (kind was 'chat' and is 'plain'", f"differs between {made}/a and this run", "set prompt=..."
    )


@pytest.mark.slow
def test_an_unfinished_annotation_is_trained_on_with_a_note(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "a", tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    (tmp_path / "b" / "manifest.json").write_text(json.dumps({**manifest, "finished": False}))
    for annotation, noted in ((made / "a", False), (tmp_path / "b", True)):
        ended = run("train", f"data.annotation={annotation}", *FIT_ONLY, "trainer.max_epochs=1")
        assert ended.status == 0, ended.text
        assert ("is unfinished" in ended.text) == noted


def test_complete_without_an_annotation_to_complete() -> None:
    refused(run("annotate", *SHORT, "annotation=b", "complete=true"), "holds none; first annotate without it")
    assert not Path("outputs/annotations/b").exists()


def test_a_name_that_leaves_the_folder() -> None:
    refused(run("annotate", *SHORT, "annotation=../b"), "annotation", "folder name")
    assert not list(Path().rglob("manifest.json"))


def test_no_validation_row_to_choose_the_epoch_by(made: Path) -> None:
    ended = run("train", "data.annotation=a", f"annotations_dir={made}", *FIT_ONLY, "data.validation_fraction=1e-9")
    refused(ended, "callbacks.best.monitor=val/loss", "0 validation rows", "raise data.validation_fraction")


@pytest.mark.parametrize(
    "override, message",
    [
        ("verifier=regex verifier.pattern='(1'", "verifier.pattern: '(1' is no regular expression"),
        pytest.param("num_alternatives=1000", "num_alternatives=1000: only", marks=pytest.mark.slow),
    ],
)
def test_values_that_only_show_once_they_are_used(override: str, message: str) -> None:
    refused(run("annotate", *SHORT, "annotation=b", *override.split(" ")), message)


# ---- checkpoints


@pytest.mark.slow
def test_a_checkpoint_that_is_not_there() -> None:
    refused(run("evaluate", "checkpoint=nothing"), "checkpoint=nothing: neither a run folder", "resume=")


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(run("evaluate", "checkpoint=empty"), "checkpoint=empty: neither a run folder", "resume=")


@pytest.mark.slow
def test_a_bad_job_of_a_sweep_leaves_the_others_alone(made: Path) -> None:
    ended = run("train", "data.annotation=a,b", f"annotations_dir={made}", *FIT_ONLY, "trainer.max_epochs=1", "-m")
    assert ended.status == 1
    assert "Traceback" not in ended.text
    assert "job 1 (data.annotation=b" in ended.err
    (results,) = Path().glob("outputs/multirun/*/*/results.json")
    assert results.parent.name == "0"


def test_the_program_s_own_mistakes_keep_their_traceback(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("cft.models.lazy.load_causal_lm", broken)
    ended = run("train", "data.annotation=a", f"annotations_dir={made}", *FIT_ONLY)
    assert ended.status == 1
    assert "in broken" in ended.err
