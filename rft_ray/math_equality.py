"""Are two answers mathematically the same? True, False, or None where that cannot be decided.

True is always proved, by structure, by an exact normal form, by a separation bound, or at last by
sympy on an expression built from our own tree. False is proved too, by independent atoms or by
values. Which kinds of answers may stand for each other is decided here and nowhere else:

- "x = 5" and "f(x) = x^2" may stand for "5" and "x^2", but not for "y = 5";
- lists without brackets and sets have no order; in tuples, intervals and matrices order counts, and
  so do the brackets of tuples and intervals;
- two equations are the same if their differences of sides are proportional; inequalities likewise,
  with a positive factor; inequalities of one variable are also the sets they describe;
- a degree or currency sign may be missing on one side; other units only by `Leniencies.units`;
- a number in a base is not the same number in decimal; times are equal to the minute.
"""

from collections.abc import Sequence
from fractions import Fraction

from rft_ray.latex_tree import (
    EXPRESSIONS,
    Answer,
    Apply,
    Bracket,
    Expression,
    Joined,
    Listing,
    Matrix,
    Number,
    Product,
    Quantity,
    Ratio,
    Relation,
    Symbol,
    Words,
)
from rft_ray.latex_words import FREE_UNITS, UNITS
from rft_ray.leniencies import Leniencies
from rft_ray.math_equations import same_relations
from rft_ray.math_matrices import as_matrix, holds_matrix
from rft_ray.math_names import split_name, without_signs
from rft_ray.math_sets import are_same_sets, as_set, infinite_sign
from rft_ray.math_solutions import same_solutions
from rft_ray.math_values import children, variables
from rft_ray.math_verdicts import Truth, all_paired, every
from rft_ray.math_zero import is_near, same_value

MAX_MATCHED = 30
VECTOR_BRACKETS = (("(", ")"), ("<", ">"))
DEGREE, EMPTY_SET = Symbol("degree"), Symbol("emptyset")
KINDS = (Relation, Bracket, Joined, Listing)


