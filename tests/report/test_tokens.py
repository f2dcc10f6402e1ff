"""What a report says of an annotation's tokens: kinds, places, levels, evidence that is short."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from cft.annotation.kinds import count_kinds, kind_of
from cft.annotation.store import SHIPPED, AnnotationStore
from cft.cli.report import run as main
from cft.masks import Critical
from cft.report.tokens import LEVELS, levels, profile, spearman, terminal
from cft.types import AnnotatedResponse, Outcome
from tests.fakes import row
from tests.results import arm, read_csv, write_run


def test_kinds_of_tokens_and_their_counts(hostile: tuple[AnnotatedResponse, np.ndarray]) -> None:
    kinds = {
        "digit": ("12", "x2"),
        "operator": (" +", "=", "\\frac", "times"),
        "word": (" apples",),
        "punctuation": (".", " "),
        "line break": ("\n",),
        "end": ("",),
    }
    assert {kind: {kind_of(text) for text in texts} for kind, texts in kinds.items()} == {
        kind: {kind} for kind in kinds
    }
    one, mask = hostile
    counts = {c.kind: (c.tokens, c.critical) for c in count_kinds([one, one], mask=lambda _: mask)}
    assert sum(tokens for tokens, _ in counts.values()) == 14
    assert counts["line break"] == (2, 2)
    assert counts["end"] == (2, 0)


def test_the_profile_counts_each_token_once_in_each_view() -> None:
    one = row(
        [1, 2, 3, 4],
        outcomes=[[0, 0], [1, 0], [0, 0], [1, -1]],
        response="2 + a",
        char_span=[[0, 1], [1, 3], [3, 5], [5, 5]],
    )
    one = replace(
        one,
        entropy=np.array([0.0, 0.2, 0.02, 5.0], np.float32),
        logprob=np.log(np.array([1.0, 0.5, 0.95, 0.1], np.float32)),
    )
    found, _ = profile([one, one], mask=Critical())
    views = {
        "kind": {"digit": (2, 2), "operator": (2, 0), "word": (2, 2), "end": (2, 0)},
        "position": {"0%-10%": (2, 2), "20%-30%": (2, 0), "50%-60%": (2, 2), "70%-80%": (2, 0)},
        "entropy": {"0-0.001": (2, 2), "0.01-0.03": (2, 2), "0.1-0.3": (2, 0), "over 1.5": (2, 0)},
        "probability": {"0-0.2": (2, 0), "0.4-0.6": (2, 0), "0.9-0.99": (2, 2), "0.999-1": (2, 2)},
    }
    counted = found[found["tokens"] > 0]
    assert {
        by: {b.bin: (b.tokens, b.critical) for b in bins.itertuples()} for by, bins in counted.groupby("by")
    } == views
    assert found["fraction"].isna().sum() == (found["tokens"] == 0).sum()


def test_the_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    values, flags = rng.integers(0, 6, 200).astype(float), rng.random(200) < 0.3
    assert spearman(pd.Series(values), pd.Series(flags)) == pytest.approx(
        scipy.stats.spearmanr(values, flags).statistic
    )
    assert np.isnan(spearman(pd.Series(values), pd.Series(np.zeros(200, bool))))


def test_a_place_in_the_response_is_exact_at_the_edges_and_the_filter_of_the_page_agrees() -> None:
    rows = [row(list(range(1, n + 1)), outcomes=[[t % 2, 0] for t in range(n)], number=n) for n in range(1, 61)]
    places = [(n, t, t % 2 == 0) for n in range(1, 61) for t in range(n)]
    found, _ = profile(rows, mask=Critical())
    found = found[found["by"] == "position"]
    assert found["bin"].tolist() == [f"{10 * at}%-{10 * (at + 1)}%" for at in range(10)]
    for at, one in enumerate(found.itertuples()):
        exact = [critical for n, t, critical in places if Fraction(at, 10) <= Fraction(t, n) < Fraction(at + 1, 10)]
        filtered = [c for n, t, c in places if 100 * t >= 10 * at * n and 100 * t < 10 * (at + 1) * n]  # page.js
        assert exact == filtered
        assert (one.tokens, one.critical) == (len(exact), sum(exact))


def test_the_sixth_and_seventh_tenth_of_the_shipped_annotation(shipped_rows: list[AnnotatedResponse]) -> None:
    found, _ = profile(shipped_rows, mask=Critical())
    tenths = found.loc[found["by"] == "position", ["critical", "tokens"]].to_numpy().tolist()
    assert tenths[5:7] == [[2_550, 7_895], [2_976, 7_693]]


def test_every_token_has_its_level(hostile: tuple[AnnotatedResponse, np.ndarray]) -> None:
    one, mask = hostile
    assert levels(one, mask) == ["critical", "wavering", "plain", "critical", "plain", "plain", "plain"]
    with pytest.raises(ValueError, match="mask of 1 for 7 tokens"):
        levels(one, np.ones(1, np.float32))


def test_the_terminal_transcript_holds_no_escape_of_the_models(hostile: tuple[AnnotatedResponse, np.ndarray]) -> None:
    shown = terminal(*hostile)
    assert shown.plain == "2 +3⏎\n␛[2J<b>⏹"
    styled = {shown.plain[s.start : s.end] for s in shown.spans if "red" in str(s.style)}
    assert styled == {"2", "⏎\n"}


SETTLED = [
    (first, second)
    for first, second in product(Outcome, Outcome)
    if first == Outcome.RIGHT or Outcome.UNTRIED not in (first, second) or Outcome.UNDECIDED in (first, second)
]


@pytest.mark.parametrize("pair", SETTLED)
def test_the_legend_is_true_of_every_pair_of_outcomes(pair: tuple[Outcome, Outcome]) -> None:
    one = row([1], outcomes=[pair])
    (level,) = levels(one, Critical()(one))
    failed = [outcome in (Outcome.WRONG, Outcome.CUT_OFF) for outcome in pair]
    assert (level == "critical") == all(failed), LEVELS["critical"]
    assert (level == "wavering") == (failed[0] and not all(failed)), LEVELS["wavering"]
    assert "right" not in LEVELS["wavering"]  # the other may be undecided
    assert "cut off" in LEVELS["critical"]


def with_alternatives(rows: list[AnnotatedResponse], count: int) -> list[AnnotatedResponse]:
    """The rows with so many alternatives a position."""
    return [
        replace(
            one,
            **{name: getattr(one, name)[:, :count] for name in ("alt_ids", "alt_logprob", "alt_tokens", "alt_outcome")},
            alt_answer=[position[:count] for position in one.alt_answer],
        )
        for one in rows
    ]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run that says it was trained on the shipped annotation."""
    fingerprint = AnnotationStore(SHIPPED / "tiny_arith").manifest()["fingerprint_sha256"]
    data = {"annotation": "tiny_arith", "fingerprint": fingerprint}
    write_run(tmp_path / "runs", "a", arm("critical"), seed=0, correct=[1, 0], data=data)
    return tmp_path / "runs"


