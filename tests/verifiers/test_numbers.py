"""Numbers in answers, end to end: units and products of letters, commas, degrees, rounding, residues, words.

A table, one line a verdict: gold answer | answer in a box | verdict. "not right" leaves wrong or undecided open, where
the two differ but the reader of LaTeX may not know it.
"""

from __future__ import annotations

from fractions import Fraction

import pytest

from cft.verifiers import Math, Numeric
from cft.verifiers.latex import form_of, one_spelling, readable
from cft.verifiers.numbers import agrees, canonical, read_number
from cft.verifiers.units import is_unit

MATH = Math(fallback_last_number=True, lists="set")
NUMERIC = Numeric(fallback_last_number=True)

TABLE = r"""
6xy|6ab|not right
6xy|6|not right
- 2 a b|- 2 x y|not right
3xy^2|3yx^2|not right
2abc|2|not right
4 a b|4|not right
12 a b c|12|not right
10ab|10 ab^2|not right
8ab(a-b)|8ab|not right
\frac{1}{2}bh|\frac12|not right
\frac12 bh|\frac12 ab|not right
3x^2y|3yx^2|right
6xy|6yx|right
6xy|7xy|wrong
- 6 a b|-6ab|right
4s^2|4|not right
6d^2|6|not right
2A|2B|not right
3L|3M|not right
3X|3Y|not right
4Q|4|not right
5F|5G|not right
5\text{ m}|5|right
5\text{ cm}|5|right
5 cm|5|right
5 cm|5 m|wrong
5 m|5 m|right
5 apples|5|right
5\text{ apples}|5|right
5|5\text{ apples}|right
5|6\text{ apples}|wrong
5 \text{ m/s}|5|right
5 \mathrm{~m} / \mathrm{s}|5|right
5 \mathrm{~kg}|5|right
5 \mathrm{~cm}^2|5|right
5 \mathrm{~cm}^{2}|6|wrong
100 \text{ square units}|100|right
18|18 eggs|right
12 \text{ sq. ft}|12|right
(2,251,252)|(2, 251, 252)|right
[0,100]|[0, 100]|right
[0,100]|0 \le x \le 100|right
(1,200)|(1, 200)|right
(1,200)|1200|not right
\{1,200\}|\{1, 200\}|right
(5,120)|x=5, y=120|right
( 2 , 300 )|(2,300)|right
(1,200)|(1,201)|wrong
0,100|0, 100|right
1,234|1234|right
1{,}234|1234|right
1,\!234|1234|right
(1,\!234, 5)|(1234,5)|right
(1{,}234, 5)|(1234,5)|right
11,\! 111,\! 111,\! 100|11111111100|right
\$1,234|1234|right
1,234|1235|wrong
\sin 30^\circ|\frac12|right
\frac{\sqrt3}{2}|\sin 60^\circ|right
\tan 54^\circ|\cot 36^\circ|right
\cos 20|\cos 20^\circ|not right
30^\circ|30'|not right
60^\circ|60|right
90^{\circ}|90 \text{ degrees}|right
\sin(30^\circ)|\frac12|right
\sin{30^{\circ}}|\frac12|right
\sin 30^\circ|\frac13|wrong
2\sin 30^\circ|1|right
\sin 20^\circ|\sin 20^\circ|right
\sin 20^{\circ}|\sin 20°|right
\sin 20^{\circ}|\sin 21°|wrong
\sin(20^\circ+10^\circ)|\frac12|right
\tan 20^\circ + 10|\tan 20^\circ + 10|right
18|17.999999|wrong
0|0.000001|wrong
1|0.999999|wrong
\frac23|0.666667|right
2/3|0.666667|right
18|18.0|right
31/2|3 1/2|not right
1 1/2|11/2|not right
21|2 1|not right
123|1 2 3|not right
508|\mathbf{5 0 8}|right
508|\mathbf{5 0 9}|wrong
123|123|right
1 1/2|1.5|right
1 1/2|\frac{3}{2}|right
7 \pmod{11}|7|right
7 \pmod{11}|18 \pmod{11}|right
7 \pmod{11}|8 \pmod{11}|wrong
7 \pmod{11}|8|wrong
7 \pmod{11}|7 \pmod{12}|wrong
x \equiv 7 \pmod{11}|x\equiv 7\pmod{11}|right
1\pm\sqrt2|1-\sqrt2,1+\sqrt2|right
5|５|right
3|٣|right
5|６|wrong
2.5|2½|right
5|less than 5|not right
5|\text{more than } 5|not right
5|\text{at least } 5|not right
5|5\text{ more than }3|not right
20|\text{twenty}|right
3|\text{three}|right
0|\text{zero}|right
3|\text{four}|wrong
12|\text{ellipse}|wrong
\text{no solution}|12|wrong
\sqrt[3]4|\sqrt[3]{4}|right
0.\bar3|\frac13|right
0.\dot3|\frac13|right
0.\overline{3}|\frac13|right
x^-1|x^{-1}|right
x^-1|\frac1x|right
\frac{1}{2}bh|\frac12 bh|right
6\sqrt{3}ab|6\sqrt3|not right
4ab|4ba|right
4ab|4|not right
5 dollars|5|right
1 box|1|right
1\text{ box}|1|right
5 boys|5|right
5apples|5|right
18 miles per hour|18|right
18 mph|18|right
5 km/h|5|right
9.8 m/s^2|9.8|right
9.8 \text{ m/s}^2|9.8|right
5 m^2|5|right
5 \text{ m}^2|6|wrong
20^\circ C|20|right
20^\circ\text{F}|20|right
5 p.m.|5|right
5 a.m.|5|right
5th|5|right
36 \text{ units}^2|36|right
72 (pieces of toy train track)|72|right
5 out of the group|5|right
2 women|2|right
2xyz|2|not right
2abc|2bca|right
3pq|3|not right
10 \text{ V}|10|right
5 i|5|not right
5i|5|not right
2e|2|not right
7 hundred|700|right
$5|5|right
5 \text{ USD}|5|right
5 percent|0.05|right
5 %|5|right
5\%|5|right
5\text{ dozen}|60|right
2 pi|2|not right
2\pi|2|not right
2pi|2|not right
5\,000|5000|right
5{,}000|5000|right
5,000,000|5000000|right
[100,200)|100 \le x < 200|right
(100,200)|(100,201)|wrong
\{100,200,300\}|\{300,200,100\}|right
\{100,200,300\}|\{300,200,101\}|wrong
f(1,234)|f(1,234)|right
x = 1,234|1234|right
-1,234|-1234|right
(-1,234)|(-1, 234)|right
\sqrt{1,234}|\sqrt{1234}|right
1,234\pi|1234\pi|right
\frac{1,234}{5}|\frac{1234}{5}|right
\left(1,234\right)|(1, 234)|right
\cos 60^\circ|0.5|right
\cos 60^\circ|0.6|wrong
10\sin 50^\circ|10 \cos 40^\circ|right
10\sin 50^\circ|10 \cos 41^\circ|wrong
\sin x^\circ|\sin \frac{\pi x}{180}|right
45^\circ|\frac{\pi}{4}|not right
f'(x)=2x|f'(x)=2x|right
f''(x)|f''(x)|right
y' = 2x|y'=2x|right
\frac{1}{3}|0.333333|right
100|99.9999999|wrong
3 1/2|3.5|right
3 1/2|\frac72|right
3 1/2|31/2|wrong
1 000 000|1000000|right
12 345|12345|right
\frac 1 2|\frac12|right
2 \pmod 5|2|right
2 \pmod{5}|3|wrong
2|2 \pmod 5|right
2|7 \pmod 5|right
3|2 \pmod{5}|wrong
2\ (\text{mod } 5)|2|right
5|\text{five}|right
5|\text{five apples}|right
25|\text{twenty-five}|right
125|one hundred and twenty-five|right
25|\text{twenty-six}|wrong
1|\text{one of them}|not right
\text{one}|1|right
5|\text{no more than } 5|not right
5|about 5|right
5|x > 5|not right
5|\text{more than five}|not right
4^-1|\frac14|right
x^-2y|x^{-2}y|right
\sqrt[3]x|\sqrt[3]{x}|right
0.\bar{3}|\frac13|right
0.1\bar{6}|\frac16|right
0.\dot{1}4\dot{2}|\frac{142}{999}|right
0.\bar{3}|\frac14|wrong
\bar{x}|\bar{x}|right
1.2\bar3|1.2|wrong
١٢|12|right
２/３|2/3|right
"""


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_mathematical_answers(line: str) -> None:
    gold, answer, verdict = line.split("|")
    decision = MATH(f"So \\boxed{{{answer}}}.", gold).decision
    assert decision != "right" if verdict == "not right" else decision == verdict


