"""Splits problems into train, validation and test.

A source without a test set is split by a hash of seed and problem id, not by order, so that adding rows to a file moves no
problem to another split. Training and validation problems whose question is also in the test set are dropped and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cft.data.problem_rows import ProblemError, normalized
from cft.types import Problem, Verifier

NAMES = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Splits:
    """Problems by split, in the order of hash(seed, id), so that the first n of them are a random sample.

    Args:
        name: name of the source.
        train: training problems.
        validation: validation problems.
        test: test problems.
        dropped: reason -> number of dropped rows.
        fingerprint: sha256 of the splits' ids, questions, answers and solutions.
        verifier: grader of answers under `verifier=benchmark`; None = determined by the run.
    """

    name: str
    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    test: tuple[Problem, ...]
    dropped: dict[str, int]
    fingerprint: str
    verifier: Verifier | None = None

    def of(self, split: str) -> tuple[Problem, ...]:
        """The problems of one split, at least one."""
        if split not in NAMES:
            raise ProblemError(f"unknown split {split!r} of data {self.name}; expected one of {', '.join(NAMES)}")
        problems: tuple[Problem, ...] = getattr(self, split)
        if not problems:
            sizes = ", ".join(f"{name} {len(getattr(self, name))}" for name in NAMES)
            remedy = "use another split or change the split's size or fraction in the data group"
            raise ProblemError(f"data {self.name} has no {split} problems (found {sizes}); {remedy}")
        return problems

    def held_out_questions(self) -> frozenset[str]:
        """Normalized questions of validation and test, which must not be trained on."""
        return frozenset(normalized(problem.question) for problem in (*self.validation, *self.test))


def place_of(problem_id: str, *, seed: int) -> float:
    """A number in 0-1 that determines a problem's split and order."""
    digest = hashlib.sha256(f"{seed}\x1f{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def split_parts(
    *,
    name: str,
    parts: Mapping[str, tuple[list[Problem], Counter[str]]],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    verifier: Verifier | None = None,
) -> Splits:
    """Split the problems that were read; test problems are the test part or, without one, a fraction of the train part."""
    own_test = "test" in parts
    own_fraction = 0.0 if own_test else test_fraction
    if validation_fraction + own_fraction > 1.0:
        raise ProblemError(
            f"validation_fraction={validation_fraction} and test_fraction={test_fraction} exceed 1 together"
        )
    found: dict[str, list[Problem]] = {split: [] for split in NAMES}
    for problem in parts["train"][0]:
        place = place_of(problem.id, seed=seed)
        # Test is the lower end and validation the upper, so changing a fraction moves no problem between the two.
        split = "test" if place < own_fraction else "validation" if place >= 1.0 - validation_fraction else "train"
        found[split].append(problem)
    if own_test:
        found["test"] = parts["test"][0]
    dropped = sum((counts for _, counts in parts.values()), Counter[str]())
    return splits_of(name=name, seed=seed, dropped=dropped, verifier=verifier, **found)


def splits_of(
    *,
    name: str,
    seed: int,
    train: Iterable[Problem],
    validation: Iterable[Problem],
    test: Iterable[Problem],
    dropped: Counter[str],
    verifier: Verifier | None = None,
) -> Splits:
    """Drop problems that occur in several splits, sort, and compute the fingerprint."""
    held_out: dict[str, str] = {}  # normalized question -> the split that has it
    kept: dict[str, list[Problem]] = {}
    for split, problems in (("test", test), ("validation", validation), ("train", train)):
        kept[split] = []
        for problem in problems:
            other = held_out.get(normalized(problem.question), split)
            if other == split:
                kept[split].append(problem)
            else:
                dropped[f"{split} problem also in {other}"] += 1
        if split != "train":
            held_out |= {normalized(problem.question): split for problem in kept[split]}
    digest = hashlib.sha256()
    ordered: dict[str, tuple[Problem, ...]] = {}
    for split in NAMES:
        ordered[split] = tuple(sorted(kept[split], key=lambda p: (place_of(p.id, seed=seed), p.id)))
        for problem in ordered[split]:
            turns = [json.dumps([problem.messages, problem.tools], sort_keys=True)] if problem.messages else []
            for text in (split, problem.id, problem.question, problem.answer, problem.solution, *turns):
                data = text.encode()
                digest.update(len(data).to_bytes(8) + data)
    if not any(ordered.values()):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none was requested"
        raise ProblemError(f"data {name} has no problems left ({reasons})")
    return Splits(
        name,
        ordered["train"],
        ordered["validation"],
        ordered["test"],
        dropped=dict(sorted(dropped.items())),
        fingerprint=digest.hexdigest(),
        verifier=verifier,
    )