class Comparison:
    """Compares a gold answer with another one, under named leniencies."""

    def __init__(self, leniencies: Leniencies) -> None:
        self.leniencies = leniencies

    def same_answers(self, gold: Answer, other: Answer) -> Truth:
        """Whether `other` is the gold answer, where {5} may stand for 5 on either side."""
        verdict = self.same(gold, other)
        inner = _only_element(gold), _only_element(other)
        if verdict or inner == (gold, other):
            return verdict
        return self.same(*inner) or verdict

    def same(self, gold: Answer, other: Answer) -> Truth:
        """Whether two answers, or two parts of answers, are the same."""
        if gold == other:
            return True
        gold, other = without_signs(gold), without_signs(other)
        if (solved := same_solutions(gold, other, self.same)) is not None:
            return solved[0]
        verdict: Truth = False
        if isinstance(gold, Relation) and isinstance(other, Relation):
            verdict = self.same_relations([gold], [other])
            if verdict:
                return True
        gold_name, gold_value = split_name(gold)
        name, value = split_name(other)
        if gold_value is None or value is None:  # a chain that contradicts itself
            return False
        if gold_name is not None and name is not None and gold_name != name:
            return verdict
        return self.same_unnamed(gold_value, value)

    def same_unnamed(self, gold: Answer, other: Answer) -> Truth:
        if gold == other:
            return True
        if isinstance(gold, Quantity) or isinstance(other, Quantity):
            return self.same_quantities(gold, other)
        if isinstance(gold, EXPRESSIONS) and isinstance(other, EXPRESSIONS):
            return self.same_expressions(gold, other)
        match gold, other:
            case (Words(), _) | (_, Words()):
                return self.same_words(gold, other)
            case Ratio(), Ratio():
                return self.same_ratios(gold, other)
            case Listing(), Listing():
                return self.same_listings(gold, other)
            case Relation(), Relation():
                return self.same_relations([gold], [other])
        return self.same_collections(gold, other)

    def same_words(self, gold: Answer, other: Answer) -> Truth:
        """Words by their letters; a choice "(B)" is also the letter B alone."""
        texts = [
            node.text if isinstance(node, Words) else node.name.lower()
            for node in (gold, other)
            if isinstance(node, Words | Symbol)
        ]
        return len(texts) == 2 and texts[0] == texts[1]

    def same_quantities(self, gold: Answer, other: Answer) -> Truth:
        (a, unit), (b, other_unit) = _measured(gold, other), _measured(other, gold)
        if unit == other_unit:
            return self.same(a, b)
        if "" not in (unit, other_unit):
            is_angle = {unit, other_unit} == {"degree", "radian"}
            return is_angle and self._same_angles((a, unit), (b, other_unit))
        stated = unit or other_unit
        if stated in ("degree", "radian"):
            return self._same_angles((a, unit), (b, other_unit))
        if stated in FREE_UNITS or stated.startswith("mod ") or self.leniencies.units:
            return self.same(a, b)
        return False

    def _same_angles(self, *angles: tuple[Answer, str]) -> Truth:
        """Numbers without a unit are in degrees, or in radians where pi is in them."""
        values = [value for value, _ in angles]
        if not all(isinstance(value, EXPRESSIONS) for value in values):
            return self.same(values[0], values[1])
        turned = []
        for value, unit in angles:
            is_degrees = unit == "degree" or (unit == "" and not _is_in_radians(value))
            turned.append(Product((value, DEGREE)) if is_degrees else value)
        return self.same_expressions(turned[0], turned[1])

    def same_ratios(self, gold: Ratio, other: Ratio) -> Truth:
        if gold.is_time or other.is_time or gold.half or other.half:
            halves = gold.half == other.half
            length = max(len(gold.parts), len(other.parts))
            zero = (Number(Fraction(0)),)
            a, b = (r.parts + zero * (length - len(r.parts)) for r in (gold, other))
            return halves and a == b
        if len(gold.parts) != len(other.parts):
            return False
        (a0, *a), (b0, *b) = gold.parts, other.parts
        return every(
            [same_value(Product((x, b0)), Product((y, a0))) for x, y in zip(a, b, strict=True)]
        )

    def same_expressions(self, gold: Expression, other: Expression) -> Truth:
        if isinstance(gold, Number) and isinstance(other, Number):
            return gold.value == other.value or self._is_near(gold, other)
        if self.leniencies.percent and (verdict := self._without_percent(gold, other)):
            return verdict
        if any(isinstance(node, Apply) and node.function == "base" for node in (gold, other)):
            return gold == other
        if EMPTY_SET in (gold, other):
            return False  # both would have been equal
        signs = infinite_sign(gold), infinite_sign(other)
        if any(signs):
            return signs[0] == signs[1]
        a, b = as_matrix(gold), as_matrix(other)
        if a is not None or b is not None:
            if a is None or b is None:
                return None if holds_matrix(gold) and holds_matrix(other) else False
            return self.same_matrices(a, b)
        verdict = same_value(gold, other)
        return verdict or self._is_near(gold, other) or verdict

    def _without_percent(self, gold: Expression, other: Expression) -> Truth:
        bare = [
            node.arguments[0] if isinstance(node, Apply) and node.function == "percent" else node
            for node in (gold, other)
        ]
        return bare != [gold, other] and self.same_expressions(bare[0], bare[1])

    def _is_near(self, gold: Expression, other: Expression) -> bool:
        return self.leniencies.tolerance > 0 and is_near(gold, other, self.leniencies.tolerance)

    def same_matrices(self, gold: Matrix, other: Matrix) -> Truth:
        if [len(row) for row in gold.rows] != [len(row) for row in other.rows]:
            return False
        cells = zip(sum(gold.rows, ()), sum(other.rows, ()), strict=True)
        return every([self.same_expressions(a, b) for a, b in cells])

    def same_listings(self, gold: Listing, other: Listing) -> Truth:
        sets = as_set(gold), as_set(other)
        if None not in sets:
            return are_same_sets(sets[0], sets[1], same_value)  # type: ignore[arg-type]
        if _is_all_against_any(gold, other):
            return False
        if all(isinstance(item, Relation) for item in gold.items + other.items):
            verdict = self.same_relations(gold.items, other.items)  # type: ignore[arg-type]
            if verdict is not False:
                return verdict
        return self.matched(gold.items, other.items)

    def same_relations(self, gold: Sequence[Relation], other: Sequence[Relation]) -> Truth:
        if len(gold) == 1 == len(other):
            sets = as_set(gold[0]), as_set(other[0])
            if None not in sets and _same_variable(gold[0], other[0]):
                return are_same_sets(sets[0], sets[1], same_value)  # type: ignore[arg-type]
        return same_relations(gold, other, self.same)

    def same_collections(self, gold: Answer, other: Answer) -> Truth:
        """Tuples, intervals, sets and unions; and what may be written as one of them."""
        match gold, other:
            case Bracket(), Bracket() if "{" not in (gold.left, other.left):
                return self.same_brackets(gold, other)
            case (Bracket("{"), Listing()) | (Listing(), Bracket("{")) | (Bracket("{"), Bracket()):
                return self.same_finite(gold, other)
        a, b = _as_vector(gold), _as_vector(other)
        if a is not None and b is not None:
            return self.in_order(a, b)
        sets = as_set(gold), as_set(other)
        if None not in sets:
            return are_same_sets(sets[0], sets[1], same_value)  # type: ignore[arg-type]
        if isinstance(gold, Joined) and isinstance(other, Joined):
            pair = self.in_order if gold.operator == "setminus" else self.matched
            return (gold.operator == other.operator and pair(gold.parts, other.parts)) or None
        if isinstance(gold, Relation) or isinstance(other, Relation):
            # x^2 < 4 and (-2, 2), or x^2 = 4 and 2, -2: solving is not done here
            return None if isinstance(gold, KINDS) and isinstance(other, KINDS) else False
        for listing, single in ((gold, other), (other, gold)):
            # 7/2 or 3.5: one value, written twice
            alike = isinstance(listing, Listing) and listing.joint == "or"
            if alike and not any(isinstance(item, Relation) for item in listing.items):
                return every([self.same(item, single) for item in listing.items])
        return False

    def same_brackets(self, gold: Bracket, other: Bracket) -> Truth:
        brackets = (gold.left, gold.right), (other.left, other.right)
        is_vector = "<" in (gold.left, other.left) and set(brackets) <= set(VECTOR_BRACKETS)
        if brackets[0] != brackets[1] and not is_vector:
            return False
        return self.in_order(gold.items, other.items)

    def same_finite(self, gold: Answer, other: Answer) -> Truth:
        """Sets by their elements, however often each is written."""
        if isinstance(gold, Bracket) and isinstance(other, Bracket):
            if gold.left != other.left:
                sets = as_set(gold), as_set(other)
                return None not in sets and are_same_sets(*sets, same_value)  # type: ignore[arg-type]
            return self.matched(self.distinct(gold.items), self.distinct(other.items))
        return self.matched(gold.items, other.items)  # type: ignore[union-attr]

    def distinct(self, items: tuple[Answer, ...]) -> tuple[Answer, ...]:
        kept: list[Answer] = []
        for item in items[:MAX_MATCHED]:
            if not any(self.same(known, item) for known in kept):
                kept.append(item)
        return (*kept, *items[MAX_MATCHED:])

    def in_order(self, gold: Sequence[Answer], other: Sequence[Answer]) -> Truth:
        if len(gold) != len(other):
            return False
        verdicts: list[Truth] = []
        for a, b in zip(gold, other, strict=True):
            verdicts.append(self.same(a, b))
            if verdicts[-1] is False:
                return False
        return every(verdicts)

    def matched(self, gold: Sequence[Answer], other: Sequence[Answer]) -> Truth:
        """Whether the items pair up, in any order; above MAX_MATCHED only in the same order."""
        if len(gold) != len(other):
            return False
        left = [(a, b) for a, b in zip(gold, other, strict=True) if a != b]
        waiting, candidates = [a for a, _ in left], [b for _, b in left]
        if len(waiting) > MAX_MATCHED:
            return self.in_order(waiting, candidates)
        return all_paired(waiting, candidates, self.same)


