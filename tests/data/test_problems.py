"""Sources of problems: what is read, what is put aside, which problem lands in which split."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cft.data import sources as problems
from cft.data import word_problems as generator
from cft.data.hub_rows import hub_rows
from cft.data.problem_rows import normalized
from cft.data.sources import ProblemError, Splits
from cft.errors import BadValue

SPLITS = ("train", "validation", "test")
NO_SURROGATES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
VISIBLE = NO_SURROGATES.filter(lambda text: text.strip() != "")


def write_lines(path: Path, *lines: Any) -> Path:
    """Objects as JSON, texts and bytes as they are, one a line."""
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(raw) + (b"\n" if raw else b""))
    return path


def gsm8k_rows(count: int, *, start: int = 0) -> list[dict[str, str]]:
    """Invented rows in the fields of GSM8K."""
    return [
        {
            "question": f"Ida has {i} crates of 7 plums and eats 2. How many plums are left?",
            "answer": f"{i} crates hold <<{i}*7={i * 7}>>{i * 7} plums.\nSo {i * 7 - 2} are left.\n#### {i * 7 - 2:,}",
        }
        for i in range(start, start + count)
    ]


def read_jsonl(path: Path | str, **changes: Any) -> Splits:
    arguments: dict[str, Any] = {
        "name": "mine",
        "test_path": "",
        "id_field": "id",
        "question_field": "question",
        "answer_field": "answer",
        "solution_field": "",
        "max_bad_rows": 0.0,
        "validation_fraction": 0.2,
        "test_fraction": 0.3,
        "seed": 0,
    }
    return problems.jsonl(path=str(path), **(arguments | changes))


def read_gsm8k(folder: Path, **changes: Any) -> Splits:
    arguments: dict[str, Any] = {
        "name": "gsm8k",
        "dir": str(folder),
        "hub_id": "owner/none",
        "revision": "",
        "validation_fraction": 0.2,
        "seed": 0,
    }
    return problems.gsm8k(**(arguments | changes))


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(count)]


def everything(splits: Splits) -> dict[str, tuple[str, str, str]]:
    return {p.id: (p.question, p.answer, p.solution) for split in SPLITS for p in getattr(splits, split)}


# Arithmetic


def made(**changes: int) -> Splits:
    return problems.arithmetic(
        **({"name": "a", "seed": 0, "num_train": 300, "num_validation": 40, "num_test": 60} | changes)
    )


def answer_by_reading(question: str) -> int:
    """The answer found from the words of the question alone."""
    value = 0
    for sentence in re.findall(r"[^.?]+[.?]", question):
        number = re.search(r"\d+", sentence)
        if number is None:
            continue
        n = int(number[0])
        if "times" in sentence:
            value *= n
        elif re.search(r"loses|gives away|sells|takes", sentence):
            value -= n
        elif re.search(r"more|another", sentence):
            value += n
        else:
            value = n
    return value


def test_arithmetic_answers_and_every_step_of_the_solutions_are_right() -> None:
    for question, answer, solution in everything(made()).values():
        assert int(answer) == answer_by_reading(question)
        steps, _, last = solution.partition("\n#### ")
        assert last == answer
        equations = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", steps)
        assert 2 <= len(equations) <= 4
        for left, operator, right, result in equations:
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[
                operator
            ] == int(result)
        assert equations[-1][3] == answer


def test_arithmetic_has_the_numbers_asked_for_and_no_question_twice() -> None:
    splits = made()
    assert [len(splits.of(split)) for split in SPLITS] == [300, 40, 60]
    questions = [normalized(question) for question, _, _ in everything(splits).values()]
    assert len(set(questions)) == len(questions) == 400
    assert splits.dropped == {}


def test_arithmetic_test_chains_are_never_trained_on_whatever_the_seed_or_size() -> None:
    chains = {split: set[str]() for split in SPLITS}
    for seed in range(4):
        for split in SPLITS:
            chains[split] |= {str(chain) for chain, _ in islice(generator.problems(seed=seed, split=split), 200)}
    assert not chains["train"] & (chains["test"] | chains["validation"])
    assert not chains["test"] & chains["validation"]


def test_arithmetic_is_reproducible_and_grows_without_changing() -> None:
    assert made() == made()
    assert made().fingerprint != made(seed=1).fingerprint
    assert set(made().of("test")) <= set(made(num_test=100).of("test"))


def test_arithmetic_refuses_what_it_cannot_make() -> None:
    with pytest.raises(ProblemError, match="min_steps=3"):
        made(min_steps=3, max_steps=2)
    with pytest.raises(BadValue, match=r"arithmetic\.num_test: expected an integer of at least 0, found -1"):
        made(num_test=-1)


# Splits


def test_unknown_and_empty_splits_are_named() -> None:
    splits = made(num_validation=0)
    with pytest.raises(ProblemError, match="unknown split 'dev' of data a; expected one of train, validation, test"):
        splits.of("dev")
    with pytest.raises(ProblemError, match=r"no validation problems .*train 300, validation 0, test 60"):
        splits.of("validation")


def test_splits_depend_on_ids_alone(tmp_path: Path) -> None:
    forward = read_jsonl(write_lines(tmp_path / "a.jsonl", *rows(200)))
    backward = read_jsonl(write_lines(tmp_path / "b.jsonl", *reversed(rows(200))))
    assert forward == backward
    longer = read_jsonl(write_lines(tmp_path / "c.jsonl", *rows(300)))
    for split in SPLITS:
        assert set(forward.of(split)) <= set(longer.of(split))
    assert read_jsonl(tmp_path / "a.jsonl", seed=1).test != forward.test


def test_split_sizes_follow_the_fractions_and_together_hold_all(tmp_path: Path) -> None:
    splits = read_jsonl(write_lines(tmp_path / "a.jsonl", *rows(2000)))
    sizes = [len(splits.of(split)) for split in SPLITS]
    assert sum(sizes) == 2000
    # four standard deviations of a binomial share
    assert abs(sizes[1] - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5
    assert abs(sizes[2] - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert len(everything(splits)) == 2000


def test_changing_one_fraction_moves_no_problem_between_validation_and_test(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *rows(400))
    assert read_jsonl(path, validation_fraction=0.5).test == read_jsonl(path).test
    assert read_jsonl(path, test_fraction=0.1).validation == read_jsonl(path).validation


@pytest.mark.parametrize("validation, test", [(-0.1, 0.1), (0.1, 1.1), (0.6, 0.6), (float("nan"), 0.1)])
def test_impossible_fractions_are_refused(tmp_path: Path, validation: float, test: float) -> None:
    path = write_lines(tmp_path / "a.jsonl", *rows(3))
    with pytest.raises((ProblemError, BadValue), match="fraction"):
        read_jsonl(path, validation_fraction=validation, test_fraction=test)


def test_training_problems_that_stand_in_the_test_set_are_dropped_and_counted(tmp_path: Path) -> None:
    test = [{"id": "t0", "question": "Don’t  count\tWHAT is 3 + 1?", "answer": "4"}]
    twin = {"id": "x", "question": "don't count what is 3 + 1?", "answer": "4"}
    other = {"id": "y", "question": "don't count what is 3 - 1?", "answer": "2"}
    train = write_lines(tmp_path / "train.jsonl", *rows(50), twin, other)
    splits = read_jsonl(train, test_path=str(write_lines(tmp_path / "test.jsonl", *test)), validation_fraction=0.0)
    assert splits.dropped == {"train problem also in test": 1}
    assert "x" not in everything(splits)
    assert "y" in everything(splits)
    assert [p.question for p in splits.test] == [test[0]["question"]]
    validation = read_jsonl(train, test_path=str(tmp_path / "test.jsonl"), validation_fraction=1.0)
    assert validation.dropped == {"validation problem also in test": 1}


def test_the_same_question_in_train_and_validation_stays_in_validation_alone(tmp_path: Path) -> None:
    twins = [{"id": f"a{i}", "question": "What is 2 + 2?", "answer": "4"} for i in range(40)]
    splits = read_jsonl(write_lines(tmp_path / "a.jsonl", *twins), test_fraction=0.0)
    assert splits.train == ()
    assert splits.dropped == {"train problem also in validation": 40 - len(splits.validation)}


@pytest.mark.parametrize("change", [{"id": "q"}, {"question": "Else?"}, {"answer": "7"}])
def test_fingerprint_covers_ids_questions_and_answers(tmp_path: Path, change: dict[str, str]) -> None:
    base = read_jsonl(write_lines(tmp_path / "a.jsonl", *rows(5)))
    assert read_jsonl(write_lines(tmp_path / "b.jsonl", *rows(5))).fingerprint == base.fingerprint
    changed = rows(5)
    changed[2] |= change
    assert read_jsonl(write_lines(tmp_path / "c.jsonl", *changed)).fingerprint != base.fingerprint


# Rows that cannot be used


BAD_LINES = {
    "malformed JSON": '{"id": "b", "question": "q", ',
    "missing field": {"id": "b", "question": "q"},
    "wrong type": {"id": "b", "question": ["q"], "answer": "1"},
    "empty field": {"id": "b", "question": "  ", "answer": "1"},
    "duplicate id": {"id": "p3", "question": "q", "answer": "1"},
    "lone surrogate": '{"id": "b", "question": "half \\ud83d of one", "answer": "1"}',
    "not UTF-8": b'{"id": "b", "question": "\xff", "answer": "1"}',
    "not an object": "[1, 2]",
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_row_is_put_aside_and_counted_within_the_budget_and_fails_beyond_it(tmp_path: Path, reason: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", *rows(20), BAD_LINES[reason])
    with pytest.warns(UserWarning, match=rf"1 of 21 rows cannot be used.*a\.jsonl:21: {reason}"):
        splits = read_jsonl(path, max_bad_rows=0.05)
    assert splits.dropped == {reason: 1}
    assert everything(splits) == {row["id"]: (row["question"], row["answer"], "") for row in rows(20)}
    with pytest.raises(ProblemError, match=rf"a\.jsonl:21: {reason}"):
        read_jsonl(path, max_bad_rows=0.04)


@pytest.mark.parametrize(
    "row, found",
    [
        ({"id": "b", "question": 5, "answer": "1"}, "question is number"),
        ({"id": "b", "question": "q", "answer": None}, "answer is null"),
        ({"id": "b", "question": "q", "answer": True}, "answer is bool"),
        ({"id": True, "question": "q", "answer": "1"}, "id is bool"),
        ('{"id": "b", "question": "q", "answer": NaN}', "answer is float"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_wrong_types_say_what_was_found(tmp_path: Path, row: Any, found: str) -> None:
    with pytest.raises(ProblemError, match=found):
        read_jsonl(write_lines(tmp_path / "a.jsonl", row))


def test_the_first_five_offenders_are_named_with_their_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *rows(2), "", *["{"] * 7)
    with pytest.raises(ProblemError) as caught:
        read_jsonl(path)
    assert "7 of 9 rows" in str(caught.value)
    assert re.findall(r"a\.jsonl:(\d+)", str(caught.value)) == ["4", "5", "6", "7", "8"]
    assert "max_bad_rows" in str(caught.value)


def test_the_first_of_each_reason_is_named_and_all_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *["{"] * 6, {"id": "1", "question": "1 + 1 ="}, *rows(2), "[]", "[]")
    with pytest.raises(ProblemError) as caught:
        read_jsonl(path)
    assert ": 9 of 11 rows cannot be used: 6 malformed JSON, 2 not an object, 1 missing field. First: " in str(
        caught.value
    )
    assert re.findall(r"a\.jsonl:(\d+)", str(caught.value)) == ["1", "2", "3", "7", "10"]
    assert "a.jsonl:1, a.jsonl:2, a.jsonl:3: malformed JSON: Expecting" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("question,answer\n1 + 1 =,2\n", "perhaps CSV"),
        ('{\n "question": "1 + 1 =",\n "answer": "2"\n}\n', "several lines"),
    ],
)
def test_a_table_or_an_indented_object_is_told_from_lines_of_json(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ProblemError, match=rf"a\.jsonl is .*{found}.*expected one JSON object per line.*Convert it"):
        read_jsonl(tmp_path / "a.jsonl")


def test_an_empty_or_missing_file_is_named(tmp_path: Path) -> None:
    for lines in ((), ("", "  ")):
        with pytest.raises(ProblemError, match=r"empty\.jsonl holds no rows"):
            read_jsonl(write_lines(tmp_path / "empty.jsonl", *lines))
    with pytest.raises(ProblemError, match=r"data\.path='.*none\.jsonl': no such file"):
        read_jsonl(tmp_path / "none.jsonl")
    good = write_lines(tmp_path / "a.jsonl", *rows(2))
    with pytest.raises(ProblemError, match=r"data\.test_path='.*none\.jsonl': no such file"):
        read_jsonl(good, test_path=str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("share", [-0.1, 1.5, 5])
def test_the_budget_is_a_share(tmp_path: Path, share: float) -> None:
    with pytest.raises(BadValue, match="max_bad_rows"):
        read_jsonl(write_lines(tmp_path / "a.jsonl", *rows(2)), max_bad_rows=share)


# Fields


def test_numbers_are_kept_as_they_are_spelt(tmp_path: Path) -> None:
    digits = "9" * 5000  # beyond what int() takes
    lines = [
        f'{{"id": {i}, "question": "q{i}", "answer": {answer}}}' for i, answer in enumerate(["1.10", "-3e2", digits])
    ]
    found = everything(read_jsonl(write_lines(tmp_path / "a.jsonl", *lines)))
    assert {key: value[1] for key, value in found.items()} == {"0": "1.10", "1": "-3e2", "2": digits}


def test_fields_may_be_paths_and_templates(tmp_path: Path) -> None:
    row = {"meta": {"n": 7}, "Body": "There {are} 2 pens.", "Question": "How many?", "out": ["2", "3"], "a.b": "why"}
    splits = read_jsonl(
        write_lines(tmp_path / "a.jsonl", row),
        id_field="chal-{meta.n}",
        question_field="{{x}} {Body} {Question}",
        answer_field="out.0",
        solution_field="a.b",
    )
    assert everything(splits) == {"chal-7": ("{x} There {are} 2 pens. How many?", "2", "why")}


@pytest.mark.parametrize("template", ["{Body", "{}", "{Body!r}", "{Body:>5}", "Body}"])
def test_templates_that_are_none_are_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(ProblemError, match="template"):
        read_jsonl(write_lines(tmp_path / "a.jsonl", {"id": "a", "Body": "q", "answer": "1"}), question_field=template)


def test_ids_made_of_content_ignore_order_place_and_other_fields(tmp_path: Path) -> None:
    plain = [{"question": f"q{i}", "answer": str(i)} for i in range(30)]
    dressed = [
        {"answer": row["answer"], "note": i, "question": row["question"]} for i, row in enumerate(reversed(plain))
    ]
    one = read_jsonl(write_lines(tmp_path / "a.jsonl", *plain), id_field="")
    two = read_jsonl(write_lines(tmp_path / "b.jsonl", *dressed), id_field="")
    assert one == two
    assert len(everything(one)) == 30
    with pytest.warns(UserWarning, match=r"a\.jsonl:31: duplicate row"):
        again = read_jsonl(write_lines(tmp_path / "a.jsonl", *plain, plain[0]), id_field="", max_bad_rows=0.1)
    assert again.dropped == {"duplicate row": 1}


def test_files_that_both_count_from_zero_have_no_duplicate_ids(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", *({"id": i, "question": f"a{i}", "answer": "1"} for i in range(3)))
    test = write_lines(tmp_path / "test.jsonl", *({"id": i, "question": f"b{i}", "answer": "1"} for i in range(3)))
    splits = read_jsonl(train, test_path=str(test), validation_fraction=0.0)
    assert {p.id for p in splits.train} == {"0", "1", "2"}
    assert {p.question for p in splits.test} == {"b0", "b1", "b2"}
    assert len(everything(splits)) == 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    texts=st.lists(st.tuples(VISIBLE, VISIBLE, VISIBLE), min_size=1, max_size=5, unique_by=lambda t: t[0]),
    ascii=st.booleans(),
)
def test_any_unicode_text_round_trips(tmp_path: Path, texts: list[tuple[str, str, str]], ascii: bool) -> None:
    lines = [json.dumps({"id": a, "question": b, "answer": c, "s": b + c}, ensure_ascii=ascii) for a, b, c in texts]
    found = everything(
        read_jsonl(
            write_lines(tmp_path / "a.jsonl", *lines), solution_field="s", test_fraction=0.0, validation_fraction=0.0
        )
    )
    assert found == {a: (b, c.strip(), b + c) for a, b, c in texts}


def test_emoji_right_to_left_nul_and_line_separators_round_trip(tmp_path: Path) -> None:
    question = "🍎👩‍👩‍👧 كم عددها؟ \x00 one\u2028two\u0085three"
    lines = [json.dumps({"id": "a", "question": question, "answer": "٣"}, ensure_ascii=False)]
    path = write_lines(tmp_path / "spaces = and ünïcode.jsonl", *lines)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark is no part of the text
    assert everything(read_jsonl(path)) == {"a": (question, "٣", "")}


# GSM8K


def test_gsm8k_fields_and_folders(tmp_path: Path) -> None:
    write_lines(tmp_path / "gsm8k" / "train.jsonl", *gsm8k_rows(200))
    write_lines(tmp_path / "gsm8k" / "test.jsonl", *gsm8k_rows(10, start=190))
    splits = read_gsm8k(tmp_path / "gsm8k")
    assert splits == read_gsm8k(tmp_path)
    expected = {
        row["question"]: (str(int(row["question"].split()[2]) * 7 - 2), row["answer"]) for row in gsm8k_rows(200)
    }
    assert {p.question: (p.answer, p.solution) for split in SPLITS for p in splits.of(split)} == expected
    assert {p.question for p in splits.test} == {row["question"] for row in gsm8k_rows(10, start=190)}
    assert sum(splits.dropped.values()) == 10  # rows 190 to 199 stand in both files


def test_gsm8k_without_a_final_answer_or_folder_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", {"question": "q", "answer": "the text ends here"})
    write_lines(tmp_path / "test.jsonl", *gsm8k_rows(1))
    with pytest.raises(ProblemError, match=r"train\.jsonl:1: no final answer"):
        read_gsm8k(tmp_path)
    with pytest.raises(ProblemError, match=r"data\.dir=.*found neither .*train\.jsonl nor .*gsm8k/train\.jsonl"):
        read_gsm8k(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "text, answer", [("a #### 18", "18"), ("#### 1 #### -2,345.5", "-2345.5"), ("x\n####7\n", "7")]
)
def test_the_answer_is_what_follows_the_last_hashes(text: str, answer: str) -> None:
    assert problems.after_hashes(text) == answer


def test_the_real_gsm8k_is_read_in_full(data_dir: Path) -> None:
    if not (data_dir / "gsm8k" / "train.jsonl").is_file():
        pytest.skip(f"outside data: no gsm8k in {data_dir}")
    splits = read_gsm8k(data_dir, validation_fraction=0.05)
    assert len(splits.train) + len(splits.validation) + sum(splits.dropped.values()) == 7473
    assert len(splits.test) == 1319
    assert 250 < len(splits.validation) < 500
    for problem in everything(splits).values():
        assert re.fullmatch(r"-?\d+(\.\d+)?", problem[1]), problem


# Hub and reasoning-gym


HUB = {
    "name": "h",
    "config": "",
    "revision": "",
    "train_split": "train",
    "test_split": "test",
    "id_field": "",
    "question_field": "question",
    "answer_field": "answer",
    "solution_field": "answer",
    "max_bad_rows": 0.0,
    "validation_fraction": 0.2,
    "test_fraction": 0.3,
    "seed": 0,
}


def test_hub_reads_what_datasets_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_lines(tmp_path / "set" / "train.jsonl", *gsm8k_rows(40))
    write_lines(tmp_path / "set" / "test.jsonl", *gsm8k_rows(5, start=100))
    splits = problems.hub(path=str(tmp_path / "set"), **HUB)
    from_files = read_jsonl(
        tmp_path / "set" / "train.jsonl",
        name="h",
        test_path=str(tmp_path / "set" / "test.jsonl"),
        id_field="",
        solution_field="answer",
    )
    assert splits == from_files
    assert len(splits.test) == 5
    alone = problems.hub(path=str(tmp_path / "set"), **(HUB | {"test_split": ""}))
    assert len(everything(alone)) == 40
    with pytest.raises(ProblemError, match="split 'dev'"):
        problems.hub(path=str(tmp_path / "set"), **(HUB | {"test_split": "dev"}))


def test_a_data_set_that_cannot_be_reached_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))  # HF_HUB_OFFLINE is set for all tests
    with pytest.raises(ProblemError, match=r"cannot load data set 'owner/none'.*data\.dir"):
        read_gsm8k(Path(), dir="")


def made_in_gym(**changes: Any) -> Splits:
    pytest.importorskip("reasoning_gym")
    arguments: dict[str, Any] = {"name": "g", "task": "chain_sum", "size": 60, "seed": 3, "config": {}}
    return problems.reasoning_gym(**(arguments | {"validation_fraction": 0.2, "test_fraction": 0.3} | changes))


def test_the_options_of_arithmetic_are_digits_and_the_question_shows_the_work() -> None:
    splits = problems.arithmetic_choice(name="choice", seed=0, num_test=30)
    plain = {
        p.id: p for p in problems.arithmetic(name="choice", seed=0, num_train=0, num_validation=0, num_test=240).test
    }
    assert len(splits.test) == 30
    for problem in splits.test:
        assert problem.answer in "0123456789"
        before = plain[problem.id]
        assert f"{problem.question}\n#### {problem.answer}" == f"{before.question}\n{before.solution}"


def test_reasoning_gym_makes_its_tasks_with_their_settings() -> None:
    splits = made_in_gym(config=OmegaConf.create({"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3}))
    assert len(everything(splits)) + sum(splits.dropped.values()) == 60
    for question, answer, _ in everything(splits).values():
        found = re.search(r"(\d{3}) ([-+]) (\d{3})", question)
        assert found is not None
        left, operator, right = found.groups()
        assert int(answer) == (int(left) + int(right) if operator == "+" else int(left) - int(right))
    assert splits == made_in_gym(config={"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3})


def test_reasoning_gym_drops_repeated_draws() -> None:
    with pytest.warns(UserWarning, match="duplicate row"):
        splits = made_in_gym(config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, size=300)
    assert splits.dropped["duplicate row"] == 300 - len(everything(splits))
    assert len({normalized(question) for question, _, _ in everything(splits).values()}) == len(everything(splits))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "chain_sums"}, "unknown reasoning-gym task 'chain_sums'; did you mean 'chain_sum'"),
        ({"config": {"max_term": 2}}, "setting 'max_term' is unknown; did you mean 'max_terms'"),
        ({"config": {"seed": 2}}, "'seed' is set by data.size and data.seed"),
        ({"config": {"min_terms": 5, "max_terms": 2}}, "chain_sum refuses its settings"),
        ({"size": 0}, r"reasoning_gym\.size: expected an integer of at least 1, found 0"),
    ],
)
def test_reasoning_gym_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ProblemError, BadValue), match=message):
        made_in_gym(**changes)


def test_reasoning_gym_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ProblemError, match=r"pip install 'critical-token-finetuning\[reasoning-gym\]'"):
        problems.reasoning_gym(
            name="g", task="chain_sum", size=1, seed=0, config={}, validation_fraction=0.0, test_fraction=0.0
        )


# Configuration and weight


@pytest.mark.parametrize("group", ["arithmetic", "gsm8k", "reasoning_gym", "jsonl", "hub"])
def test_a_benchmark_is_its_data_group(root: Path, group: str) -> None:
    paths = group in ("jsonl", "hub")
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        data = compose(overrides=[f"+data={group}", *(["data.path=p"] if paths else [])]).data
        for dir in ("", "/somewhere"):
            config = compose(
                overrides=[f"+benchmark={group}", f"+data.dir={dir}", *(["benchmark.path=p"] if paths else [])]
            )
            expected = OmegaConf.to_container(data, resolve=True)
            assert isinstance(expected, dict)
            assert OmegaConf.to_container(config.benchmark, resolve=True) == (
                expected | ({"dir": dir} if group == "gsm8k" else {})
            )


def test_the_module_is_light() -> None:
    heavy = ["torch", "lightning", "transformers", "datasets", "reasoning_gym", "pandas"]
    code = f"import sys, cft.data.sources; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"


# Files of another kind


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b'[\n {"question": "q", "answer": "1"}\n]', "one JSON array"),
        ('{"question": "q"}'.encode("utf-16"), "text in UTF-16"),
        ('{"question": "q"}'.encode("utf-16-le"), "text in UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    ],
)
def test_a_file_that_holds_no_json_lines_is_named_for_what_it_is(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ProblemError, match=rf"rows\.jsonl is {kind}.*expected one JSON object per line, in UTF-8"):
        read_jsonl(path)


@pytest.mark.parametrize(
    "lines, found",
    [
        ({"a.jsonl": ['{"question": "q", "answer": "1"}', '{"question": "bro\x01ken']}, r"a\.jsonl:2: malformed JSON"),
        (
            {"a.jsonl": ['{"question": "q", "answer": "1"}', '{"question": "r", "answer": {"x": 2}}']},
            r"a\.jsonl:2: answer is dict, in a\.jsonl:1 it is str",
        ),
        (
            {"a.jsonl": ['{"question": "q"}'], "b.jsonl": ['{"question": "r", "level": "x"}']},
            r"b\.jsonl, row 1: fields level, question, but a\.jsonl has question",
        ),
    ],
    ids=["malformed", "another type", "another field"],
)
def test_a_folder_that_cannot_be_loaded_names_file_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: dict[str, list[str]], found: str
) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    for name, rows_ in lines.items():
        write_lines(tmp_path / name, *rows_)
    with pytest.raises(ProblemError, match=found):
        list(hub_rows(str(tmp_path), config="", revision="", split="train"))
