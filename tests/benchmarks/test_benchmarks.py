"""Benchmarks: every row is read, every gold answer is accepted and a changed one is not; suites; lists on a command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir

from cft.benchmarks.rows import LAYOUTS, Layout, normal_answer
from cft.benchmarks.sets import benchmark, members_of, suite, verifier_for
from cft.benchmarks.sweep import in_one_run
from cft.config.build import CONF_DIR, build, check_command_line
from cft.data.problem_rows import BadRow, ProblemError
from cft.data.splits import Splits
from cft.types import Problem, ThinkingTags, Verifier
from cft.verifiers import Math, Numeric, Options
from tests.stage import composed

NO_TAGS = ThinkingTags("", "")
NUMERIC = Numeric(fallback_last_number=True)
OPTIONS = Options(inner=NUMERIC)
CFT11 = (
    *("gsm8k", "math", "svamp", "asdiv", "mawps", "carp_en", "tabmwp", "minerva_math", "gaokao2023en"),
    *("olympiadbench", "college_math"),
)
# In how many ways an answer may stand in a response.
PLACES = ("So it is \\boxed{%s}.", "We get 7.\n#### %s\n", "Therefore, the answer is %s.", "<answer>%s</answer> of 3")
SHOWN = 60  # rows of each file whose gold answer is verified here; more are read


@pytest.fixture(scope="module")
def eleven(data_dir: Path) -> dict[str, tuple[tuple[Problem, ...], Verifier]]:
    """name -> (problems, verifier), from whatever part of the sets the folder of outside data holds."""
    missing = [n for n in CFT11 if not any((data_dir / f).is_file() for f in files_of(n))]
    if missing:
        pytest.skip(f"outside data: no {', '.join(missing)} in {data_dir}")
    cfg = composed("evaluate", "benchmark=cft11", f"data.dir={data_dir}")
    chosen = build(cfg.verifier)
    return {
        n: (s.of("test"), verifier_for(s, chosen=chosen, thinking=NO_TAGS))
        for n, s in members_of(build(cfg.benchmark)).items()
    }


def files_of(name: str) -> tuple[str, ...]:
    return f"benchmarks/{name}.jsonl", f"{name}/test.jsonl", f"{name}.jsonl"


def test_every_row_of_every_file_is_a_problem(eleven: dict[str, Any], data_dir: Path) -> None:
    assert tuple(eleven) == CFT11
    for name, (problems, _) in eleven.items():
        path = next(data_dir / file for file in files_of(name) if (data_dir / file).is_file())
        rows = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        assert len(problems) == len(rows) == len({problem.id for problem in problems}), name


@pytest.mark.parametrize("name", CFT11)
def test_a_gold_answer_is_right_wherever_it_stands(eleven: dict[str, Any], name: str) -> None:
    problems, verifier = eleven[name]
    refused = []
    for problem in problems[:SHOWN]:
        texts = [place % problem.answer for place in PLACES]
        if name in ("math", "minerva_math", "gsm8k"):
            texts.append(problem.solution)  # these end in their answer
        refused += [(problem.answer, v) for text in texts if (v := verifier(text, problem.answer)).decision != "right"]
    assert refused == []


@pytest.mark.parametrize("number", [6, pytest.param(12, marks=pytest.mark.slow)])  # rows a file: that takes algebra
@pytest.mark.parametrize("name", CFT11)
def test_a_changed_answer_is_not_right(eleven: dict[str, Any], name: str, number: int) -> None:
    """One digit changed, a term more, and the answer to another problem."""
    problems, verifier = eleven[name]
    accepted, changed, told = [], 0, 0
    for i, problem in enumerate(problems[:number]):
        others = [p.answer for p in problems[:i] if bare(p.answer) != bare(problem.answer)][:1]
        for text in [*changes(problem.answer), *others]:
            verdict = verifier(f"So it is \\boxed{{{text}}}.", problem.answer)
            changed += 1
            told += verdict.decision == "wrong"
            if verdict.decision == "right":
                accepted.append((text, problem.answer, verdict.reason))
    assert changed >= number
    assert accepted == []
    assert told >= 0.5 * changed  # the rest is undecided: prose, and sums where a plain number is asked for


def bare(text: str) -> str:
    return re.sub(r"\W", "", text)


def changes(answer: str) -> list[str]:
    digits = [match.start() for match in re.finditer(r"[0-9]", answer)]
    if not digits:
        return []
    at = digits[-1]
    return [answer[:at] + str(9 - int(answer[at])) + answer[at + 1 :], f"{answer}+1"]


ROWS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "svamp": (
        {"Body": "Ida has 3 pens and 4 cups", "Question": "How many pens?", "Answer": 3.0},
        ("Ida has 3 pens and 4 cups. How many pens?", "3", ""),
    ),
    "asdiv": (
        {"body": "Ida has 9 pens.", "question": "How many?", "answer": "9 (pens)"},
        ("Ida has 9 pens. How many?", "9", ""),
    ),
    "mawps": ({"input": "What is 1 / 8?", "target": 0.125}, ("What is 1 / 8?", "0.125", "")),
    "carp_en": ({"content": "Solve $x$.", "answer": "- \\sqrt { 2 }"}, ("Solve $x$.", "- \\sqrt { 2 }", "")),
    "boxed": (
        {"problem": "Why?", "solution": "First \\boxed{1}, no: $\\boxed{\\frac{1}{2}}$."},
        ("Why?", "\\frac{1}{2}", "First \\boxed{1}, no: $\\boxed{\\frac{1}{2}}$."),
    ),
    "answered": ({"question": "Why?", "answer": "$2 $"}, ("Why?", "2", "")),
    "olympiadbench": (
        {"question": "Why?", "context": None, "final_answer": ["$a=2$, $a=3$"], "solution": ["because"]},
        ("Why?", "$a=2$, $a=3$", "because"),
    ),
}


def test_a_row_without_a_body_is_its_question_and_one_without_the_field_is_none() -> None:
    assert LAYOUTS["svamp"].read({"Body": " ", "Question": "2 + 2?", "Answer": 4.0}) == ("2 + 2?", "4", "")
    assert LAYOUTS["asdiv"].read({"body": "", "question": "2 + 2?", "answer": "4 (pens)"}) == ("2 + 2?", "4", "")
    with pytest.raises(BadRow, match="missing field: Body"):
        LAYOUTS["svamp"].read({"Question": "2 + 2?", "Answer": 4.0})


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("12 (r 3)", "12 (r 3)"),
        ("12 (Remainder 3)", "12 (Remainder 3)"),
        ("10:30 (AM)", "10:30 AM"),
        ("(red)", "(red)"),
    ],
)
def test_a_bracket_that_is_no_unit_stays(answer: str, gold: str) -> None:
    assert LAYOUTS["asdiv"].read({"body": "b", "question": "q", "answer": answer})[1] == gold


@pytest.mark.parametrize(
    "solution, gold",
    [
        ("So $\\boxed5$.", "5"),
        ("So $\\boxed\\frac12$.", "\\frac12"),
        ("So $\\boxed -3$", "-3"),
        ("\\framebox{7}", "7"),
        ("\\framebox[2cm][c]{\\frac{1}{2}}", "\\frac{1}{2}"),
    ],
)
def test_a_box_without_braces_or_by_another_name_holds_an_answer(solution: str, gold: str) -> None:
    assert LAYOUTS["boxed"].read({"problem": "q", "solution": solution})[1] == gold
    assert Math(fallback_last_number=False, lists="set")(solution, gold).decision == "right"


@pytest.mark.parametrize("text", ["Put it in \\boxed.", "in \\(\\boxed\\), then 7", "\\boxed, then 7", "\\boxedness 7"])
def test_a_box_that_is_only_spoken_of_holds_none(text: str) -> None:
    with pytest.raises(BadRow, match="no final answer"):
        LAYOUTS["boxed"].read({"problem": "q", "solution": text})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_renamed_field_names_file_fields_and_a_remedy_that_exists(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ProblemError) as error:
        read(tmp_path, [{"sol": "\\boxed{1}", "quest": "q"}], layout=layout)
    said = str(error.value)
    for part in (
        "mine.jsonl:1",
        "expected" if layout == "olympiadbench" else "the row has sol, quest",
        LAYOUTS[layout].fields,
    ):
        assert part in said
    assert f"benchmark.layout={layout} reads the fields" in said
    assert "data." not in said.replace(str(tmp_path), "")


@pytest.mark.parametrize("layout", ROWS)
def test_layouts(layout: str) -> None:
    row, parts = ROWS[layout]
    assert LAYOUTS[layout].read(row) == parts


def table_row(**changes: Any) -> dict[str, Any]:
    row = {"question": "How many?", "choices": None, "answer": "1,300", "unit": "$", "table_title": "Pens"}
    return row | {"table": "red | 1,300", "solution": "Look."} | changes


def test_a_table_is_part_of_the_question_and_choices_get_letters() -> None:
    question, answer, solution = LAYOUTS["tabmwp"].read(table_row())
    assert (
        question == 'Read the following table regarding "Pens" and answer a question:\nred | 1,300\nHow many? (unit: $)'
    )
    assert (answer, solution) == ("1300", "Look.")
    question, answer, _ = LAYOUTS["tabmwp"].read(
        table_row(choices=["yes", "no"], answer="no", table_title=None, unit=None)
    )
    assert question.startswith("Read the following table and answer a question:\n")
    assert question.endswith("How many?\nOptions: (A) yes (B) no")
    assert answer == "(B) no"
    with pytest.raises(BadRow, match="choices"):
        LAYOUTS["tabmwp"].read(table_row(choices=["yes", "no"], answer="perhaps"))


@pytest.mark.parametrize(
    "response, decision",
    [
        ("The answer is no.", "right"),
        ("\\boxed{B}", "right"),
        ("\\boxed{\\text{(B) no}}", "right"),
        ("I think\n(B)", "right"),
        ("The answer is No, because it is red.", "right"),
        ("The answer is (B) because it is red.", "right"),
        ("\\boxed{yes}", "wrong"),
        ("The answer is A.", "wrong"),
        ("\\boxed{(A) yes}", "wrong"),
        ("\\boxed{(A) no}", "undecided"),
        ("\\boxed{no and yes}", "wrong"),
        ("", "wrong"),
    ],
)
def test_an_option_is_right_by_letter_or_text(response: str, decision: str) -> None:
    assert OPTIONS(response, "(B) no").decision == decision


def test_without_options_the_inner_verifier_judges() -> None:
    assert OPTIONS("\\boxed{1,300}", "1300") == NUMERIC("\\boxed{1,300}", "1300")


@pytest.mark.parametrize(
    "raw, normal",
    [
        ("$2 $", "2"),
        ("$$\n x \n$$", "x"),
        ("33.0", "33"),
        ("13,111", "13111"),
        ("\\boxed{5}.", "5"),
        ("$48$, $384$", "$48$, $384$"),
        ("9:00 P.M.", "9:00 P.M."),
        ("1,2", "1,2"),
        ("\\$5", "\\$5"),
        ("12.70", "12.70"),
        ("The end.", "The end"),
    ],
)
def test_gold_answers_lose_only_what_is_around_them(raw: str, normal: str) -> None:
    assert normal_answer(raw) == normal


def read(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> Splits:
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"name": "mine", "layout": "answered", "verifier": NUMERIC, "dir": str(tmp_path)}
    settings |= {"hub_id": "", "hub_config": "", "hub_split": "test", "revision": "", "max_bad_rows": 0.01}
    return benchmark(**(settings | changes))


def test_rows_that_occur_twice_are_kept_and_order_does_not_matter(tmp_path: Path) -> None:
    rows = [{"question": f"q{i % 3}", "answer": str(i % 3)} for i in range(7)]
    splits = read(tmp_path, rows)
    assert len(splits.of("test")) == 7
    assert splits == read(tmp_path, rows[::-1])
    assert splits.verifier == NUMERIC
    with pytest.raises(ProblemError, match="no train problems"):
        splits.of("train")


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"q{i}", "answer": str(i)} for i in range(300)]
    with pytest.warns(UserWarning, match=r"mine\.jsonl:301: missing field: answer"):
        assert len(read(tmp_path, [*rows, {"question": "q"}]).of("test")) == 300
    bad = [{"question": "q"}, {"question": "r", "answer": " "}]
    with pytest.raises(
        ProblemError,
        match=r"2 of 22 rows cannot be used.*That is 9\.09%, and at most 1\.00% may be skipped \(benchmark\.max_bad_rows",
    ):
        read(tmp_path, [*rows[:20], *bad])
    with pytest.warns(UserWarning, match="2 of 22 rows cannot be used"):
        assert read(tmp_path, [*rows[:20], *bad], max_bad_rows=0.1).dropped == {
            "empty field": 1,
            "missing field": 1,
        }  # counted, not lost


def test_two_empty_answers_of_385_are_within_the_default_of_every_benchmark(root: Path) -> None:
    """The public file of gaokao2023en has them: 0.52 %."""
    for path in sorted((root / "conf" / "benchmark").glob("*.yaml")):
        if "cft.benchmarks.benchmark" in (text := path.read_text()):
            assert "\nmax_bad_rows: 0.01 " in text, path.name


def test_a_missing_file_or_hub_set_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"found none of .*other\.jsonl"):
        read(tmp_path, [], name="other")
    with pytest.raises(ProblemError, match=r"give data\.dir=<folder with mine\.jsonl>"):
        read(tmp_path, [], dir="")


def test_a_suite_is_for_evaluation_and_holds_the_members_of_suites(tmp_path: Path) -> None:
    one = read(tmp_path, [{"question": "q", "answer": "1"}])
    inner = suite(name="inner", members={"a": one})
    outer = suite(name="outer", members={"b": one, "inner": inner})  # pyright: ignore[reportArgumentType]
    assert members_of(outer) == {"b": one, "a": one}
    assert members_of(one) == {"mine": one}
    with pytest.raises(ProblemError, match=r"cft evaluate runs it; cft train tests on one"):
        outer.of("test")
    with pytest.raises(ProblemError, match="no members"):
        suite(name="none", members={})


@pytest.mark.parametrize("name", [name for name in CFT11 if name != "gsm8k"])
def test_every_config_names_a_verifier_that_suits_it(name: str) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("evaluate", [f"benchmark={name}"])
    verifier = build(cfg.benchmark.verifier)
    assert isinstance(verifier, Options if name == "tabmwp" else Numeric if name in ("svamp", "mawps") else Math)
    if isinstance(verifier, Math):
        assert verifier.lists == "set"
    assert cfg.benchmark.name == name


def test_a_verifier_that_is_chosen_wins_over_the_benchmarks_own(tmp_path: Path) -> None:
    splits = read(tmp_path, [{"question": "q", "answer": "1"}], verifier=OPTIONS)
    chosen = build(composed("evaluate").verifier)
    assert verifier_for(splits, chosen=chosen, thinking=NO_TAGS) == OPTIONS
    assert verifier_for(splits, chosen=NUMERIC, thinking=NO_TAGS) == NUMERIC
    plain = build(composed("evaluate", "benchmark.num_test=3").benchmark)
    assert verifier_for(plain, chosen=chosen, thinking=NO_TAGS) == NUMERIC  # as train.py grades by default


def test_a_source_of_problems_may_name_its_verifier(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "1"}) + "\n", encoding="utf-8")
    cfg = composed("evaluate", "benchmark=jsonl", f"benchmark.path={path}", "+verifier@benchmark.verifier=math")
    assert isinstance(verifier_for(build(cfg.benchmark), chosen=build(cfg.verifier), thinking=NO_TAGS), Math)


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["benchmark=gsm8k"], ["benchmark=gsm8k"]),
        (["-m", "benchmark=gsm8k,math"], ["-m", "benchmark=gsm8k,math"]),
        (["benchmark=gsm8k,math", "--multirun"], ["benchmark=gsm8k,math", "--multirun"]),
        (["seed=1,2"], ["seed=1,2"]),
        (
            ["limit=3", "benchmark=gsm8k,math"],
            [
                *("limit=3", "benchmark=suite", "benchmark.name=gsm8k+math"),
                *("+benchmark@benchmark.members.gsm8k=gsm8k", "+benchmark@benchmark.members.math=math"),
            ],
        ),
    ],
)
def test_a_list_of_benchmarks_is_one_run_unless_a_sweep_is_asked_for(argv: list[str], expected: list[str]) -> None:
    assert in_one_run(argv) == expected
    assert in_one_run(["benchmark=[gsm8k, math]"]) == in_one_run(["benchmark=gsm8k,math"])


def test_a_list_of_benchmarks_passes_the_check_and_mistakes_in_it_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    check_command_line("evaluate", in_one_run(["benchmark=gsm8k,math", "benchmark.members.math.dir=x"]))
    for wrong, said in (
        ("benchmark=gsm8k,maths", "benchmark=maths: no such option; did you mean math?"),
        ("benchmark.dir=x", "did you mean benchmark.members.gsm8k.dir"),
    ):
        argv = [wrong] if "," in wrong else ["benchmark=gsm8k,math", wrong]
        with pytest.raises(SystemExit):
            check_command_line("evaluate", in_one_run(argv))
        assert said in capsys.readouterr().err


def test_the_eleven_compose_as_a_list_as_they_do_by_name() -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        by_name = compose("evaluate", ["benchmark=cft11"]).benchmark.members
        listed = compose("evaluate", in_one_run([f"benchmark={','.join(CFT11)}"])).benchmark.members
    assert by_name == listed


def test_the_check_knows_every_layout() -> None:
    assert set(get_args(Layout)) == LAYOUTS.keys()
