"""The page in a real browser: opens fast, filters, hovers, is moved through by keyboard, shows hostile text as text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from cft.cli.report import run as main
from cft.masks import Critical
from cft.report.build import build_report
from cft.report.tokens import Evidence
from tests.browser import Browser, executable
from tests.fakes import row
from tests.results import arm, draws, write_run

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
OPENS_WITHIN_MS = 3000

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(executable() is None, reason="no chromium on the path (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.started(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def shipped_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms beside the 1,868 responses that ship with the package."""
    root = tmp_path_factory.mktemp("runs with = and spaces")
    for i, mask in enumerate(("all", "critical", "random_like_critical")):
        for seed in (0, 1, 2):
            write_run(root, f"{mask}{seed}", arm(mask), seed=seed, correct=draws(10 * i + seed, 0.5))
    assert main([str(root), "--annotation", "tiny_arith", "--out", str(root / "out")]) == 0
    return root / "out" / "report.html"


@pytest.fixture
def page(browser: Browser, shipped_page: Path) -> Iterator[Browser]:
    """The page freshly opened; whatever a test does, the console stays clean."""
    browser.open(shipped_page)
    browser.wait_for("document.documentElement.dataset.ready")
    browser.wait_for("document.querySelectorAll('.t').length")
    browser.evaluate("document.getElementById('controls').scrollIntoView()")
    yield browser
    assert browser.errors == []


def status(page: Browser) -> str:
    return page.evaluate("document.getElementById('status').textContent")


def choose(page: Browser, element: str, value: str, *, event: str) -> None:
    page.evaluate(
        f"(() => {{ const e = document.getElementById('{element}'); e.value = '{value}';"
        f" e.dispatchEvent(new Event('{event}', {{bubbles: true}})) }})()"
    )


def test_the_shipped_annotation_opens_in_time_and_only_what_is_seen_is_drawn(page: Browser) -> None:
    """From the start of the navigation to the last statement of the script, by the browser's own clock."""
    assert int(page.evaluate("document.documentElement.dataset.ready")) < OPENS_WITHIN_MS
    assert status(page) == "1,868 of 1,868 responses, 76,223 of 76,223 tokens, 25,986 of them critical (34 %)"
    assert page.evaluate("document.querySelectorAll('.card').length") == 1868
    assert 0 < page.evaluate("document.querySelectorAll('.t').length") < 3000


def test_scrolling_draws_the_last_response_and_drops_the_first(page: Browser) -> None:
    page.evaluate("(() => { const l = document.getElementById('responses'); l.scrollTop = l.scrollHeight })()")
    assert page.wait_for("document.querySelector('.card:last-child .response')?.textContent").endswith("<eos>")
    assert page.wait_for("!document.querySelector('.card:first-child').firstChild")
    assert page.evaluate("document.querySelectorAll('.t').length") < 3000


def test_hovering_shows_alternatives_where_they_led_and_the_verdict(page: Browser) -> None:
    page.hover("#responses .t:nth-child(9)")
    text = page.wait_for("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText")
    cells = [line.split() for line in text.splitlines() if line.strip()]
    assert cells[0] == ["rank", "token", "probability", "answer", "verdict"]
    assert cells[1] == ["chosen", "␣3", "93.9", "%", "9", "right"]
    assert cells[2] == ["2", "␣4", "3.8", "%", "10", "wrong"]
    assert cells[3] == ["3", "␣2", "0.9", "%", "8", "wrong"]
    assert text.splitlines()[-1] == "critical digit, token 9 of 42, entropy 0.34 nats"
    box = page.evaluate(
        "(r => [r.left, r.top, r.right, r.bottom])(document.getElementById('tip').getBoundingClientRect())"
    )
    assert box[0] >= 0
    assert box[1] >= 0
    assert box[2] <= page.evaluate("innerWidth")
    assert box[3] <= page.evaluate("innerHeight")
    page.hover("#status")
    assert page.wait_for("document.getElementById('tip').hidden")


def test_the_keyboard_reaches_tokens_and_their_alternatives(page: Browser) -> None:
    page.evaluate("document.getElementById('reset').focus()")
    place = "[...document.querySelectorAll('.card:first-child .t')].indexOf(document.activeElement)"
    for _ in range(3):  # the list itself may be a stop
        page.press("Tab")
        if page.evaluate(place) >= 0:
            break
    assert page.evaluate(place) == 0
    assert page.evaluate("document.getElementById('tip').hidden") is False
    page.press("ArrowRight")
    assert page.evaluate(place) == 1
    page.press("ArrowDown")
    assert page.evaluate("document.activeElement.classList.contains('critical')")
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.press("End")
    assert page.evaluate("document.activeElement.textContent") == "<eos>"
    page.press("Escape")
    assert page.evaluate("document.getElementById('tip').hidden")
    page.press("Tab")
    assert page.evaluate("document.activeElement.closest('.card')?.dataset.r") == "1"  # one stop a response


