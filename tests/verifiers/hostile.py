r"""Answers that overload computer algebra or parsers: power towers, factorials, nesting, long runs, broken text.

Each is the content of a \boxed{}, graded against a different answer. The only right verdict is "undecided", because they
cannot be evaluated in time.
"""

from __future__ import annotations

HOSTILE = {
    "tower": "10^{10^{10}}",
    "tower of three": "9^{9^{9^{9}}}",
    "tower without braces": "9^9^9^9",
    "tower in python": "9**9**9",
    "stacked brackets": "((((((9^9)^9)^9)^9)^9)^9)^9",
    "power tower and one": "2^{30^6}+1",
    "large exponent": "7^{99999999}",
    "negative exponent": "7^{-99999999}",
    "exponent in e notation": "2^{1e9}",
    "exponent as product": "2^{10 \\times 10000000}",
    "exponent in text": "2^{\\text{}99999999}",
    "exponent apart": "2 ^ { 99999999 }",
    "factorial": "100000000!",
    "factorial of a factorial": "((7!)!)!",
    "factorial of a power": "{10^{9}}!",
    "factorial in brackets": "(99999999)!",
    "binomial": "\\binom{10^9}{5}",
    "large binomial": "\\binom{123456789}{61728394}",
    "dbinom": "\\dbinom{10^{8}}{10^{7}}",
    "slow sum": "\\sum_{n=1}^{9999} \\frac{1}{n^n}",
    "long sum": "\\sum_{n=1}^{99999999} n!",
    "long product": "\\prod_{k=1}^{1000000} k",
    "nested sums": "\\sum_{i=1}^{99}\\sum_{j=1}^{99}\\sum_{k=1}^{99} \\frac{1}{i^j k}",
    "integral": "\\int_0^1 \\int_0^1 \\int_0^1 e^{x^x y^y z^z} dx dy dz",
    "power of a sum": "(a+b+c+d+e)^{5000}",
    "power modulo": "7^{7777} \\pmod{1000007}",
    "roots of roots": "\\sqrt{" * 30 + "7^{7^{7}}" + "}" * 30,
    "continued fraction": "\\frac{1}{1+" * 40 + "x" + "}" * 40,
    "3000 brackets": "(" * 3000 + "5" + ")" * 3000,
    "3000 square brackets": "[" * 3000 + "5" + "]" * 3000,
    "5000 digits": "7" * 5000,
    "5000 digits and a root": "\\sqrt{" + "7" * 5000 + "}",
    "many digits in many parts": ",".join(["7" * 100] * 10),
    "400 terms": "+".join(f"x^{n}" for n in range(400)),
    "limit": "\\lim_{x \\to 1} \\frac{\\sin(x^{19})}{x^{9}}" + "(a+b)" * 40,
    "deep fractions": "\\frac{" * 200 + "1" + "}{2}" * 200,
    "huge matrix": "\\begin{pmatrix}" + "\\\\".join(["&".join(["\\sqrt{x}"] * 9)] * 9) + "\\end{pmatrix}",
    "trigonometry": "\\sin(\\cos(\\tan(\\sin(\\cos(\\tan(x^{99}))))))^{99}",
    "logarithm of a tower": "\\log(10^{10^{10^{10}}})",
    "surrogates": "\ud800x+\udfff",
    "NUL": "x\0+\0y",
    "a million letters": "x+" * 500_000 + "x",
}

# Texts without an answer: wrong for every question.
UNANSWERED = {
    "30,000 open boxes": "\\boxed{" * 30_000,
    "broken text": "\ud800\0😀" * 1000,
    "many spaces": " " * 10**5,
    "many opened tags": "<answer>" * 25_000,
}
