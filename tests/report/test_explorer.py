"""The token explorer's data, read back as the page's script reads it; it cannot end the element that holds it."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from cft.annotation.kinds import kind_of, token_texts
from cft.masks import Critical
from cft.report.explorer import OUTCOME_WORDS, OUTCOMES, explorer_json, packed, thousandths
from cft.report.text import printable
from cft.report.tokens import END, levels
from cft.types import AnnotatedResponse, Outcome
from tests.fakes import row

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\u2028\ud800\x00"
NAMES = ["<eos>", "2", " +", "3", "<b>", "</script>", "x\ny"] + [str(i) for i in range(7, 30)]


def decode(ids: Any) -> str:
    return "".join(NAMES[i] for i in ids)


def unpacked(column: str) -> list[int]:
    kind, _, text = column.partition(":")
    return np.frombuffer(base64.b64decode(text), dtype=f"<{kind}").tolist()


def utf16_slices(text: str, lengths: list[int]) -> list[str]:
    """As a script slices: by UTF-16 units."""
    data, shown, at = text.encode("utf-16-le", "surrogatepass"), [], 0
    for length in lengths:
        shown.append(data[2 * at : 2 * (at + length)].decode("utf-16-le", "surrogatepass"))
        at += length
    assert 2 * at == len(data)
    return shown


@pytest.mark.parametrize("largest, size", [(0, 1), (255, 1), (256, 2), (65_535, 2), (65_536, 4)])
def test_numbers_take_as_few_bytes_as_the_largest_needs(largest: int, size: int) -> None:
    assert packed([1, largest]).startswith(f"u{size}:")
    assert unpacked(packed([1, largest])) == [1, largest]
    assert unpacked(packed([])) == []


def test_magnitudes_in_thousandths_stay_within_two_bytes() -> None:
    values = np.array([0.0, -0.0004, -1.2345, 2.0, 400.0, np.inf, -np.inf, np.nan], np.float32)
    assert thousandths([values]).tolist() == [0, 0, 1234, 2000, 65534, 65534, 65534, 65535]


def test_every_token_of_every_row_is_there() -> None:
    response = "2 +é😀\nx"
    spans = [[0, 1], [1, 3], [3, 5], [5, 7], [7, 7]]
    outcomes = [[0, 0], [0, 1], [1, -1], [-2, -3], [1, -1]]
    one = row([1, 2, 3, 6, 0], outcomes=outcomes, response=response, char_span=spans)
    data = json.loads(explorer_json([one, one], mask=Critical(), decode=decode))
    assert data["count"] == [5, 5]
    assert data["k"] == 2
    shown = ["2", " +", "é😀", "⏎\nx", ""]
    assert utf16_slices(data["text"], unpacked(data["length"])) == shown * 2
    assert [data["name"][i] for i in unpacked(data["id"])][:5] == ["2", "␣+", "3", "x⏎y", "<eos>"]
    assert [data["name"][i] for i in unpacked(data["alternative"])][:2] == ["10", "11"]
    assert [data["outcomes"][i] for i in unpacked(data["outcome"])] == [
        OUTCOME_WORDS[Outcome(code)] for _ in range(2) for pair in outcomes for code in pair
    ]
    assert [data["answers"][i] for i in unpacked(data["answer_id"])] == ["7"] * 20
    assert unpacked(data["level"])[:5] == [2, 1, 0, 1, 0]  # a cut-off counts as wrong, an undecided one does not
    assert [data["kinds"][i] for i in unpacked(data["kind"])][:5] == ["digit", "operator", "word", "word", "end"]
    assert unpacked(data["logprob"]) == [500] * 10
    assert unpacked(data["alternative_logprob"]) == [1500] * 20
    assert unpacked(data["entropy"]) == [700] * 10


def test_model_text_cannot_end_the_element_or_break_the_json() -> None:
    one = row([5, 4], outcomes=[[0, 0], [0, 0]], response=HOSTILE, char_span=[[0, 9], [9, len(HOSTILE)]])
    for position in one.alt_answer:
        position[:] = [HOSTILE, HOSTILE]
    text = explorer_json([one], mask=Critical(), decode=decode)
    assert "<" not in text
    text.encode("utf-8")  # no lone surrogate
    data = json.loads(text)
    assert data["text"] == printable(HOSTILE)
    assert data["name"][:2] == ["</script>", "<b>"]
    assert data["answers"] == [printable(HOSTILE).replace("\u2028", "⏎")[:39] + "…"]


def test_the_shipped_annotation_fits_and_is_the_stored_one(shipped_rows: list[AnnotatedResponse]) -> None:
    rows = shipped_rows
    mask = Critical()
    text = explorer_json(rows, mask=mask, decode=lambda ids: f"t{ids[0]}")
    assert len(text) < 4e6
    data = json.loads(text)
    assert len(data["count"]) == len(rows)
    every = [unpacked(data[name]) for name in ("level", "kind", "outcome")]
    at = 0
    for one in rows[:50]:
        n = len(one.response_ids)
        assert [("plain", "wavering", "critical")[i] for i in every[0][at : at + n]] == levels(one, mask(one))
        assert [data["kinds"][i] for i in every[1][at : at + n]] == [kind_of(t) for t in token_texts(one)]
        assert [OUTCOMES[i] for i in every[2][2 * at : 2 * (at + n)]] == one.alt_outcome.ravel().tolist()
        at += n


def test_a_token_without_text_shows_a_sign() -> None:
    data = json.loads(explorer_json([row([1], outcomes=[[1, -1]])], mask=Critical(), decode=lambda ids: ""))
    assert data["name"] == [END]


def test_no_rows_are_valid_json() -> None:
    assert json.loads(explorer_json([], mask=Critical(), decode=decode))["count"] == []


def test_every_outcome_has_a_word() -> None:
    assert set(OUTCOMES) == set(Outcome)