@pytest.mark.usefixtures("undrawn")
def test_the_explorer_shows_the_one_alternative_there_is(
    trained: Path, tmp_path: Path, shipped_rows: list[AnnotatedResponse], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = with_alternatives(shipped_rows[:20], 1)
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: rows)
    assert main([str(trained), "--out", str(tmp_path / "out")]) == 0
    kinds = [line for line in read_csv(tmp_path / "out" / "critical_tokens.csv") if line["by"] == "kind"]
    failed = sum(int(((one.alt_outcome == 0) | (one.alt_outcome == Outcome.CUT_OFF)).sum()) for one in rows)
    assert sum(int(line["critical"]) for line in kinds) == failed
    assert sum(int(line["tokens"]) for line in kinds) == sum(len(one.response_ids) for one in rows)
    assert 'id="explorer"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("held, asked", [(0, ()), (1, ("--num-alternatives", "2"))])
def test_too_little_evidence_leaves_the_explorer_out_and_is_an_error_where_it_was_asked_for(
    held: int,
    asked: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    shipped_rows: list[AnnotatedResponse],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = with_alternatives(shipped_rows[:20], held)
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: rows)
    assert main([str(trained), *asked, "--out", str(tmp_path / "out")]) == 0
    assert f"No token explorer: response {rows[0].response_id}" in capsys.readouterr().err
    assert 'id="explorer"' not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert main(["--annotation", "tiny_arith", *asked, "--out", str(tmp_path / "other")]) == 1
    assert f"the annotation holds {held}" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_of_wrong_responses_the_turning_tokens_are_shown_and_so_called(
    tmp_path: Path,
    shipped_rows: list[AnnotatedResponse],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same tokens with the other verdict: picked where an alternative ends right."""
    rows = [replace(one, verdict="wrong") for one in shipped_rows[:20]]
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: rows)
    assert main(["--annotation", "tiny_arith", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "turning  with another token in its place the answer is right" in " ".join(said.split("\n")).replace(
        "   ", "  "
    )
    assert "wavering" not in said
    turned = sum(int((one.alt_outcome[:, :2] == Outcome.RIGHT).any(1).sum()) for one in rows)
    kinds = [line for line in read_csv(tmp_path / "out" / "critical_tokens.csv") if line["by"] == "kind"]
    assert sum(int(line["critical"]) for line in kinds) == turned > 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "turning: with another token in its place the answer is right" in page
    assert '<option value="2">turning</option>' in page
    assert '"word":"turning"' in page


def test_no_alternative_at_all_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--annotation", "tiny_arith", "--num-alternatives", "0"])
    assert "whole number from 1 up" in capsys.readouterr().err
