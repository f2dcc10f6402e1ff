r"""Equations, bases, complex numbers, values at points, words, units, names: each line is gold | answer | verdict.

"not right" is for what nobody need decide, as long as it is not taken for the gold answer.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.verifiers import Math
from cft.verifiers.algebra import equal_by_algebra
from cft.verifiers.measures import compound
from cft.verifiers.values import NoValueError, same_values, value

MATH = Math(fallback_last_number=True, lists="set")

TABLE = r"""
x=9 | x^2=9 | not right
x=3 | 5x=3 | not right
y=3x+7 | 2y=3x+7 | not right
y=3x+7 | -y=3x+7 | not right
y=2 | \frac{1}{y}=2 | not right
y=x^2 | \ln y=x^2 | not right
x^2 | \ln(y)=x^2 | not right
z^2 | x y=z^2 | not right
z^2 | \text{the area}=z^2 | right
x=-3 | -x=-3 | not right
f(x)=x-1 | -f(x)=x-1 | not right
r=1+\sqrt q | r^2=1+\sqrt q | not right
3x+7 | 2y=3x+7 | not right
3x+7 | y=3x+7 | right
x=3 | x=6/2=3 | right
2x+y=7 | 7-2x=y | right
\frac35 | \cos A=\frac35 | right
\sqrt{5} | AB=\sqrt5 | right
x=9 | 9 | right
(1,2) | (x,y)=(1,2) | right
(x,y)=(1,2) | (1,2) | right
(x,y)=(1,2) | (x,y)=(1,3) | wrong
(1,2) | (x,y)=(2,1) | wrong
(1,2),(3,4) | (x,y)=(3,4), (x,y)=(1,2) | right
\frac12 | P(X=2)=\frac12 | right
\frac{x+1}{2} | f^{-1}(x)=\frac{x+1}{2} | right
2x | \frac{dy}{dx}=2x | right
\sqrt5 | |z|=\sqrt5 | right
\sqrt5 | |z|=\sqrt6 | wrong
\frac{n(n+1)}{2} | S_n=\frac{n(n+1)}{2} | right
\sum_{i=1}^n i^2 | \sum_{i=1}^n i^2 | right
y=\sum_{i=1}^n i | \sum_{i=1}^n i | right
\log_2 8 = 3 | 3 | right
3 | 2x+1=7 | not right
a+b=5 | a+b=6 | wrong
9 | x^2=9 | not right
4321_5 | 4321_6 | wrong
101_2 | 101_{3} | wrong
25_{7} | 25_{8} | wrong
4321_5 | 4321 | right
4321_5 | 4321_{\text{five}} | right
4321_5 | 4322_5 | wrong
(1+i)^2 | 2i | right
1.5+0.5i | \frac32+\frac12 i | right
\frac{3+i}{2} | 1.5+0.5i | right
i^2 | -1 | right
\frac1i | -i | right
2e^{i\pi/3} | 1+i\sqrt3 | right
\frac{1+i}{\sqrt2} | e^{i\pi/4} | right
0.5i | \frac i2 | right
1+i | 1-i | wrong
2+3i | 3+2i | wrong
\sqrt{x^3} | x\sqrt x | right
\ln(xy) | \ln x+\ln y | right
\ln x^2 | 2\ln x | right
2\log_5 x | \log_5 x^2 | right
\log_3(x/y) | \log_3 x-\log_3 y | right
\sqrt x/\sqrt y | \sqrt{x/y} | right
0.1t | \frac{t}{10} | right
\frac{1}{10}t | \frac{t}{10} | right
0.1e^{0.2t} | \frac{1}{10}e^{t/5} | right
\frac{t}{4}\sin(2t) | (t)/(4) \sin (2 t) | undecided
2/3 \sqrt3 | \frac{2\sqrt3}{3} | undecided
1/2 x | \frac x2 | undecided
pi/2 | \frac{\pi}{2} | right
2pi | 2\pi | right
2*pi | 2\pi | right
2\pi | 2*pi | right
2\sqrt{3} | 2sqrt(3) | right
1.5 x 10^3 | 1500 | right
|x| | x | wrong
\ln|x|+C | \ln x+C | wrong
\ln|x| | \frac12\ln x^2 | right
3.14159 | \pi | wrong
6 | 3!=6 | right
7 | 3!=6 | wrong
\text{A and B} | \text{B and A} | right
\text{Option A} | A | right
\text{(B) } 5 | 5 | right
\text{(B) } 5 | 6 | wrong
\pi | 3.141593 | right
\sqrt2 | 1.414214 | right
\frac{3\sqrt3}{4} | 1.299038 | right
1.299038 | \frac{3\sqrt3}{4} | right
\frac{\ln2}{3} | 0.231049 | right
\pi | 3.14 | wrong
\pi | 3.141692 | wrong
\text{BAC} | \text{CAB} | wrong
\text{DCBA} | \text{ABCD} | wrong
\text{SAS} | \text{SSA} | wrong
\text{no} | \text{on} | wrong
\text{eat} | \text{tea} | wrong
BAC | CAB | undecided
ab | ba | right
(-\infty,\infty) | \text{all real numbers} | right
\text{all real numbers} | (-\infty,\infty) | right
\text{all real numbers} | \mathbb{R} | right
\mathbb R | (-\infty,\infty) | right
\text{no solution} | \emptyset | right
\emptyset | \text{no solution} | right
\text{DNE} | \text{does not exist} | right
\text{no solution} | 12 | wrong
\text{no solution} | (-\infty,\infty) | wrong
\text{no solution} | x=3 | wrong
3 | \text{three} | right
0 | \text{zero} | right
3 | \text{four} | wrong
\text{A and C} | A, C | right
\text{A and C} | A, B | wrong
A,C | \text{A and C} | right
\text{I and II} | \text{I, II} | right
\text{I and II} | \text{I, III} | wrong
\infty | infinity | right
infinity | \infty | right
\text{quadrant II} | II | right
7^{\text{th}} | 7 | right
(A) | (A)\ 12 | right
\text{(A) } 5 | \text{(A)} | right
\text{(B) } 12 | B | right
\text{(B) } 12 | \text{(A)} | wrong
\overline{AB} | AB | right
x^2+1 | \text{a parabola} | undecided
2 \text{ hours } 30 \text{ minutes} | 2.5 \text{ hours} | right
2 \text{ hours } 30 \text{ minutes} | 150 \text{ minutes} | right
2 \text{ hours } 30 \text{ minutes} | 2 \text{ hours } 31 \text{ minutes} | wrong
5\text{ feet } 6\text{ inches} | 66\text{ inches} | right
5\text{ feet } 6\text{ inches} | 65\text{ inches} | wrong
6\sqrt3\text{ cm} | 6\sqrt3\text{ m} | wrong
6\sqrt3\text{ cm} | 6\sqrt3 | right
6\sqrt3\text{ m} | 600\sqrt3\text{ cm} | right
6\sqrt3\text{ cm} | 6\sqrt3\text{ kg} | wrong
5\text{ km/h} | 5\text{ m/s} | wrong
18\text{ km/h} | 5\text{ m/s} | right
5\text{ km/h} | 5 | right
a=3, b=4 | 4, 3 | undecided
a=3, b=4 | 3, 4 | right
x=1,y=2 | 2,1 | undecided
x=1,y=2 | (2,1) | undecided
x=1,y=2 | (1,2) | right
a=1,b=2 | a=2,b=1 | wrong
a=1,b=2 | b=2,a=1 | right
x=5,y=-3 | x=-3,y=5 | wrong
a=3,b=4 | 5,6 | wrong
x > 3 | y > 3 | not right
x > 3 | x > 4 | wrong
x > 3 | (3,\infty) | right
\begin{pmatrix}1&2\\3&4\end{pmatrix} | 1,2,3,4 | not right
\begin{pmatrix}1&2\\3&4\end{pmatrix} | (1,2,3,4) | not right
\begin{pmatrix}1\\2\end{pmatrix} | (1,2) | right
\begin{pmatrix}1\\2\end{pmatrix} | (2,1) | wrong
x=1,2 | 1,2 | right
x=1 \text{ or } x=2 | 1,2 | right
\{x \mid x=2k\} | \{x \mid x=2k+1\} | not right
x+y=6 | x+y=7 | wrong
y=\frac{x}{2} | \frac{x}{2} | right
x \in [1,2] | [1,2] | right
x^2+y^2=4 | x^2+y^2=5 | wrong
"""


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_an_answer_is_right_only_if_it_says_what_the_gold_answer_says(line: str) -> None:
    *sides, expected = line.split(" | ")
    gold, answer = sides
    found = str(MATH(f"\\boxed{{{answer}}}", gold).decision)
    assert found in ("wrong", "undecided") if expected == "not right" else found == expected


@pytest.mark.parametrize("gold", sorted({line.split(" | ")[0] for line in TABLE.strip().splitlines()}))
def test_every_gold_answer_is_right_for_itself(gold: str) -> None:
    assert str(MATH(f"\\boxed{{ {gold} }}", gold).decision) == "right"


INTEGERS = st.integers(-9, 9)


@settings(max_examples=40, deadline=None)
@given(INTEGERS, INTEGERS, INTEGERS, INTEGERS)
def test_products_of_complex_numbers_against_python(a: int, b: int, c: int, d: int) -> None:
    product = complex(a, b) * complex(c, d)
    gold, wrong = (f"{int(product.real) + off}+{int(product.imag)}i" for off in (0, 1))
    answer = f"({a}+{b}i)({c}+{d}i)"
    assert equal_by_algebra(gold, answer)[0] == "right"
    assert equal_by_algebra(wrong, answer)[0] == "wrong"


def test_values_that_agree_to_thirty_digits_are_not_equal() -> None:
    import sympy

    near = sympy.exp(sympy.pi * sympy.sqrt(163))  # an integer and 744 to 7.5e-13
    assert same_values(near, sympy.Integer(640320**3 + 744)) is False
    assert same_values(sympy.Integer(2) ** 40, sympy.Integer(2**40 + 1)) is None  # rational: sympy is exact there


def test_signs_are_tried_where_both_sides_are_real() -> None:
    from sympy import Abs, Symbol, log, sqrt

    x, y = Symbol("x", real=True), Symbol("y", real=True)
    assert same_values(Abs(x), x) is False
    assert same_values(sqrt(x**2), x) is False
    assert same_values(log(x * y), log(x) + log(y)) is True
    assert same_values(log(x * y), log(x) * log(y)) is False


def test_a_tower_of_powers_is_never_evaluated() -> None:
    from sympy import Integer, Pow, Symbol, exp

    nine = Integer(9)
    tower = Pow(nine, Pow(nine, Pow(nine, nine, evaluate=False), evaluate=False), evaluate=False)
    x = Symbol("x", real=True)
    for hostile in (
        tower,
        Pow(x, tower, evaluate=False),
        exp(exp(exp(nine))),
        Pow(x, 10**30),
        sum(x**i for i in range(900)),
    ):
        start = time.process_time()
        with pytest.raises(NoValueError):
            value(hostile, {"x": 1.5})
        assert time.process_time() - start < 1.0


@given(st.integers(0, 99), st.integers(0, 59))
def test_hours_and_minutes_are_minutes(hours: int, minutes: int) -> None:
    found = compound(f"{hours} hours {minutes} min")
    assert found is not None
    assert found[0] == "time"
    assert found[1] == (hours * 60 + minutes) * 60
    assert compound(f"{minutes} min {hours} hours") is None  # larger units come first
