"""Equations and inequalities: the same if they say the same, however they are arranged.

A relation is a set of links `difference = 0`, `!= 0`, `< 0` or `<= 0`. Two links are the same if
one difference is a constant times the other, and the constant is positive for inequalities. That
two equations have the same solutions in another way (x^2 = 4 and |x| = 2) is not looked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rft_ray.latex_tree import EXPRESSIONS, Answer, Relation, Sum, negated
from rft_ray.math_forms import Form, Monomial, Polynomial
from rft_ray.math_functions import FormBuilder
from rft_ray.math_limits import Undecided, Undefined
from rft_ray.math_verdicts import Truth, all_paired, every
from rft_ray.math_zero import is_zero, sign_of

BACKWARDS = {">": "<", ">=": "<="}
MAX_LINKS = 20


@dataclass(frozen=True, slots=True)
class Link:
    """`left kind right`, with kind one of = != < <= in approx."""

    kind: str
    left: Answer
    right: Answer

    @property
    def is_numeric(self) -> bool:
        return isinstance(self.left, EXPRESSIONS) and isinstance(self.right, EXPRESSIONS)


def same_relations(
    gold: Sequence[Relation], other: Sequence[Relation], same: Callable[[Answer, Answer], Truth]
) -> Truth:
    """Whether all links pair up, in any order; `same` compares sides that are no expressions."""
    waiting = [link for relation in gold for link in _links(relation)]
    candidates = [link for relation in other for link in _links(relation)]
    if len(waiting) > MAX_LINKS:
        return False
    return all_paired(waiting, candidates, partial(_same_link, same))


def _links(relation: Relation) -> list[Link]:
    links = []
    pairs = zip(relation.sides, relation.operators, relation.sides[1:], strict=False)
    for left, operator, right in pairs:
        if operator in BACKWARDS:
            left, right, operator = right, left, BACKWARDS[operator]
        links.append(Link(operator, left, right))
    return links


def _same_link(same: Callable[[Answer, Answer], Truth], gold: Link, other: Link) -> Truth:
    if gold.kind != other.kind:
        return False
    if gold == other:
        return True
    if not (gold.is_numeric and other.is_numeric) or gold.kind in ("in", "approx"):
        return every([same(gold.left, other.left), same(gold.right, other.right)])
    try:
        return _proportional(gold, other)
    except (Undecided, Undefined):
        return None


def _proportional(gold: Link, other: Link) -> Truth:
    builder = FormBuilder()
    a, b = _difference(builder, gold), _difference(builder, other)
    # y = 1/x is xy = 1 where it has a value, but x^2/x = 0 is not x = 0
    differ = False if a.bottom == b.bottom else None
    a, b = builder.times(a, Form(b.bottom)), builder.times(b, Form(a.bottom))
    top_a, top_b = _by_variables(a.top), _by_variables(b.top)
    if not top_a or not top_b:
        return None if not top_a and not top_b else False  # identities say nothing
    if set(top_a) != set(top_b):
        kinds = {atom[0] for monomial in (*top_a, *top_b) for atom, _ in monomial}
        return differ if kinds <= {"x"} else None
    chosen = next(iter(top_a))
    factor_a, factor_b = Form(top_a[chosen]), Form(top_b[chosen])
    crossed = builder.minus(builder.times(a, factor_b), builder.times(b, factor_a))
    verdict = is_zero(crossed)
    if verdict and gold.kind in ("<", "<="):
        sign = sign_of(builder.times(factor_a, factor_b))
        return sign > 0 if sign else None
    return differ if verdict is False else verdict


def _difference(builder: FormBuilder, link: Link) -> Form:
    left, right = link.left, link.right
    assert isinstance(left, EXPRESSIONS) and isinstance(right, EXPRESSIONS)
    return builder.of(Sum((left, negated(right))))


def _by_variables(terms: Polynomial) -> dict[Monomial, Polynomial]:
    """A sum as coefficients of products of variables; the coefficients have none."""
    found: dict[Monomial, Polynomial] = {}
    for monomial, coefficient in terms.items():
        variable = frozenset(pair for pair in monomial if _holds_variable(pair[0]))
        found.setdefault(variable, {})[monomial - variable] = coefficient
    return found


def _holds_variable(atom: object) -> bool:
    if isinstance(atom, tuple | frozenset):
        if isinstance(atom, tuple) and atom[:1] == ("x",):
            return True
        return any(map(_holds_variable, atom))
    return False
