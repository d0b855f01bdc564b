"""One spelling after another is read as the same tree, and what is no answer is refused."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.latex_answers import parse_answer
from rft_ray.latex_tree import (
    Bracket,
    LatexError,
    Listing,
    Number,
    Quantity,
    Ratio,
    Relation,
    Symbol,
    Words,
)
from rft_ray.latex_words import names


def number(value: str) -> Number:
    return Number(Fraction(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", "12"),
        ("-12", "-12"),
        (".5", "1/2"),
        ("18.", "18"),
        ("1,234,567", "1234567"),
        (r"10,\!080", "10080"),
        ("3{,}000", "3000"),
        (r"11,\! 111,\! 111", "11111111"),
        ("1 000", "1000"),
        (r"\frac12", "1/2"),
        (r"\dfrac{1}{2}", "1/2"),
        (r"\frac 59", "5/9"),
        (r"\frac{270}7", "270/7"),
        ("-3/4", "-3/4"),
        (r"1\frac{4}{5}", "9/5"),
        ("1 4/5", "9/5"),
        (r"137 \frac{1}{2}", "275/2"),
        (r"0.\overline{3}", "1/3"),
        (r"0.1\overline{6}", "1/6"),
        (r"$\left( 7 \right)$.", "7"),
        (r"\text{seven}", "7"),
        ("\u22127", "-7"),
        ("\u00bd", "1/2"),
    ],
)
def test_a_number_has_one_value_however_it_is_written(text: str, value: str) -> None:
    assert parse_answer(text) == number(value)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("x=5", Relation((Symbol("x"), number("5")), ("=",))),
        ("1, -2", Listing((number("1"), number("-2")))),
        (r"1 \text{ or } 2", Listing((number("1"), number("2")), "or")),
        ("(1,200)", Bracket("(", (number("1"), number("200")), ")")),
        ("(3,000)", number("3000")),
        ("[1,2)", Bracket("[", (number("1"), number("2")), ")")),
        (r"\{\frac12, 3\}", Bracket("{", (number("1/2"), number("3")), "}")),
        (r"\langle 1, 2 \rangle", Bracket("<", (number("1"), number("2")), ">")),
        (r"5 \text{ square centimeters}", Quantity(number("5"), "centimeter^2")),
        (r"5\mbox{ cm}^2", Quantity(number("5"), "centimeter^2")),
        ("5 miles per hour", Quantity(number("5"), "mile/hour")),
        (r"\$5", Quantity(number("5"), "dollar")),
        ("$5", Quantity(number("5"), "dollar")),
        (r"30^\circ", Quantity(number("30"), "degree")),
        (r"30 \text{ degrees}", Quantity(number("30"), "degree")),
        ("4:30 p.m.", Ratio((number("4"), number("30")), "p.m.", True)),
        (r"\text{(B)}", Words("b")),
        (r"\text{Evelyn}", Words("evelyn")),
        ("Evelyn", Words("evelyn")),
    ],
)
def test_an_answer_keeps_its_kind(text: str, tree: object) -> None:
    assert parse_answer(text) == tree


REFUSED = (
    "|2 3|1..2|--3|(1|1)|\\frac{1}|x^|5x 3|3\\frac{7}{4}|1/0|\\sum_{k=1}^n k|\\int x"
    "|f'(x)^{\\prime}"
    "|9_8|1_1|\\begin{pmatrix}1&2\\\\3\\end{pmatrix}|\\sqrt[0]{2}|n!!|1\uff12|\u0661|x=|,1|{1|\\foo"
)


@pytest.mark.parametrize("text", REFUSED.split("|"))
def test_what_cannot_be_read_in_one_way_is_refused(text: str) -> None:
    with pytest.raises(LatexError):
        parse_answer(text)


PARTS = (
    r"\frac \sqrt { } ( ) [ ] \{ \} , 1 2 x ^ _ + - * / \pi e i \pm = < \le \cup \infty \text{ or "
    r"% ! | \log \sin \circ \begin{pmatrix} \end{pmatrix} & \\ \overline{ . 0 $ \boxed{ \in : p.m. "
    r"\over \choose \bar{ \dot{ \angle A th \det ]{ [2mm] \mathbb{R} - \mid x\in \text{a_and_b}"
)
ALPHABET = st.sampled_from(sorted(names(PARTS))).map(lambda part: part.replace("_and_", " and "))


@given(st.lists(ALPHABET, max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_is_a_tree_or_refused(text: str) -> None:
    try:
        assert hash(parse_answer(text)) is not None
    except LatexError as error:
        assert str(error)


DEEP = {
    "parentheses": "(" * 300,
    "braces": "{" * 1900,
    "signs": "-" * 1900,
    "powers": "x^" * 900,
    "quotients": "1/" * 900,
    "percents": "%" * 500,
    "bars": "|" * 999,
    "units": "5 a/" * 400,
    "roots": r"\sqrt" * 300,
    "sines": r"\sin" * 400,
    "digits": "1" * 1900,
    "texts": r"\text{" * 300 + "}" * 200,
    "fractions": r"\frac" * 390,
    "exponents": "x^" + "-" * 900,
    "divisions": "x/" * 400,
    "percent signs": "x" + "%" * 900 + "*",
    "intersections": "A\u2229" * 400,
    "mixed": r"1\frac{" * 19 + "x" + r"}{2}" * 19 + ",",
    "sets": r"\{" * 19 + "1" + r"\}" * 19 + ",",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_deep_and_long_answers_are_refused_not_followed(text: str) -> None:
    with pytest.raises(LatexError):
        parse_answer(text + "x+")