@pytest.mark.parametrize(
    "response, gold, verdict",
    [
        # A product of letters is no number with a unit; a plausible unit is.
        ("\\boxed{6xy}", "6", "undecided"),
        ("\\boxed{12 a b c}", "12", "undecided"),
        ("\\boxed{8ab(a-b)}", "8", "undecided"),
        ("#### 5x", "5", "undecided"),
        ("#### 5xy", "5", "undecided"),
        ("\\boxed{2m}", "2", "right"),
        ("#### 2m", "2", "right"),
        ("#### 18 eggs", "18", "right"),
        ("#### 17 eggs", "18", "wrong"),
        ("\\boxed{7\\text{ dollars}}", "5", "wrong"),
        # Digits of any script, fractions in one character, thousands in a letter.
        ("\\boxed{５}", "5", "right"),
        ("\\boxed{٣}", "3", "right"),
        ("\\boxed{٣}", "4", "wrong"),
        ("#### 2½", "2.5", "right"),
        ("#### 2½", "2", "wrong"),
        ("#### 1.5k", "1500", "undecided"),
        # More or less than a number is not the number.
        ("#### less than 5", "5", "undecided"),
        ("\\boxed{\\text{more than } 5}", "5", "undecided"),
        ("\\boxed{\\text{at least } 5}", "5", "undecided"),
        ("\\boxed{5\\text{ more than }3}", "5", "undecided"),
        ("The answer is about 5.", "5", "right"),
        # Two units make one quantity.
        ("#### 10 hours 30 minutes", "10", "undecided"),
        ("#### 5 feet 6 inches", "5", "undecided"),
        # Numbers in words.
        ("The answer is twenty.", "20", "right"),
        ("\\boxed{twenty-three}", "23", "right"),
        ("\\boxed{twenty-three}", "24", "wrong"),
        ("\\boxed{none}", "5", "wrong"),
        # Whole numbers are exact.
        ("#### 17.999999", "18", "wrong"),
        ("#### 0.666667", "2/3", "right"),
        # A comma in brackets separates.
        ("\\boxed{(1,200)}", "1200", "undecided"),
        ("\\boxed{(1,\\!200)}", "1200", "right"),
    ],
)
def test_plain_numbers(response: str, gold: str, verdict: str) -> None:
    assert NUMERIC(response, gold).decision == verdict


