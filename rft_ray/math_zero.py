"""Do two expressions have the same value? The chain of proofs, from the cheapest to sympy.

Normal forms decide almost everything. Where they cannot, values at points may prove a difference,
and a separation bound may prove equality of numbers made of roots; sympy has the last word.
"""

from math import pi

from rft_ray.latex_tree import Expression, Sum, negated
from rft_ray.math_bounds import is_algebraic_zero
from rft_ray.math_forms import Form, Polynomial, constant, is_independent, is_plain
from rft_ray.math_functions import FormBuilder
from rft_ray.math_limits import Undecided, Undefined
from rft_ray.math_values import are_different, value_at, variables

CERTAIN = 1e-9


def same_value(left: Expression, right: Expression) -> bool | None:
    """Whether two expressions are equal wherever both are real; None where nothing proves it."""
    if left == right:
        return True
    try:
        verdict = _by_forms(left, right)
    except Undefined:
        return None
    except Undecided:
        verdict = None
    if verdict is not None:
        return verdict
    differ = are_different(left, right)
    if differ is None:
        return None
    return False if differ else _by_proof(left, right)


def _by_forms(left: Expression, right: Expression) -> bool | None:
    builder = FormBuilder()
    a, b = builder.of(left), builder.of(right)
    verdict = is_zero(builder.minus(a, b))
    if verdict and not (is_plain(a.top) and is_plain(b.top)) and are_different(left, right):
        return None  # a branch of a root taken in two ways: values have the veto
    if verdict is None and len(a.top) == len(b.top) == 1 and a.is_whole and b.is_whole:
        ratio = builder.over(a, b)
        verdict = True if ratio.rational == 1 else is_zero(builder.minus(ratio, constant(1)))
    return verdict


def is_zero(form: Form) -> bool | None:
    """Whether a normal form is zero; None where its atoms may depend on each other."""
    if not form.top:
        return True
    return False if is_independent(form.top) else None


def _by_proof(left: Expression, right: Expression) -> bool | None:
    if not variables(left, right):
        try:
            verdict = is_algebraic_zero(Sum((left, negated(right))))
        except (Undecided, Undefined):
            return None
        if verdict is not None:
            return verdict
    from rft_ray.math_symbolic import is_proved_equal

    return is_proved_equal(left, right) or None


def is_near(gold: Expression, other: Expression, tolerance: float) -> bool:
    """Whether two real numbers differ by at most `tolerance` times the gold one."""
    if variables(gold, other):
        return False
    try:
        a, b = value_at(gold, {}), value_at(other, {})
    except (Undecided, Undefined):
        return False
    return bool(not a.imag and not b.imag and abs(a - b) <= tolerance * abs(a))


def sign_of(form: Form) -> int:
    """1 or -1 for a constant form whose sign its value leaves no doubt about, else 0."""
    top, bottom = _approximate(form.top), _approximate(form.bottom)
    if top is None or bottom is None:
        return 0
    return 1 if top * bottom > 0 else -1


def _approximate(terms: Polynomial) -> float | None:
    total = scale = 0.0
    for monomial, coefficient in terms.items():
        if max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length()) > 900:
            return None
        term = float(coefficient)
        for atom, exponent in monomial:
            if atom[0] not in ("p", "pi"):
                return None
            term *= (pi if atom[0] == "pi" else float(atom[1])) ** float(exponent)
        total, scale = total + term, scale + abs(term)
    return total if abs(total) > CERTAIN * scale else None
