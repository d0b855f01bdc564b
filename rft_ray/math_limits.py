"""What exact arithmetic may cost, and the two ways in which it ends without an answer."""

MAX_BITS = 1 << 15
MAX_FACTORED_BITS = 4_096


class Undecided(ArithmeticError):
    """The limits, or what is implemented, do not reach to an answer."""


class Undefined(ArithmeticError):
    """The expression has no value: a division by zero, a logarithm of zero."""
