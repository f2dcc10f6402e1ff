"""The numbers and the example of README and docs about the shipped annotation are real, and tables of codes are complete."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cft.annotation.kinds import count_kinds, token_texts
from cft.annotation.rows import OPTIONAL, ROW_SCHEMA
from cft.annotation.store import SHIPPED, AnnotationStore
from cft.masks import Critical
from cft.report.explorer import OUTCOME_WORDS
from cft.shipped import CONF_DIR
from cft.types import AnnotatedResponse, Outcome
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
FORMAT = (ROOT / "docs" / "reference" / "annotation-format.md").read_text(encoding="utf-8")

_ROWS: list[AnnotatedResponse] = []


def shipped() -> list[AnnotatedResponse]:
    if not _ROWS:
        _ROWS.extend(AnnotationStore(SHIPPED / "tiny_arith").rows())
    return _ROWS


def test_the_numbers_about_the_shipped_annotation() -> None:
    rows = shipped()
    mask = Critical()
    share = {kind.kind: kind.critical / kind.tokens for kind in count_kinds(rows, mask=mask)}
    whole = np.concatenate([mask(row) for row in rows]).mean()
    stated = (
        f"The package ships with an annotation of {len(rows):,} responses. Of their tokens, {whole:.1%} are critical: "
        f"{share['operator']:.0%} of the operators, {share['digit']:.0%} of the digits, {share['word']:.0%} of the words."
    ).replace("%", " %")
    assert stated in " ".join(README.split())


def example() -> AnnotatedResponse:
    problem = re.search(r"problem: \*(.*?)\*\)", " ".join(README.split()))
    assert problem
    return next(row for row in shipped() if row.problem == problem.group(1))


def test_the_example_is_a_shipped_response_with_its_critical_tokens() -> None:
    row = example()
    shown = ""
    for text, weight in zip(token_texts(row), Critical()(row), strict=True):
        word = text.strip()
        shown += " " + (f"**{word}**" if weight > 0 else word) if word else ""
    # Words and punctuation close up; the tokens of a number stay apart.
    shown = re.sub(r" ([.,;])", r"\1", shown).strip()
    assert f"> {shown}\n" in README


def test_the_alternatives_of_the_example_are_the_stored_ones(tiny_arith_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)
    row = example()
    texts = [text.strip() for text in token_texts(row)]
    stated = re.findall(r"^\| `(\S+)` \(first\) \| ([\d.]+) \| (.*?) \| (.*?) \| (not )?critical \|$", README, re.M)
    assert len(stated) == 2
    for name, probability, *cells, negation in stated:
        t = texts.index(name)
        assert f"{np.exp(row.logprob[t]):.3f}" == probability
        assert bool(Critical()(row)[t]) is (not negation)
        for k, cell in enumerate(cells):
            outcome = Outcome(int(row.alt_outcome[t, k]))
            alternative = tokenizer.decode([int(row.alt_ids[t, k])]).strip()
            tried = f"`{alternative}` → {row.alt_answer[t][k]}, {OUTCOME_WORDS[outcome]}"
            assert cell == ("not tried" if outcome == Outcome.UNTRIED else tried)


def test_the_table_of_outcomes_has_every_code() -> None:
    codes = re.findall(r"^\| (-?\d) \| (\w[\w ]*\w)", CONCEPTS, re.MULTILINE)
    assert {int(code): words for code, words in codes} == {int(o): OUTCOME_WORDS[o] for o in Outcome}


def test_the_table_of_columns_has_every_field() -> None:
    table = re.findall(r"^\| (`[^|]*`) \|", FORMAT, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(table))) == sorted([*ROW_SCHEMA.names, *OPTIONAL])


def test_the_counts_of_options_in_the_readme() -> None:
    groups = {"mask": "masks", "weighting": "weightings", "loss": "losses", "regularizer": "regularizers"}
    counts = {plural: len(list((CONF_DIR / group).glob("*.yaml"))) for group, plural in groups.items()}
    stated = re.findall(r"(\d+) (masks|weightings|losses|regularizers)", " ".join(README.split()))
    assert {word: int(count) for count, word in stated} == counts
