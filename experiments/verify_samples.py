r"""Test answers for measuring verifiers: gold answers unchanged, changed, and in equivalent forms; and seeded hostile answers.

`MathVerify` wraps math-verify without any code of this package, so that both can be tested on the same answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cft.types import Decision, Verdict

STYLES = {
    "boxed": "So it is \\boxed{%s}.",
    "####": "We get 7.\n#### %s\n",
    "phrase": "Therefore, the answer is %s.",
    "tag": "<answer>%s</answer> of 3",
}
BOXED = STYLES["boxed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MathVerify:
    """math-verify, called as in its documentation, but without its timeout signals, since the pool has a deadline."""

    name: ClassVar[str] = "math_verify"
    version: ClassVar[str] = "1"
    can_be_final: ClassVar[bool] = False

    def __call__(self, response: str, answer: str) -> Verdict:
        from math_verify import parse, verify

        gold = parse(f"\\boxed{{{answer}}}", parsing_timeout=0)
        given = parse(response, parsing_timeout=0)
        if not gold or not given:
            return Verdict(Decision.UNDECIDED, "", False, "not parsed")
        same = verify(gold, given, timeout_seconds=0)
        return Verdict(Decision.RIGHT if same else Decision.WRONG, str(given[-1])[:200], True, "math-verify")

    def final(self, text: str) -> bool:
        return False


def changed(gold: str) -> list[str]:
    """Answers that differ from the gold answer: each digit changed in turn, an additional term, a sign, a letter, a bound."""
    found = []
    for match in re.finditer(r"[0-9]", gold):
        found.append(gold[: match.start()] + str(9 - int(match.group())) + gold[match.end() :])
    if re.search(r"[0-9]", gold):
        found.append(f"{gold}+1")
        found.append(f"-({gold})" if re.search(r"[1-9]", gold) else f"{gold}-1")
    for match in re.finditer(r"(?<![\\A-Za-z])(?<!array\}\{)[a-z](?![A-Za-z])", gold):
        found.append(gold[: match.start()] + ("q" if match.group() != "q" else "p") + gold[match.end() :])
    swaps = {"\\le": "<", "<": "\\le", "\\ge": ">", ">": "\\ge", "\\cup": "\\cap", "\\sqrt": "\\ln", "\\sin": "\\cos"}
    for old, new in swaps.items():
        if re.search(re.escape(old) + r"(?![A-Za-z])", gold):
            found.append(gold.replace(old, f"{new} "))
    return list(dict.fromkeys(text for text in found if _bare(text) != _bare(gold)))


def equal_forms(gold: str) -> list[str]:
    """Equivalent spellings of the same answer."""
    found = [
        gold.replace("\\frac", "\\dfrac"),
        gold.replace(",", ", "),
        gold.replace("\\dfrac", "\\frac"),
        f" {gold} ",
        f"{gold}.",
    ]
    found += [re.sub(r"(?<![\\A-Za-z])\\left|\\right(?![A-Za-z])", "", gold), re.sub(r"\s+(?![A-Za-z0-9])", "", gold)]
    found.append(re.sub(r"\\frac\{([0-9]+)\}\{([0-9]+)\}$", r"\1/\2", gold))
    if re.fullmatch(r"-?[0-9]{1,15}", gold):
        found += [
            f"{gold}.0",
            f"\\frac{{{2 * int(gold)}}}{{2}}",
            f"x = {gold}",
            f"{gold} \\text{{ units}}",
            f"{int(gold):,}",
        ]
        found += [f"\\sqrt{{{int(gold) ** 2}}}"] if 0 < int(gold) < 10**6 else []
    elif re.fullmatch(r"-?[0-9]+\.[0-9]+", gold):
        found += [f"{gold}0", f"\\frac{{{gold.replace('.', '')}}}{{1{'0' * len(gold.partition('.')[2])}}}"]
    elif re.fullmatch(r"[-+0-9A-Za-z\\{}()^./ ]+", gold) and not re.search(
        r"\\text|[A-Za-z]{3,}(?<!sqrt|frac)\b", gold
    ):
        found += [f"{gold} + 1 - 1", f"1 \\cdot ({gold})", f"\\frac{{2({gold})}}{{2}}"]
    return list(dict.fromkeys(text for text in found if text != gold))


_HARD: list[Callable[[random.Random], str]] = [
    lambda r: f"{r.randint(2, 99)}^{{{r.randint(2, 99)}^{{{r.randint(2, 9999)}}}}}",
    lambda r: f"{r.randint(2, 9)}^{{{r.randint(10**3, 10**9)}}}",
    lambda r: f"{r.randint(10**2, 10**9)}!",
    lambda r: f"({r.randint(3, 9)}!)!",
    lambda r: f"\\binom{{{r.randint(10, 10**9)}}}{{{r.randint(2, 10**6)}}}",
    lambda r: f"\\sum_{{n=1}}^{{{r.randint(2, 10**5)}}} \\frac{{1}}{{n^{r.randint(1, 9)}}}",
    lambda r: f"\\sum_{{n=0}}^{{\\infty}} \\frac{{x^{{{r.randint(1, 9)}n}}}}{{n!}}",
    lambda r: f"\\prod_{{k=1}}^{{{r.randint(2, 10**6)}}} (k+{r.randint(1, 9)})",
    lambda r: f"\\int_0^{{{r.randint(1, 9)}}} e^{{x^{r.randint(2, 9)}}} \\sin(x^{r.randint(2, 9)}) dx",
    lambda r: (
        f"\\lim_{{x \\to {r.randint(0, 9)}}} \\frac{{\\sin(x^{{{r.randint(2, 99)}}})}}{{x^{{{r.randint(2, 99)}}}}}"
    ),
    lambda r: f"(a+b+c+{r.randint(1, 9)}d)^{{{r.randint(2, 5000)}}}",
    lambda r: f"{r.randint(2, 9)}^{{{r.randint(10, 9999)}}} \\pmod{{{r.randint(2, 10**7)}}}",
    lambda r: "\\sqrt{" * (n := r.randint(1, 30)) + f"x+{r.randint(2, 99)}" + "}" * n,
    lambda r: "\\frac{1}{1+" * (n := r.randint(1, 25)) + "x" + "}" * n,
    lambda r: r.choice("([{") * r.randint(1, 600) + "5",
    lambda r: "+".join(f"x^{{{n}}}" for n in range(r.randint(2, 90))),
    lambda r: "*".join(f"(a_{{{n}}}+{n})" for n in range(r.randint(2, 30))),
    lambda r: "\\sin(" * (n := r.randint(1, 12)) + f"x^{{{r.randint(1, 99)}}}" + ")" * n,
    lambda r: ",".join(f"\\sqrt{{{r.randint(2, 999)}}}" for _ in range(r.randint(2, 30))),
    lambda r: str(r.randint(0, 10 ** r.randint(1, 400))),
    lambda r: f"\\log_{{{r.randint(2, 9)}}}({r.randint(2, 9)}^{{{r.randint(2, 99999)}}})",
    lambda r: f"x^{{{r.randint(2, 999)}}}+y^{{{r.randint(2, 999)}}}=z^{{{r.randint(2, 999)}}}",
    lambda r: (
        "\\begin{pmatrix}"
        + "\\\\".join("&".join(f"x^{{{r.randint(2, 99)}}}" for _ in range(4)) for _ in range(4))
        + "\\end{pmatrix}"
    ),
    lambda r: "".join(r.choice("0123456789+-*/^_={}()[]\\$,.xyzabc !|'&%~\0\ud800é") for _ in range(r.randint(1, 200))),
]
GOLDS = ("\\sqrt{17}+\\ln 3", "271828", "x^{2}+\\frac{41}{7}y")


def hostile(count: int, *, seed: int) -> list[tuple[str, str]]:
    """(response, gold answer) pairs whose evaluation is extremely expensive or fails: complete, joined, truncated or with a
    changed sign. None of the answers equals its gold answer."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        text = _HARD[i % len(_HARD)](rng)
        if rng.random() < 0.4:
            text += rng.choice(["+", "-", "\\cdot ", "/", "=", ",", "^"]) + rng.choice(_HARD)(rng)
        if rng.random() < 0.2:
            text = text[: rng.randint(1, len(text))]
        if rng.random() < 0.2:
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice("{}()^!\\_=,'") + text[at:]
        made.append((rng.choice(list(STYLES.values())) % text, rng.choice(GOLDS)))
    return made


def _bare(text: str) -> str:
    return re.sub(r"[^\w<>+-]", "", text)
