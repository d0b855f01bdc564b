"""Whole numbers: primes, factors and the functions whose exact values are looked into."""

from fractions import Fraction
from functools import cache
from math import ceil, comb, factorial, floor, gcd, isqrt, lcm

from rft_ray.math_limits import MAX_FACTORED_BITS, Undecided, Undefined

MAX_FACTORIAL = 3_000
SMALL_PRIME_LIMIT = 10_000

# Miller-Rabin with these bases is exact below the limit (Sorenson and Webster, 2015).
BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
LIMIT = 3_317_044_064_679_887_385_961_981


def is_prime(number: int) -> bool:
    """True only for primes; a number beyond the limit counts as not known to be one."""
    if number < 2 or number >= LIMIT:
        return False
    if number in BASES:
        return True
    if any(number % base == 0 for base in BASES):
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(number, base, odd, twos) for base in BASES)


def _passes(number: int, base: int, odd: int, twos: int) -> bool:
    value = pow(base, odd, number)
    if value in (1, number - 1):
        return True
    for _ in range(twos - 1):
        value = value * value % number
        if value == number - 1:
            return True
    return False


def factorize(value: Fraction) -> dict[int, int]:
    """The powers of primes in a positive rational; a large factor left over may be composite."""
    found = dict(factorize_whole(value.numerator))
    for prime, power in factorize_whole(value.denominator):
        found[prime] = -power
    return found


@cache
def small_primes() -> tuple[int, ...]:
    """The primes below SMALL_PRIME_LIMIT."""
    sieve = bytearray([1]) * SMALL_PRIME_LIMIT
    for n in range(2, isqrt(SMALL_PRIME_LIMIT) + 1):
        sieve[n * n :: n] = bytes(len(range(n * n, SMALL_PRIME_LIMIT, n)))
    return tuple(n for n in range(2, SMALL_PRIME_LIMIT) if sieve[n])


def factorize_whole(number: int) -> tuple[tuple[int, int], ...]:
    """Trial division: primes with their powers, and at most one large factor left over."""
    if number.bit_length() > MAX_FACTORED_BITS:
        raise Undecided("a number too large to factor")
    found = []
    for prime in small_primes():
        if prime * prime > number:
            break
        power = 0
        while number % prime == 0:
            number, power = number // prime, power + 1
        if power:
            found.append((prime, power))
    if number > 1:
        root = isqrt(number)
        found.append((root, 2) if root * root == number else (number, 1))
    return tuple(found)


def exact_function(name: str, values: list[Fraction]) -> Fraction | int | None:
    """The value of a function of rationals, where it is one of those known here."""
    match name, values:
        case "floor", [value]:
            return floor(value)
        case "ceil", [value]:
            return ceil(value)
        case (("max" | "min"), [_, *_]):
            return max(values) if name == "max" else min(values)
    if any(value.denominator != 1 for value in values):
        return None
    numbers = [value.numerator for value in values]
    match name, numbers:
        case "factorial", [n]:
            if n < 0:
                raise Undefined("the factorial of a negative number")
            return factorial(n) if n <= MAX_FACTORIAL else None
        case "binom", [n, k] if k >= 0 and 0 <= n <= MAX_FACTORIAL:
            return comb(n, k)
        case "gcd", [_, *_]:
            return gcd(*numbers)
        case "lcm", [_, *_]:
            return lcm(*numbers) if len(numbers) <= 10 else None
    return None
