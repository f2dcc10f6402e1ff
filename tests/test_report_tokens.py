"""What a report says of an annotation's tokens: places, levels, evidence that is short, digests, files of earlier reports."""

from __future__ import annotations

from fractions import Fraction

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.masks import Critical
from cft.report import profile
from tests.fakes import row


def test_a_place_in_the_response_is_exact_at_the_edges_and_the_filter_of_the_page_agrees() -> None:
    rows = [row(list(range(1, n + 1)), outcomes=[[t % 2, 0] for t in range(n)], number=n) for n in range(1, 61)]
    places = [(n, t, t % 2 == 0) for n in range(1, 61) for t in range(n)]
    found = profile.profile(rows, mask=Critical()).of("position")
    assert [b.label for b in found] == [f"{10 * at}%-{10 * (at + 1)}%" for at in range(10)]
    for at, one in enumerate(found):
        exact = [critical for n, t, critical in places if Fraction(at, 10) <= Fraction(t, n) < Fraction(at + 1, 10)]
        filtered = [c for n, t, c in places if 100 * t >= 10 * at * n and 100 * t < 10 * (at + 1) * n]  # page.js
        assert exact == filtered
        assert (one.tokens, one.critical) == (len(exact), sum(exact))


def test_the_sixth_and_seventh_tenth_of_the_shipped_annotation() -> None:
    found = profile.profile(AnnotationStore(SHIPPED / "tiny_arith").rows(), mask=Critical()).of("position")
    assert [(one.critical, one.tokens) for one in found[5:7]] == [(2_550, 7_895), (2_976, 7_693)]