def test_ballots_are_shared_by_equal_products_only() -> None:
    assert len({canonical(text) for text in ("6xy", "6ab", "6", "9")}) == 4
    assert canonical("6 \\text{ cm}") == canonical("6")


@pytest.mark.parametrize("above", [*range(0, 40, 7), 10**6])
@pytest.mark.parametrize("places", [6, 9, 12])
def test_rounding_is_for_numbers_that_need_it(above: int, places: int) -> None:
    """Against exact fractions: one unit in the last place off is right for a seventh, never for a whole number."""
    whole = read_number(str(above), whole=True)
    assert not agrees(read_number(f"{above}.{'1':0>{places}}", whole=True), whole)
    seventh = Fraction(7 * above + 1, 7)
    rounded = f"{round(seventh, places).numerator * 10**places // round(seventh, places).denominator:0{places + 1}d}"
    read = read_number(f"{rounded[:-places]}.{rounded[-places:]}", whole=True)
    assert agrees(read, read_number(f"{seventh.numerator}/7", whole=True))


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def test_numbers_in_words_are_read_as_they_are_counted() -> None:
    for value, word in enumerate(WORDS):
        assert read_number(word, whole=True).value == value
        assert read_number(f"twenty {word}" if 0 < value < 10 else f"\\text{{{word}}}", whole=True).value == (
            20 + value if 0 < value < 10 else value
        )
    assert read_number("two thousand three hundred and five", whole=True).value == 2305
    assert read_number("one third", whole=True).value is None


@pytest.mark.parametrize("unit", ["cm", "metres", "mph", "feet", "Hz", "m", "L"])
def test_units_are_known(unit: str) -> None:
    assert is_unit(unit)


@pytest.mark.parametrize("letters", ["xy", "ab", "abc", "x", "A", "M", "bh"])
def test_products_are_no_units(letters: str) -> None:
    assert not is_unit(letters)


def test_a_comma_separates_thousands_outside_brackets_alone() -> None:
    assert form_of("(2,251,252)").parts == ("2", "251", "252")
    assert form_of(readable("(1{,}234, 5)")).parts == ("1234", "5")
    assert form_of("1,234").kind == "one"
    assert form_of("0,100").parts == ("0", "100")
    assert one_spelling("(1,200)") == one_spelling("( 1, 200 )") != one_spelling("(1200)")


def test_plus_minus_is_not_the_beginning_of_another_command() -> None:
    assert form_of("7 \\pmod{11}").kind == "one"
    assert form_of("1\\pm 2").parts == ("1+ 2", "1- 2")


def test_degrees_count_in_trigonometric_functions_alone() -> None:
    assert one_spelling("30^\\circ") == one_spelling("30")
    assert one_spelling("\\cos 20^\\circ") != one_spelling("\\cos 20")
    assert one_spelling("30'") != one_spelling("30^{\\circ}")
