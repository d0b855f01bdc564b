"""Exact normal forms: quotients of sums of terms, a term being a rational times powers of atoms.

An atom is a variable, pi, e, i, a prime under a root, a root of a sum, an exponential, a logarithm,
or a function nobody looks into. Powers are rational. Two expressions are equal if their difference
has no terms; where it has terms of independent atoms only (`is_independent`), they are proved
unequal, because roots of different primes, variables and pi admit no linear relation.

Functions of real variables are compared where both are real: sqrt(xy) is sqrt(x)sqrt(y), sqrt(x^2)
is |x|, and an odd root of a negative number is real.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm

from rft_ray.math_integers import factorize
from rft_ray.math_limits import MAX_BITS, Undecided, Undefined

Atom = tuple
Monomial = frozenset  # of (atom, exponent) pairs
Polynomial = dict[Monomial, Fraction]

ONE: Monomial = frozenset()
HALF = Fraction(1, 2)
MAX_TERMS = 1_000
MAX_WORK = 100_000
MAX_EXPANDED_POWER = 100
# Powers of different atoms of these kinds are linearly independent over the rationals.
INDEPENDENT = frozenset(("x", "pi", "p", "i"))
NEVER_ZERO = INDEPENDENT | {"e", "huge", "exp", "cis", "zeta", "q"}


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """top / bottom; the bottom is 1 or has several terms. Never changed after it was made."""

    top: Polynomial
    bottom: Polynomial = field(default_factory=lambda: {ONE: Fraction(1)})

    @property
    def is_whole(self) -> bool:
        """Without a denominator."""
        return len(self.bottom) == 1

    @property
    def rational(self) -> Fraction | None:
        """Its value, where it is a rational number."""
        if not self.top:
            return Fraction(0)
        if self.is_whole and len(self.top) == 1 and ONE in self.top:
            return self.top[ONE]
        return None

    @property
    def key(self) -> tuple[frozenset, frozenset]:
        """Equal keys mean equal forms; the converse does not hold."""
        return frozenset(self.top.items()), frozenset(self.bottom.items())


def constant(value: Fraction | int) -> Form:
    return Form({ONE: Fraction(value)} if value else {})


def single(atom: Atom, exponent: Fraction | int = 1) -> Form:
    return Form({frozenset(((atom, Fraction(exponent)),)): Fraction(1)})


def is_independent(terms: Polynomial) -> bool:
    """Whether terms that are not all gone prove that the value is not zero."""
    kinds = {atom[0] for monomial in terms for atom, _ in monomial}
    if len(terms) == 1 and kinds <= NEVER_ZERO:
        return True
    return kinds <= INDEPENDENT or kinds <= (INDEPENDENT - {"pi"}) | {"e"}


def is_plain(terms: Polynomial) -> bool:
    """Whether there are only atoms without branches: variables and constants."""
    return all(atom[0] in ("x", "p", "pi", "e", "i") for monomial in terms for atom, _ in monomial)


class Algebra:
    """Arithmetic on forms with one budget of work; Undecided when it is spent."""

    def __init__(self) -> None:
        self.work = 0

    def spend(self, amount: int) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            raise Undecided("too much work")

    def plus(self, left: Form, right: Form) -> Form:
        if left.bottom == right.bottom:
            return self.whole_sum((left.top, right.top), left.bottom)
        if left.is_whole or right.is_whole:
            whole, other = (left, right) if left.is_whole else (right, left)
            raised = self.times_whole(whole.top, other.bottom)
            top = self.plus(raised, Form(other.top))
            return self.over(top, Form(other.bottom))
        cross = [
            self.times_whole(left.top, right.bottom),
            self.times_whole(right.top, left.bottom),
        ]
        return self.over(self.plus(*cross), self.times_whole(left.bottom, right.bottom))

    def whole_sum(self, parts: Iterable[Polynomial], bottom: Polynomial | None = None) -> Form:
        total: Polynomial = {}
        for part in parts:
            self.spend(len(part))
            for monomial, coefficient in part.items():
                value = total.get(monomial, 0) + coefficient
                if value:
                    total[monomial] = value
                else:
                    del total[monomial]
        if len(total) > MAX_TERMS:
            raise Undecided("too many terms")
        return Form(total) if bottom is None or not total else Form(total, bottom)

    def negative(self, form: Form) -> Form:
        return Form({monomial: -c for monomial, c in form.top.items()}, form.bottom)

    def minus(self, left: Form, right: Form) -> Form:
        return self.plus(left, self.negative(right))

    def times(self, left: Form, right: Form) -> Form:
        top = self.times_whole(left.top, right.top)
        if left.is_whole and right.is_whole:
            return top
        return self.over(top, self.times_whole(left.bottom, right.bottom))

    def times_whole(self, left: Polynomial, right: Polynomial) -> Form:
        """The product of two sums; terms whose atoms react (sqrt2 sqrt2) are worked out apart."""
        self.spend(len(left) * len(right))
        plain: Polynomial = {}
        reacted: list[Form] = []
        for a, ca in left.items():
            for b, cb in right.items():
                coefficient = _bounded(ca * cb)
                if a and b and any(atom[0] not in ("x", "pi", "e") for atom, _ in a | b):
                    reacted.append(self.term(coefficient, _merged(a, b)))
                    continue
                monomial = _plain_product(a, b)
                plain[monomial] = plain.get(monomial, 0) + coefficient
        result = Form({monomial: c for monomial, c in plain.items() if c})
        if all(form.is_whole for form in reacted):
            return self.whole_sum((result.top, *(form.top for form in reacted)))
        for form in reacted:
            result = self.plus(result, form)
        return result

    def over(self, top: Form, bottom: Form) -> Form:
        """top / bottom, with a one-term denominator divided out. Raises Undefined for zero."""
        if not bottom.top:
            raise Undefined("division by zero")
        if not top.top:
            return constant(0)
        if not bottom.is_whole:
            top, bottom = self.times(top, Form(bottom.bottom)), Form(bottom.top)
        if len(bottom.top) == 1:
            ((monomial, coefficient),) = bottom.top.items()
            inverse = self.term(1 / coefficient, {atom: -e for atom, e in monomial})
            if inverse.is_whole:
                scaled = self.times_whole(top.top, inverse.top)
                return scaled if top.is_whole else self.over(scaled, Form(top.bottom))
            return self.times(top, inverse)
        if top.is_whole:
            return Form(top.top, bottom.top)
        joined = self.times_whole(top.bottom, bottom.top)
        return self.over(Form(top.top), joined)

    def term(self, coefficient: Fraction, exponents: dict[Atom, Fraction]) -> Form:
        """One term in normal form: whole powers of primes, i and roots of sums are worked out."""
        kept: dict[Atom, Fraction] = {}
        reacted: list[Form] = []
        for atom, exponent in _without_even_absolutes(exponents).items():
            whole = exponent.numerator // exponent.denominator
            match atom[0]:
                case "p" | "q":
                    coefficient *= _rational_power(Fraction(atom[1]), whole)
                    exponent -= whole
                case "i":
                    coefficient *= -1 if exponent % 4 in (2, 3) else 1
                    exponent %= 2
                case "zeta":
                    coefficient *= -1 if exponent % 2 >= 1 else 1
                    exponent %= 1
                    if (exponent * 12).denominator == 1:
                        reacted.append(self.root_of_unity(exponent))
                        exponent = Fraction(0)
                case "sum" if whole:
                    reacted.append(self.whole_power(Form(dict(atom[1])), whole))
                    exponent -= whole
            if exponent:
                kept[atom] = exponent
        coefficient = _bounded(_collect_huge(coefficient, kept))
        result = Form({frozenset(kept.items()): coefficient})
        for form in reacted:
            result = self.times(result, form)
        return result

    def root_of_unity(self, turns: Fraction) -> Form:
        """exp(i pi turns) in roots, for multiples of 1/12 in [0, 1)."""
        if not turns:
            return constant(1)
        cosine, sine = self.cosine(turns), self.cosine(HALF - turns)
        return self.plus(cosine, self.times(sine, single(("i",))))

    def cosine(self, turns: Fraction) -> Form:
        if turns < 0:
            turns = -turns
        if turns > HALF:
            return self.negative(self.cosine(1 - turns))
        two, six = {(("p", 2), HALF)}, {(("p", 2), HALF), (("p", 3), HALF)}
        quarter = Fraction(1, 4)
        terms = {
            0: {ONE: Fraction(1)},
            1: {frozenset(six): quarter, frozenset(two): quarter},
            2: {frozenset({(("p", 3), HALF)}): HALF},
            3: {frozenset(two): HALF},
            4: {ONE: HALF},
            5: {frozenset(six): quarter, frozenset(two): -quarter},
            6: {},
        }
        return Form(terms[int(turns * 12)])

    def whole_power(self, form: Form, exponent: int) -> Form:
        """form ** exponent by an integer. Raises Undefined for 0 ** -1 and 0 ** 0."""
        if not form.top:
            if exponent <= 0:
                raise Undefined("a power of zero")
            return form
        if form.is_whole and len(form.top) == 1:
            ((monomial, coefficient),) = form.top.items()
            exponents = {atom: e * exponent for atom, e in monomial}
            return self.times(self.number_power(coefficient, exponent), self.term(1, exponents))
        if exponent < 0:
            return self.whole_power(self.over(Form(form.bottom), Form(form.top)), -exponent)
        if exponent > MAX_EXPANDED_POWER:
            raise Undecided("a large power of a sum")
        result = constant(1)
        for bit in f"{exponent:b}":
            result = self.times(result, result)
            result = self.times(result, form) if bit == "1" else result
        return result

    def number_power(self, base: Fraction, exponent: int) -> Form:
        """base ** exponent; what would be a huge number stays a product of powers of primes."""
        if _power_bits(base, exponent) <= MAX_BITS:
            return constant(base**exponent)
        primes = {("huge", p): Fraction(k * exponent) for p, k in factorize(abs(base)).items()}
        return self.term(Fraction(-1 if base < 0 and exponent % 2 else 1), primes)


def _plain_product(a: Monomial, b: Monomial) -> Monomial:
    if not a or not b:
        return a or b
    return frozenset(pair for pair in _merged(a, b).items() if pair[1])


def _merged(a: Monomial, b: Monomial) -> dict[Atom, Fraction]:
    exponents = dict(a)
    for atom, exponent in b:
        exponents[atom] = exponents.get(atom, 0) + exponent
    return exponents


def _without_even_absolutes(exponents: dict[Atom, Fraction]) -> dict[Atom, Fraction]:
    """|x|^2 is x^2."""
    if not any(atom[0] == "abs" for atom in exponents):
        return exponents
    result: dict[Atom, Fraction] = {}
    for atom, exponent in exponents.items():
        is_even = exponent.numerator % 2 == 0 and exponent.denominator % 2 == 1
        inner = atom[1] if atom[0] == "abs" and is_even else atom
        result[inner] = result.get(inner, 0) + exponent
    return result


def _collect_huge(coefficient: Fraction, kept: dict[Atom, Fraction]) -> Fraction:
    """Move a huge prime power's small part in the coefficient into it, or the reverse."""
    for atom in [atom for atom in kept if atom[0] == "huge"]:
        prime, exponent = atom[1], int(kept.pop(atom))
        top, bottom = coefficient.numerator, coefficient.denominator
        while top % prime == 0:
            top, exponent = top // prime, exponent + 1
        while bottom % prime == 0:
            bottom, exponent = bottom // prime, exponent - 1
        coefficient = Fraction(top, bottom)
        if _power_bits(Fraction(prime), exponent) <= MAX_BITS // 2:
            coefficient *= Fraction(prime) ** exponent
        else:
            kept[atom] = Fraction(exponent)
    return coefficient


def _power_bits(base: Fraction, exponent: int) -> int:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    return 0 if abs(base) == 1 else bits * abs(exponent)


def _rational_power(base: Fraction, exponent: int) -> Fraction:
    if _power_bits(base, exponent) > MAX_BITS:
        raise Undecided("a huge number")
    return base**exponent


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise Undecided("a huge number")
    return value


def content(terms: Polynomial) -> tuple[Fraction, Monomial]:
    """The positive rational and the powers of variables that divide every term."""
    coefficients = terms.values()
    top = gcd(*(c.numerator for c in coefficients))
    rational = Fraction(top, lcm(*(c.denominator for c in coefficients)))
    monomials = iter(terms)
    shared = {atom: e for atom, e in next(monomials) if atom[0] in ("x", "pi")}
    for monomial in monomials:
        exponents = dict(monomial)
        shared = {a: min(e, exponents[a]) for a, e in shared.items() if a in exponents}
    return rational, frozenset((atom, e) for atom, e in shared.items() if e)