def _measured(node: Answer, beside: Answer) -> tuple[Answer, str]:
    """A value and its unit; 5m is five metres only beside an answer in metres."""
    if isinstance(node, Quantity):
        return node.value, node.unit
    match node:
        case Product((value, Symbol(letter))) if isinstance(beside, Quantity):
            if UNITS.get(letter) == beside.unit:
                return value, beside.unit
    return node, ""


def _is_all_against_any(gold: Listing, other: Listing) -> bool:
    """Whether one says "or" and the other "and", of conditions and not of values.

    x=1, x=2 and x=1 or x=2 list the same values; p and q is not p or q, nor x>0, y>0 either of two.
    """
    if (gold.joint == "or") == (other.joint == "or"):
        return False
    items = gold.items + other.items
    names = {name for item in items for name in _variables(item)}
    if any(isinstance(item, Relation) for item in items):
        return len(names) > 1
    is_said = bool(names) or any(isinstance(item, Words) for item in items)
    return is_said and "and" in (gold.joint, other.joint)


def _variables(node: Answer) -> frozenset[str]:
    sides = node.sides if isinstance(node, Relation) else (node,)
    return variables(*(side for side in sides if isinstance(side, EXPRESSIONS)))


def _is_in_radians(node: Expression) -> bool:
    is_arc = isinstance(node, Apply) and node.function.startswith("arc")
    return is_arc or node == Symbol("pi") or any(map(_is_in_radians, children(node)))


def _only_element(node: Answer) -> Answer:
    """The element of a set with one, unless that is a set itself."""
    match node:
        case Bracket("{", (Bracket("{") | Symbol("emptyset"),)):
            return node
        case Bracket("{", (element,)):
            return element
    return node


def _as_vector(node: Answer) -> tuple[Answer, ...] | None:
    """The components of a point, a row or a column."""
    if isinstance(node, Matrix) and 1 in (len(node.rows), len(node.rows[0])):
        return sum(node.rows, ())
    if isinstance(node, Bracket) and (node.left, node.right) in VECTOR_BRACKETS:
        return node.items
    return None


def _same_variable(gold: Relation, other: Relation) -> bool:
    return _variables(gold) == _variables(other)
