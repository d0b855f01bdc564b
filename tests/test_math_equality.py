"""What is the same and what is only near it, kind by kind; exact on both sides."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.latex_answers import parse_answer
from rft_ray.latex_tree import Apply, Expression, Number, Power, Product, Sum, Symbol
from rft_ray.leniencies import Leniencies
from rft_ray.math_equality import Comparison
from rft_ray.math_values import are_different
from rft_ray.math_zero import same_value

EQUAL = r"""
0.5 ~ \frac12
x=5 ~ 5
y = 2x+3 ~ 2x-y+3=0
p(x) = x^2 ~ x^2
2x+2y=2 ~ x+y=1
x^2/4+y^2/3=1 ~ 3x^2+4y^2=12
-x < -5 ~ x > 5
x > 5 ~ (5,\infty)
-2 \le x < 7 ~ [-2,7)
x<2 \text{ or } x>3 ~ (-\infty,2)\cup(3,\infty)
(0,1)\cup[1,2) ~ (0,2)
x \ne 5 ~ (-\infty,5)\cup(5,\infty)
\mathbb{R}\setminus\{5\} ~ x\ne5
\{x \mid x>3\} ~ (3,\infty)
\pm 3 ~ -3, 3
x=\pm3 ~ x=3 \text{ or } x=-3
1,2 ~ \{2,1\}
\{1,1,2\} ~ \{1,2\}
\langle 1,2\rangle ~ (1,2)
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{bmatrix}1\\2\end{bmatrix}
2\begin{pmatrix}0&1\end{pmatrix}\begin{pmatrix}1\\3\end{pmatrix} ~ \begin{pmatrix}6\end{pmatrix}
(B) ~ \text{(B)}
90 ~ 90^\circ
\pi/2 ~ 90^\circ
\$36 ~ 36
15 cm^2 ~ 15 \text{ square centimeters}
50\% ~ 0.5
204_{5} ~ 204_{\text{five}}
3:4 ~ 6:8
(x-1)(x+1) ~ x^2-1
\frac{\sqrt3}{3} ~ \frac{1}{\sqrt3}
\frac{1}{1+\sqrt2} ~ \sqrt2-1
\sqrt{3+2\sqrt2} ~ 1+\sqrt2
\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5} ~ 1
\sin 18^\circ ~ \frac{\sqrt5-1}{4}
\tan^2 y+1 ~ \sec^2 y
2\sin b\cos a ~ \sin(a+b)-\sin(a-b)
e^{i\pi} ~ -1
\ln 8 ~ 3\ln 2
\log_2 8 ~ 3
\log_2\frac18 ~ -3
\frac12\frac23 ~ 1/3
x^2\frac12 ~ \frac{x^2}{2}
2\frac{x}{3}^2 ~ \frac{2x^2}{9}
2^{n+1} ~ 2 \cdot 2^n
10^{10^{10}} ~ 100^{5\cdot10^9}
|3-\pi| ~ \pi-3
\sqrt{x^2} ~ |x|
\sqrt[3]{-8} ~ -2
\arctan 1 ~ \frac{\pi}{4}
\frac{(n+1)!}{n!} ~ n+1
6.72\times10^{-5} ~ .0000672
1.5e-7 ~ 1.5 \cdot 10^{-7}
(x,y)=(1,2) ~ (1,2)
x=1, y=2 ~ y=2, x=1
5 \pmod 7 ~ 5
5m ~ 5 \text{ meters}
24 \text{ square units} ~ 24
\frac34 \text{ cup} ~ 0.75 \text{ cups}
5^{\text{th}} ~ 5
\{5\} ~ 5
e^{\ln 5} ~ 5
{5 \choose 2} ~ 10
\text{no solution} ~ \emptyset
3.5 \text{ or } 7/2 ~ 3.5
"""

UNEQUAL = r"""
\frac{1}{2004!} ~ \frac{1}{2006!}
\frac{1}{2^{99}} ~ \frac{1}{2^{98}}
n=2,3,4 ~ n=1,2,3
D=(0,1) ~ D=(0,1.5)
\pm 2021 ~ 2021
12:00 ~ 1:00
4:30 a.m. ~ 4:30 p.m.
x+2y+3z=4 ~ x+y+z=1
x-2y+z-1=0 ~ x-2y+z=0
0.0000001 ~ 0.00000011
0 ~ 10^{-30}
5 ~ 500
28\% ~ 28
\pi ~ 3.14159265358979
1/3 ~ 0.3333333333
(0,1) ~ [0,1)
(1,2) ~ (2,1)
(1,2) ~ \{1,2\}
(2,3) ~ 2,3
1,2 ~ 1
x=5 ~ y=5
52_8 ~ 52
52_8 ~ 42
x<5 ~ x\le5
x>5 ~ x<5
x \in (0,1) ~ y \in (0,1)
5 cm ~ 5 m
5 cm ~ 5
\$5 ~ \text{euros} 5
x ~ |x|
x ~ \sqrt{x^2}
\infty ~ -\infty
i ~ -i
10^{10^{10}} ~ 10^{10^{10}}+1
2^{100000} ~ 2^{100001}
x^{100000} ~ x^{100001}
(x+1)^{1000} ~ (x+1)^{1001}
\text{north} ~ \text{thorn}
B ~ C
7=11a+c ~ 11a+c
2x+z=1 ~ 1
a^2+b=0 ~ 0
x=5+5+1=7=11 ~ 11
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}1&2\end{pmatrix}
3:4 ~ 4:3
f(x)=x ~ f(x)=x^2
(0,1)\cup(1,2) ~ (0,2)
\{1,2,3\} ~ \{1,2,2\}
100! ~ 101!
a_1 ~ a_2
\{1\},\{2\} ~ \{1,2\}
0=0 ~ 0
24 \text{ square units} ~ 24 \text{ cubic units}
3.5 \text{ or } 4 ~ 3.5
x=5 \text{ or } y=5 ~ x=5
\sqrt2+\sqrt3 ~ \sqrt{5+2\sqrt6}+10^{-40}
"""

# Never `True`; whether they are equal is not known here, or they have no value.
UNDECIDED = r"""
10^{10^{10^{10}}} ~ 10^{10^{10}}
1000000! ~ 1000001!
\log 100 ~ 2
f(2) ~ 3
x^2 < 4 ~ (-2,2)
x^2 = 4 ~ -2, 2
x=x ~ y=y
(x-x-3)! ~ 0.5
\frac{x}{x-x} ~ 1
\pm 1 \pm \sqrt2 ~ 1+\sqrt2
"""


def pairs(table: str) -> list[tuple[str, str]]:
    return [tuple(line.split(" ~ ")) for line in table.strip().splitlines()]  # type: ignore[misc]


def compare(gold: str, other: str, **leniencies: object) -> bool | None:
    comparison = Comparison(Leniencies(**leniencies))  # type: ignore[arg-type]
    return comparison.same_answers(parse_answer(gold), parse_answer(other))


@pytest.mark.parametrize(("gold", "other"), pairs(EQUAL))
def test_equal_answers_are_equal_in_both_directions(gold: str, other: str) -> None:
    assert compare(gold, other) is True
    assert compare(other, gold) is True


@pytest.mark.parametrize(("gold", "other"), pairs(UNEQUAL))
def test_unequal_answers_are_unequal_however_near(gold: str, other: str) -> None:
    assert compare(gold, other) is False
    assert compare(other, gold) is False


@pytest.mark.parametrize(("gold", "other"), pairs(UNDECIDED))
def test_what_is_not_known_is_not_equal(gold: str, other: str) -> None:
    assert compare(gold, other) is None
    assert compare(other, gold) is None


def test_leniencies_let_pass_what_they_name_and_no_more() -> None:
    assert compare(r"28\%", "28", percent=True) is True
    assert compare(r"28\%", "2800", percent=True) is False
    assert compare("5 cm", "5", units=True) is True
    assert compare("5 cm", "5 m", units=True) is False
    assert compare("1/3", "0.3333", tolerance=1e-3) is True
    assert compare("1/3", "0.33", tolerance=1e-3) is False
    assert compare("0", "0.0001", tolerance=1e-3) is False
    assert compare(r"\pi", "3.1416", tolerance=1e-4) is True
    assert compare("(1/3, 2]", "(0.3333, 2]", tolerance=1e-3) is True


LEAVES = st.one_of(
    st.fractions(-5, 5, max_denominator=6).map(Number),
    st.sampled_from("xy").map(Symbol),
    st.sampled_from([Symbol("pi"), Power(Number(Fraction(2)), Number(Fraction(1, 2)))]),
)


def grown(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    pair = st.tuples(inner, inner)
    exponents = st.sampled_from([-2, -1, 2, 3, Fraction(1, 2), Fraction(1, 3)])
    return st.one_of(
        pair.map(Sum),
        pair.map(Product),
        st.tuples(inner, exponents.map(Fraction).map(Number)).map(lambda p: Power(*p)),
        st.tuples(st.sampled_from(["sin", "cos", "abs", "exp", "ln"]), inner).map(
            lambda p: Apply(p[0], (p[1],))
        ),
    )


EXPRESSIONS = st.recursive(LEAVES, grown, max_leaves=6)


@settings(deadline=None, max_examples=150)
@given(EXPRESSIONS, EXPRESSIONS)
def test_exact_verdicts_agree_with_values(left: Expression, right: Expression) -> None:
    verdict = same_value(left, right)
    if verdict is True:
        assert not are_different(left, right)
    assert same_value(right, left) is verdict


@settings(deadline=None, max_examples=60)
@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_algebra_keeps_values_and_a_shift_changes_them(
    a: Expression, b: Expression, c: Expression
) -> None:
    left = Product((Sum((a, b)), c))
    right = Sum((Product((c, b)), Product((a, c))))
    assert same_value(left, right) is not False
    assert same_value(Sum((left, Number(Fraction(1, 10**9)))), right) is not True
