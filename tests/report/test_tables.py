"""The comparison in the terminal, as markdown and as LaTeX; text that comes from models is harmless."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cft.report.arms import Comparison
from cft.report.compare import compare
from cft.report.read import collect
from cft.report.tables import comparison_table, latex, markdown
from cft.report.text import one_line, printable
from tests.results import arm, compared, draws, grid, write_run


def test_printable_text_cannot_move_a_cursor_or_reorder_a_line() -> None:
    assert printable("a\x1b[2J\x07\r\n\x9bb\u202ec\ud800\t.") == "a␛[2J␇␍\n\ufffdb\ufffdc\ufffd    ."
    assert one_line("ab\ncd", limit=4) == "ab⏎…"


@pytest.mark.parametrize("width", [80, 140, 400])
def test_the_terminal_table_fits_and_shows_every_arm(comparison: Comparison, width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_table(comparison, width=width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    for one in comparison.arms:
        value = one.metrics["eval/accuracy"].interval
        assert any(
            one.label in line and f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" in line for line in lines
        )


def test_a_table_says_what_it_has_no_room_for(tmp_path: Path) -> None:
    settings = {"settings": {"optimizer.lr": 1e-4}}
    for seed in (0, 1):
        write_run(tmp_path, f"a{seed}", arm("all"), seed=seed, correct=draws(seed, 0.4), **settings)
        write_run(
            tmp_path,
            f"b{seed}",
            arm("critical", "a_long_name_of_a_weighting"),
            seed=seed,
            correct=draws(9, 0.5),
            **settings,
        )
    found = compared(tmp_path)
    titles, _ = grid(found)
    for width in (80, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(comparison_table(found, width=width))
        text = " ".join(console.export_text().split())
        named = text.partition("No space here for ")[2].partition(": see comparison.md")[0].split(", ")
        header = text.partition("interval]")[2]
        for name in titles:
            assert (name in named) != (name.split()[0] in header.partition("No space")[0])
        if width == 200:
            assert "lr" in header.partition("No space")[0]
            assert "entropy (nats)" in header.partition("No space")[0]


def test_the_markdown_table_has_every_cell_of_the_page(comparison: Comparison) -> None:
    titles, rows = grid(comparison)
    lines = [line for line in markdown([comparison]).splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [table[0], *table[2:]] == [titles, *rows]
    assert all(set(cell) <= {":", "-"} for cell in table[1])


def test_the_table_for_papers_is_booktabs_with_plain_text_escaped(tmp_path: Path) -> None:
    write_run(tmp_path, "a", arm("all"), seed=0, correct=[1, 0])
    write_run(tmp_path, "b", arm("50%_&#"), seed=0, correct=[1, 1])
    text = latex(compare(collect([tmp_path])))
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"50\%\_\&\#", r"\begin{tabular}{lr"):
        assert part in text
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    columns = {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")}
    assert len(columns) == 1
