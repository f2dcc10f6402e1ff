"""Sources of problems. Each function here is the `_target_` of a file in conf/data and returns `Splits`."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from cft.data import word_problems as generator
from cft.data.hub_rows import hub_rows
from cft.data.problem_rows import BadRow, Fields, ProblemError, Row, json_lines, to_problems
from cft.data.splits import Splits, split_parts, splits_of
from cft.data.word_problems import Operation
from cft.ranges import AtLeastOne, Count, Fraction, Name, in_range
from cft.types import Problem, Verifier

__all__ = ["ProblemError", "Splits", "arithmetic", "arithmetic_choice", "gsm8k", "hub", "jsonl", "reasoning_gym"]


@in_range
def arithmetic(
    *,
    name: Name,
    seed: int,
    num_train: Count,
    num_validation: Count,
    num_test: Count,
    min_steps: AtLeastOne = 2,
    max_steps: AtLeastOne = 4,
    operations: Sequence[Operation] = generator.OPERATIONS,
) -> Splits:
    """Generated word problems (`cft/data/word_problems.py`) with worked solutions.

    Args:
        name: name of the source, prefix of every problem's id.
        seed: seed of numbers and words.
        num_train: number of training problems, at least 0.
        num_validation: number of validation problems, at least 0.
        num_test: number of test problems, at least 0.
        min_steps: minimal number of operations per problem, at least 1.
        max_steps: maximal number of operations per problem, at least `min_steps`.
        operations: operations to use, some of + - *; default all three.

    Raises:
        ProblemError: `min_steps` is above `max_steps`, or fewer such problems exist than requested.
    """
    if min_steps > max_steps:
        raise ProblemError(f"min_steps={min_steps}, max_steps={max_steps}: expected min_steps <= max_steps")
    found: dict[str, list[Problem]] = {}
    for split, count in zip(("train", "validation", "test"), (num_train, num_validation, num_test), strict=True):
        found[split] = list(_generated(seed, split, min_steps, max_steps, tuple(operations), count))
        if len(found[split]) < count:
            raise ProblemError(
                f"num_{split}={count}: the generator has only {len(found[split])} different problems of {min_steps} to "
                f"{max_steps} steps of {' '.join(operations)} in this split; request fewer, raise max_steps or allow more "
                "operations"
            )
    return splits_of(
        name=name,
        seed=seed,
        train=found["train"],
        validation=found["validation"],
        test=found["test"],
        dropped=Counter(),
    )


@lru_cache(maxsize=32)  # the jobs of a multirun use the same problems
def _generated(
    seed: int, split: generator.Split, min_steps: int, max_steps: int, operations: tuple[Operation, ...], count: int
) -> tuple[Problem, ...]:
    stream = generator.problems(seed=seed, split=split, min_steps=min_steps, max_steps=max_steps, operations=operations)
    return tuple(problem for _, problem in islice(stream, count))


@in_range
def arithmetic_choice(
    *, name: Name, seed: int, num_test: Count, min_steps: AtLeastOne = 2, max_steps: AtLeastOne = 4
) -> Splits:
    """Multiple choice among the ten digits: arithmetic problems with a worked solution, whose last number is the answer.

    It has only test problems, those of `arithmetic` with a one-digit answer. It tests whether a model answers in the requested
    form.

    Args:
        name: name of the source, prefix of every problem's id.
        seed: seed of numbers and words.
        num_test: number of problems.
        min_steps: minimal number of operations per problem, at least 1.
        max_steps: maximal number of operations per problem, at least `min_steps`.

    Raises:
        ProblemError: `min_steps` is above `max_steps`.
    """
    drawn = 8 * num_test  # about a third of the answers have one digit
    splits = arithmetic(
        name=name,
        seed=seed,
        num_train=0,
        num_validation=0,
        num_test=drawn,
        min_steps=min_steps,
        max_steps=max_steps,
    )
    worked = []
    for problem in splits.test:
        steps = problem.solution.rpartition("\n####")[0]
        if len(problem.answer) == 1:
            worked.append(replace(problem, question=f"{problem.question}\n{steps}", solution=""))
    return splits_of(name=name, seed=seed, train=[], validation=[], test=worked[:num_test], dropped=Counter())


@in_range
def gsm8k(
    *,
    name: Name,
    dir: str,
    hub_id: str,
    revision: str,
    validation_fraction: Fraction,
    seed: int,
    max_bad_rows: Fraction = 0.001,
) -> Splits:
    """GSM8K: the gold answer is the text after the last `####`, without thousands separators; the solution is the whole text.

    Args:
        name: name of the source.
        dir: folder with train.jsonl and test.jsonl, or with a folder gsm8k that contains them; "" = the hub.
        hub_id: data set on the hub, used if `dir` is "".
        revision: revision of the data set on the hub.
        validation_fraction: fraction of the training problems to hold out, 0 to 1.
        seed: seed of the split.
        max_bad_rows: fraction of the rows that may be skipped, 0 to 1; they are counted and named.

    Raises:
        ProblemError: no such file or data set, or too many bad rows.
    """
    sources = {}
    for part in ("train", "test"):
        rows, source = _gsm8k_rows(part, dir=dir, hub_id=hub_id, revision=revision)
        fields_ = Fields(id="", question="question", answer="answer", solution="answer", answer_of=after_hashes)
        sources[part] = to_problems(
            rows, source=source, fields=fields_, id_prefix=f"gsm8k-{part}-", max_bad_rows=max_bad_rows
        )
    return split_parts(name=name, parts=sources, validation_fraction=validation_fraction, test_fraction=0.0, seed=seed)


def after_hashes(text: str) -> str:
    """`... #### 1,234` -> `1234`."""
    _, marker, tail = text.rpartition("####")
    answer = tail.strip().replace(",", "")
    if not marker or not answer:
        raise BadRow("no final answer: expected the text to end in '#### <answer>'")
    return answer


@in_range
def reasoning_gym(
    *,
    name: Name,
    task: str,
    size: AtLeastOne,
    seed: int,
    config: Mapping[str, Any],
    validation_fraction: Fraction,
    test_fraction: Fraction,
    verifier: Verifier | None = None,
) -> Splits:
    """A procedurally generated task of reasoning-gym.

    Answers are graded by the run's verifier, not by the task's scorer, so use tasks with a single right answer. Duplicate
    entries and entries without an answer are dropped and counted.

    Args:
        name: name of the source.
        task: name of the task in reasoning-gym.
        size: number of entries to draw, at least 1.
        seed: seed of the draw.
        config: settings of the task.
        validation_fraction: fraction of the problems, 0 to 1.
        test_fraction: fraction of the problems, 0 to 1.
        verifier: grader of answers under `verifier=benchmark`; null = the numeric one.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ProblemError(
            "data=reasoning_gym needs the package reasoning-gym: pip install 'critical-token-finetuning[reasoning-gym]'"
        )
    from reasoning_gym.factory import DATASETS, create_dataset

    if task not in DATASETS:
        raise ProblemError(f"unknown reasoning-gym task {task!r}{_did_you_mean(task, DATASETS)}")
    settings = _plain(config)
    config_class = DATASETS[task][1]
    known = {f.name for f in fields(config_class)} - {"seed", "size"} if is_dataclass(config_class) else set(settings)
    for key in settings:
        if key not in known:
            hint = "is set by data.size and data.seed" if key in ("seed", "size") else "is unknown"
            raise ProblemError(f"reasoning-gym task {task}: setting {key!r} {hint}{_did_you_mean(key, known)}")
    try:
        dataset = create_dataset(task, size=size, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ProblemError(f"reasoning-gym task {task} refuses its settings {settings}: {error}") from error
    rows = (
        Row(f"{task}[{i}]", {"question": dataset[i]["question"], "answer": dataset[i]["answer"]}) for i in range(size)
    )
    fields_ = Fields(id="", question="question", answer="answer", solution="")
    # All rows may be skipped: repeated draws are not errors, and a task without any problems fails in `splits_of`.
    part = to_problems(rows, source=f"reasoning-gym {task}", fields=fields_, id_prefix=f"{task}-", max_bad_rows=1.0)
    return split_parts(
        name=name,
        parts={"train": part},
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        verifier=verifier,
    )


@in_range
def jsonl(
    *,
    name: Name,
    path: str,
    test_path: str,
    id_field: str,
    question_field: str,
    answer_field: str,
    solution_field: str,
    max_bad_rows: Fraction,
    validation_fraction: Fraction,
    test_fraction: Fraction,
    seed: int,
    verifier: Verifier | None = None,
) -> Splits:
    """A file with one JSON object per line.

    Args:
        name: name of the source.
        path: the file.
        test_path: a file of test problems; "" = `test_fraction` of `path`.
        id_field: name, path or template of a field, as the other `*_field` arguments; see `problem_rows.Fields`.
        question_field: see `id_field`.
        answer_field: see `id_field`.
        solution_field: see `id_field`.
        max_bad_rows: fraction of a file's rows that may be skipped, 0 to 1; they are counted and named.
        validation_fraction: fraction of the problems, 0 to 1.
        test_fraction: fraction of the problems, 0 to 1.
        seed: seed of the split.
        verifier: grader of answers under `verifier=benchmark`; null = the numeric one.

    Raises:
        ProblemError: no such file, or too many bad rows.
    """

    def rows_of(part: str, file: str) -> tuple[Iterable[Row], str]:
        found = _existing(file, what="data.path" if part == "train" else "data.test_path")
        return json_lines(found), str(found)

    parts = _train_and_test(
        rows_of,
        train=path,
        test=test_path,
        named=Fields(id=id_field, question=question_field, answer=answer_field, solution=solution_field),
        max_bad_rows=max_bad_rows,
    )
    return split_parts(
        name=name,
        parts=parts,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        verifier=verifier,
    )


@in_range
def hub(
    *,
    name: Name,
    path: str,
    config: str,
    revision: str,
    train_split: str,
    test_split: str,
    id_field: str,
    question_field: str,
    answer_field: str,
    solution_field: str,
    max_bad_rows: Fraction,
    validation_fraction: Fraction,
    test_fraction: Fraction,
    seed: int,
    verifier: Verifier | None = None,
) -> Splits:
    """A data set on the hub, or a local folder that `datasets` can load. Other arguments are as in `jsonl`.

    Args:
        path: owner/name, or the folder.
        config: config of the data set; "" = its default.
        revision: branch, tag or commit; "" = the newest.
        train_split: split of the data set to divide.
        test_split: split of test problems; "" = `test_fraction` of `train_split`.
        id_field: as in `jsonl`.

    Raises:
        ProblemError: no such data set or split, or more bad rows than `max_bad_rows`.
    """
    parts = _train_and_test(
        lambda _, split: (hub_rows(path, config=config, revision=revision, split=split), f"{path} ({split})"),
        train=train_split,
        test=test_split,
        named=Fields(id=id_field, question=question_field, answer=answer_field, solution=solution_field),
        max_bad_rows=max_bad_rows,
    )
    return split_parts(
        name=name,
        parts=parts,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        verifier=verifier,
    )


def _train_and_test(
    rows_of: Callable[[str, str], tuple[Iterable[Row], str]],
    *,
    train: str,
    test: str,
    named: Fields,
    max_bad_rows: float,
) -> dict[str, tuple[list[Problem], Counter[str]]]:
    """Problems of the training part and, if there is one, of the test part. rows_of: (part, place) -> (rows, source)."""
    parts = {}
    for part, place in (("train", train), ("test", test)):
        if place or part == "train":
            rows, source = rows_of(part, place)
            prefix = "test-" if part == "test" else ""  # ids of both files often count from 0
            parts[part] = to_problems(rows, source=source, fields=named, id_prefix=prefix, max_bad_rows=max_bad_rows)
    return parts


def _gsm8k_rows(part: str, *, dir: str, hub_id: str, revision: str) -> tuple[Iterator[Row], str]:
    if not dir:
        return hub_rows(hub_id, config="main", revision=revision, split=part), f"{hub_id} ({part})"
    candidates = [Path(dir).expanduser() / f"{part}.jsonl", Path(dir).expanduser() / "gsm8k" / f"{part}.jsonl"]
    for path in candidates:
        if path.is_file():
            return json_lines(path), str(path)
    looked = " nor ".join(map(str, candidates))
    raise ProblemError(
        f"data.dir={dir}: found neither {looked}; expected the folder with GSM8K's train.jsonl and test.jsonl"
    )


def _existing(file: str, *, what: str) -> Path:
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise ProblemError(f"{what}={file!r}: no such file; expected a file with one JSON object per line")
    return path


def _plain(value: Any) -> Any:
    """The value with mappings and sequences of a configuration as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; known: {', '.join(sorted(known))}"
