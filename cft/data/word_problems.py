"""Generates short word problems: one-digit operands, a few steps, a worked solution with varied wording.

    Tom has 5 apples. He buys 3 more. He loses 2. How many apples does he have now?
    First we find that 5 + 3 = 8 apples so far. Then we get 8 - 2 = 6 apples by now.
    #### 6

The split of a problem depends only on its numbers (`split_of`), not on seed or sizes: a chain of operations in the training
set is never in the test set, not even with another seed or wording.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cft.types import Problem

Split = Literal["train", "validation", "test"]
Operation = Literal["+", "-", "*"]
OPERATIONS: tuple[Operation, ...] = ("+", "-", "*")
LARGEST = 99  # largest intermediate result, so that numbers have at most two digits

NAMES = (
    ("Tom", "he", "him"),
    ("Anna", "she", "her"),
    ("Ben", "he", "him"),
    ("Mia", "she", "her"),
    ("Sam", "he", "him"),
    ("Lily", "she", "her"),
    ("Max", "he", "him"),
    ("Ella", "she", "her"),
)
ITEMS = ("apples", "books", "coins", "pens", "cards", "stones", "shells", "stamps", "balls", "cookies")
BEGIN = ("{name} has {n} {items}.", "{name} starts with {n} {items}.", "At first {name} owns {n} {items}.")
CHANGE = {
    "+": ("{He} buys {n} more.", "{He} finds {n} more.", "{He} gets another {n}.", "A friend gives {him} {n} more."),
    "-": ("{He} loses {n}.", "{He} gives away {n}.", "{He} sells {n}.", "A friend takes {n}."),
    "*": ("{He} makes it {n} times as many.", "The number becomes {n} times as large."),
}
ASK = (
    "How many {items} does {he} have now?",
    "How many {items} are left in the end?",
    "What is the final number of {items}?",
)

# Synonyms in solutions, with uneven weights: a model that learns them has a clear favorite, hence few near ties in greedy
# decoding, and alternatives that lead to the same answer.
OPENERS = ("First", "Start:", "To begin,")
CONNECTIVES = ("Then", "Next", "Now", "After that")
SOLVERS = ("we", "you", "I")
VERBS = ("find that", "get", "see that", "compute", "obtain")
SO_FAR = ("so far", "by now", "at this point")
STOPS = (".", ";", ",")
UNEVEN = (8, 5, 3, 2, 1)


@dataclass(frozen=True, slots=True)
class Chain:
    """The numbers of a problem: a first value, then (operator, operand) steps, evaluated from left to right."""

    first: int
    steps: tuple[tuple[str, int], ...]

    def values(self) -> list[int]:
        """The first value and the result of every step."""
        values = [self.first]
        for operator, operand in self.steps:
            values.append(apply(operator, values[-1], operand))
        return values

    def __str__(self) -> str:
        return " ".join([str(self.first), *(f"{operator} {operand}" for operator, operand in self.steps)])


def apply(operator: str, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    raise ValueError(f"unknown operator {operator!r}; expected one of + - *")


def split_of(chain: Chain) -> Split:
    """The split of a chain: 80 % of all chains are for training, 5 % for validation, 15 % for testing."""
    bucket = int.from_bytes(hashlib.sha256(str(chain).encode()).digest()[:4]) % 20
    return "train" if bucket < 16 else "validation" if bucket < 17 else "test"


def draw_chain(
    rng: random.Random, *, min_steps: int, max_steps: int, operations: Sequence[Operation] = OPERATIONS
) -> Chain | None:
    """A chain whose results stay between 0 and LARGEST; None if no next step is possible, which happens only if not all
    operations are allowed."""
    value = first = rng.randint(2, 9)
    steps: list[tuple[str, int]] = []
    for _ in range(rng.randint(min_steps, max_steps)):
        choices = [("+", n) for n in range(1, 10) if value + n <= LARGEST]
        choices += [("-", n) for n in range(1, 10) if value - n >= 1]
        choices += [("*", n) for n in range(2, 5) if value * n <= LARGEST]
        choices = [choice for choice in choices if choice[0] in operations]
        if not choices:
            return None
        step = rng.choice(choices)
        steps.append(step)
        value = apply(step[0], value, step[1])
    return Chain(first=first, steps=tuple(steps))


def draw_words(rng: random.Random) -> dict[str, str]:
    """Draw the name, pronouns and items of a problem."""
    name, he, him = rng.choice(NAMES)
    return {"name": name, "he": he, "him": him, "He": he.capitalize(), "items": rng.choice(ITEMS)}


def ask(chain: Chain, words: dict[str, str], *, rng: random.Random) -> str:
    """The question in words."""
    sentences = [rng.choice(BEGIN).format(n=chain.first, **words)]
    sentences += [rng.choice(CHANGE[operator]).format(n=operand, **words) for operator, operand in chain.steps]
    return " ".join([*sentences, rng.choice(ASK).format(**words)])


def solve(chain: Chain, words: dict[str, str], *, rng: random.Random) -> str:
    """A worked solution in words; the answer is on the last line after `####`."""
    value = chain.first
    sentences: list[str] = []
    for i, (operator, operand) in enumerate(chain.steps):
        start = _uneven(rng, CONNECTIVES if i else OPENERS)
        result = apply(operator, value, operand)
        working = f"{_uneven(rng, SOLVERS)} {_uneven(rng, VERBS)} {value} {operator} {operand} = {result}"
        stop = _uneven(rng, STOPS) if i < len(chain.steps) - 1 else "."
        sentences.append(f"{start} {working} {words['items']} {_uneven(rng, SO_FAR)}{stop}")
        value = result
    return " ".join(sentences) + f"\n#### {value}"


def problems(
    *, seed: int, split: Split, min_steps: int = 2, max_steps: int = 4, operations: Sequence[Operation] = OPERATIONS
) -> Iterator[tuple[Chain, Problem]]:
    """Distinct problems of one split; ends when 100,000 consecutive draws yield no new problem."""
    chosen: list[Operation] = [operation for operation in OPERATIONS if operation in operations]
    of = "" if chosen == [*OPERATIONS] else f" {''.join(chosen)}"
    rng = random.Random(f"arithmetic {seed} {split} {min_steps} {max_steps}{of}")
    seen: set[str] = set()
    misses = 0
    while misses < 100_000:
        chain = draw_chain(rng, min_steps=min_steps, max_steps=max_steps, operations=chosen)
        if chain is None:
            misses += 1
            continue
        words = draw_words(rng)
        question = ask(chain, words, rng=rng)
        if split_of(chain) != split or question in seen:
            misses += 1
            continue
        misses = 0
        seen.add(question)
        digest = hashlib.sha256(question.encode()).hexdigest()[:16]
        yield chain, Problem(f"arithmetic-{digest}", question, str(chain.values()[-1]), solve(chain, words, rng=rng))


def _uneven(rng: random.Random, words: tuple[str, ...]) -> str:
    return rng.choices(words, weights=UNEVEN[: len(words)])[0]
