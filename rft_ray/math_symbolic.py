"""The last proof: sympy, on expressions built node by node from our own tree.

No text reaches sympy: its parsers evaluate what they read. Symbols get made-up names, so a model's
names do not reach it either. Only small expressions are tried, since some of sympy's algorithms do
not come back; the worker's time limit is what bounds them.
"""

from typing import Any

from rft_ray.latex_tree import Apply, Expression, Number, Power, Product, Sum, Symbol
from rft_ray.math_limits import Undecided
from rft_ray.math_values import children, has_unknown_function, variables

MAX_NODES = 30
MAX_NUMBER_BITS = 64
MAX_POWER_BITS = 1_024
FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "arcsin": "asin", "arccos": "acos",
    "arctan": "atan", "arccot": "acot", "ln": "log", "exp": "exp", "abs": "Abs",
    "factorial": "factorial", "binom": "binomial", "floor": "floor", "ceil": "ceiling",
    "max": "Max", "min": "Min",
}  # fmt: skip
SIMPLIFIERS = ("expand", "radsimp", "trigsimp", "gammasimp", "combsimp", "simplify")


def is_proved_equal(left: Expression, right: Expression) -> bool:
    """Whether sympy brings the difference down to zero; False says nothing."""
    if _nodes(left) + _nodes(right) > MAX_NODES or _has_large_number(left, right):
        return False
    if has_unknown_function(left) or has_unknown_function(right):
        return False
    import sympy

    names = sorted(variables(left, right))
    symbols = {name: sympy.Symbol(f"v{i}", real=True) for i, name in enumerate(names)}
    try:
        difference = _built(left, symbols, sympy) - _built(right, symbols, sympy)
    except Undecided:
        return False
    if difference == 0:
        return True
    return any(getattr(sympy, name)(difference) == 0 for name in SIMPLIFIERS)


def _nodes(node: Expression) -> int:
    return 1 + sum(map(_nodes, children(node)))


def _has_large_number(*nodes: Expression) -> bool:
    return any(
        max(node.value.numerator.bit_length(), node.value.denominator.bit_length())
        > MAX_NUMBER_BITS
        if isinstance(node, Number)
        else _has_large_number(*children(node))
        for node in nodes
    )


def _built(node: Expression, symbols: dict[str, Any], sympy: Any) -> Any:
    match node:
        case Number(value):
            return sympy.Rational(value.numerator, value.denominator)
        case Symbol(name):
            return _symbol(name, symbols, sympy)
        case Sum(terms):
            return sympy.Add(*(_built(term, symbols, sympy) for term in terms))
        case Product(factors):
            return sympy.Mul(*(_built(factor, symbols, sympy) for factor in factors))
        case Power(base, exponent):
            return _power(_built(base, symbols, sympy), exponent, symbols, sympy)
        case Apply(name, arguments):
            return _function(name, [_built(a, symbols, sympy) for a in arguments], sympy)
    raise Undecided(type(node).__name__)


def _symbol(name: str, symbols: dict[str, Any], sympy: Any) -> Any:
    constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "degree": sympy.pi / 180}
    if name in symbols:
        return symbols[name]
    if name not in constants:
        raise Undecided(name)
    return constants[name]


def _power(base: Any, exponent: Expression, symbols: dict[str, Any], sympy: Any) -> Any:
    power = _built(exponent, symbols, sympy)
    if power.is_number and (not power.is_Rational or _bits(base) * abs(power) > MAX_POWER_BITS):
        raise Undecided("a large power")  # sympy would work it out at once
    if power.is_Rational and power.q % 2 and power.q > 1 and base.is_real:
        return sympy.real_root(base, power.q) ** power.p  # ours are real for negative numbers
    return sympy.Pow(base, power)


def _bits(base: Any) -> int:
    return max(base.p.bit_length(), base.q.bit_length()) if base.is_Rational else 8


def _function(name: str, arguments: list[Any], sympy: Any) -> Any:
    match name, arguments:
        case "lg", [x]:
            return sympy.log(x, 10)
        case "log", [x, base]:
            return sympy.log(x, base)
        case "percent", [x]:
            return x / 100
    if name not in FUNCTIONS:
        raise Undecided(name)
    if name in ("factorial", "binom") and any(x.is_number and not abs(x) < 100 for x in arguments):
        raise Undecided("a large factorial")
    return getattr(sympy, FUNCTIONS[name])(*arguments)