def test_filters_by_kind_level_place_and_text(page: Browser, shipped_page: Path) -> None:
    page.evaluate("document.querySelectorAll('#kind-choice input').forEach(b => b.dataset.kind === '1' || b.click())")
    assert status(page) == "1,868 of 1,868 responses, 10,262 of 76,223 tokens, 8,344 of them critical (81 %)"
    page.wait_for("document.querySelectorAll('.t.dim').length")
    assert page.evaluate("[...document.querySelectorAll('.t:not(.dim)')].every(t => /[-+*/=$]/.test(t.textContent))")
    choose(page, "level", "2", event="change")
    assert "8,344 of 76,223 tokens, 8,344 of them critical (100 %)" in status(page)
    page.evaluate("document.getElementById('reset').click()")
    assert "76,223 of 76,223" in status(page)
    with (shipped_page.parent / "critical_tokens.csv").open(newline="") as handle:
        tenths = [line for line in csv.DictReader(handle) if line["by"] == "position"]
    assert len(tenths) == 10
    for low, tenth in zip(range(0, 100, 10), tenths, strict=True):
        choose(page, "from", str(low), event="input")
        choose(page, "to", str(low + 10), event="input")
        counted = f"{int(tenth['tokens']):,} of 76,223 tokens, {int(tenth['critical']):,} of them critical"
        assert counted in status(page)  # as in the figure of the same page
    page.evaluate("document.getElementById('reset').click()")
    choose(page, "search", "cookies", event="input")
    count = page.evaluate("document.querySelectorAll('.card').length")
    assert 0 < count < 1868
    page.wait_for("document.querySelectorAll('.problem').length")
    assert page.evaluate(
        "[...document.querySelectorAll('.card')].every(c => !c.firstChild || /cookies/i.test(c.textContent))"
    )
    choose(page, "search", "no such text", event="input")
    assert status(page) == "0 of 1,868 responses, 0 of 76,223 tokens, 0 of them critical"


def test_the_order_can_be_by_share_of_critical_tokens(page: Browser) -> None:
    share = "Number(/\\((\\d+) %\\)/.exec(document.querySelector('.card .note').textContent)[1])"
    found = {}
    for order in ("most", "least"):
        choose(page, "order", order, event="change")
        page.wait_for("document.querySelectorAll('.card .note').length")
        found[order] = page.evaluate(share)
    assert found["least"] < 34 < found["most"]


@pytest.mark.parametrize("scheme, light", [("light", True), ("dark", False)])
def test_text_is_readable_in_both_schemes(page: Browser, scheme: str, light: bool) -> None:
    """Contrast of at least 4.5 (WCAG AA) for text on paper and on both token colors."""
    page.prefer(scheme)
    ratios = page.evaluate(
        """(() => {
        const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const lum = c => { const [r, g, b] = c.map(v => linear(v / 255));
          return .2126 * r + .7152 * g + .0722 * b };
        const ratio = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q - p); return (x + .05) / (y + .05) };
        const paper = rgb(getComputedStyle(document.body).backgroundColor);
        const of = selector => { const s = getComputedStyle(document.querySelector(selector));
          return ratio(rgb(s.color), s.backgroundColor.endsWith(', 0)') ? paper : rgb(s.backgroundColor)) };
        return [lum(paper), ...['body', '.t.critical', '.t.wavering', '.card .note', '.legend .critical'].map(of)] })()"""
    )
    assert (ratios[0] > 0.5) is light
    assert min(ratios[1:]) >= 4.5
    page.prefer("light")


def test_hostile_text_is_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    length = len(HOSTILE)
    one = row(
        [1, 2, 0],
        outcomes=[[0, 0], [0, 1], [1, -1]],
        response=HOSTILE,
        char_span=[[0, 9], [9, length], [length, length]],
    )
    for position in one.alt_answer:
        position[:] = [HOSTILE, HOSTILE]
    evidence = Evidence([one], Critical(), lambda ids: HOSTILE if ids[0] else "<eos>")
    path = build_report(tmp_path, comparisons=[], evidence=evidence, title=HOSTILE, lead=HOSTILE)
    browser.open(path)
    browser.wait_for("document.querySelectorAll('.response').length")
    assert browser.evaluate("document.querySelector('.response').textContent") == HOSTILE + "<eos>"
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert browser.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    browser.evaluate("document.getElementById('controls').scrollIntoView()")
    browser.hover(".t")
    assert "<script>document.title" in browser.wait_for(
        "document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText"
    )
    assert browser.errors == []
