"""Expression tree -> normal form: what roots, powers, logarithms and functions do to forms.

Sines and cosines become exponentials of i, so that every identity among them is algebra. A
function of which nothing is known stays an atom by its argument.
"""

from fractions import Fraction

from rft_ray.latex_tree import (
    Apply,
    Expression,
    Matrix,
    Number,
    Power,
    Product,
    Sum,
    Symbol,
)
from rft_ray.math_forms import (
    HALF,
    ONE,
    Algebra,
    Atom,
    Form,
    Monomial,
    constant,
    content,
    single,
)
from rft_ray.math_integers import exact_function, factorize, is_prime
from rft_ray.math_limits import Undecided, Undefined
from rft_ray.math_matrices import determinant
from rft_ray.math_values import has_unknown_function, value_at, variables

I = single(("i",))  # noqa: E741
PI = ("pi",)
TINY = 1e-15


class FormBuilder(Algebra):
    """Normal forms of expressions; Undecided where limits are met, Undefined where no value is."""

    def of(self, node: Expression) -> Form:
        match node:
            case Number(value):
                return constant(value)
            case Symbol(name):
                return self.symbol(name)
            case Sum(terms):
                forms = [self.of(term) for term in terms]
                if all(form.is_whole for form in forms):
                    return self.whole_sum(form.top for form in forms)
                total = forms[0]
                for form in forms[1:]:
                    total = self.plus(total, form)
                return total
            case Product(factors):
                product = self.of(factors[0])
                for factor in factors[1:]:
                    product = self.times(product, self.of(factor))
                return product
            case Power(base, exponent):
                return self.general_power(self.of(base), self.of(exponent))
            case Apply(name, arguments):
                return self.apply(name, arguments)
            case Matrix():
                raise Undecided("a matrix among numbers")
        raise Undecided(f"no value: {type(node).__name__}")

    def symbol(self, name: str) -> Form:
        match name:
            case "pi" | "e" | "i":
                return single((name,))
            case "degree":
                return self.times(constant(Fraction(1, 180)), single(PI))
            case "infinity" | "emptyset":
                raise Undecided(name)
        return single(("x", name))

    def general_power(self, base: Form, exponent: Form) -> Form:
        rational = exponent.rational
        if rational is not None:
            return self.power(base, rational)
        if not base.top:
            raise Undecided("zero to a variable power")
        if not base.is_whole:
            top = self.general_power(Form(base.top), exponent)
            return self.over(top, self.general_power(Form(base.bottom), exponent))
        factors = self.base_factors(base)
        unsplit = {("form", exponent.key): Fraction(1)}
        terms = exponent.top if exponent.is_whole else unsplit
        result = constant(1)
        for monomial, coefficient in terms.items():
            if monomial == ONE:
                result = self.times(result, self.power(base, coefficient))
                continue
            for atom, power in factors:
                result = self.times(result, self.exponential(atom, monomial, power * coefficient))
        return result

    def base_factors(self, base: Form) -> list[tuple[Atom, Fraction]]:
        """A base as atoms with their powers, -1 and primes among them."""
        if len(base.top) > 1:
            return [(("sum", base.key[0]), Fraction(1))]
        ((monomial, coefficient),) = base.top.items()
        factors = [prime_power(p, k) for p, k in factorize(abs(coefficient)).items()]
        if coefficient < 0:
            factors.append((("minus",), Fraction(1)))
        return factors + list(monomial)

    def exponential(self, base: Atom, monomial: Monomial, power: Fraction) -> Form:
        """base ** (power * monomial) for a monomial that is no number."""
        logarithm = next(iter(monomial))[0] if len(monomial) == 1 else ("",)
        if base == ("e",) and logarithm[0] == "ln" and (logarithm, 1) in monomial:
            return self.term(Fraction(1), {logarithm[1]: power})  # e^ln a is a
        has_i = not isinstance(monomial, tuple) and (("i",), Fraction(1)) in monomial
        if has_i and base == ("e",):
            return self.turn(monomial - {(("i",), Fraction(1))}, power)
        if has_i or base[0] in ("i", "zeta", "cis"):
            raise Undecided("a complex power")
        return single(("exp", base, monomial), power)

    def turn(self, monomial: Monomial, power: Fraction) -> Form:
        """exp(i power monomial)"""
        if monomial == frozenset({(PI, Fraction(1))}):
            return self.term(Fraction(1), {("zeta",): power})
        return single(("cis", monomial), power)

    def power(self, base: Form, exponent: Fraction) -> Form:
        """base ** exponent by a rational number."""
        if exponent.denominator == 1:
            return self.whole_power(base, exponent.numerator)
        if not base.top:
            if exponent < 0:
                raise Undefined("a negative power of zero")
            return base
        if not base.is_whole:
            top, bottom = self.power(Form(base.top), exponent), Form(base.bottom)
            return self.over(top, self.power(bottom, exponent))
        if len(base.top) > 1:
            return self.root_of_sum(base, exponent)
        ((monomial, coefficient),) = base.top.items()
        exponents, phase = dict[Atom, Fraction](), Fraction(int(coefficient < 0))
        for atom, e in monomial:
            if atom[0] in ("i", "zeta"):
                phase += e * (HALF if atom[0] == "i" else 1)
                continue
            atom, e = self.atom_power(atom, e, exponent)
            exponents[atom] = exponents.get(atom, 0) + e
        for prime, power in factorize(abs(coefficient)).items():
            atom, e = prime_power(prime, power * exponent)
            exponents[atom] = exponents.get(atom, 0) + e
        sign = Fraction(1)
        if exponent.denominator % 2 and phase == 1:  # an odd root of a negative number is real
            sign, phase = Fraction((-1) ** exponent.numerator), Fraction(0)
        if phase:
            exponents[("zeta",)] = (1 - (1 - phase) % 2) * exponent
        return self.term(sign, exponents)

    def atom_power(self, atom: Atom, e: Fraction, r: Fraction) -> tuple[Atom, Fraction]:
        """(atom ** e) ** r for real values of the atom: (x^2)^(1/2) is |x|."""
        if atom[0] in ("cis", "huge", "minus"):
            raise Undecided("a root of a power")
        power = e * r
        is_even = power.numerator % 2 == 0 and power.denominator % 2 == 1
        if e.numerator % 2 or is_even or is_positive(atom):
            return atom, power
        return ("abs", atom), power

    def root_of_sum(self, base: Form, exponent: Fraction) -> Form:
        rational, monomial = content(base.top)
        outside = self.power(Form({monomial: rational}), exponent)
        inside = self.over(base, Form({monomial: rational}))
        root = self.term(Fraction(1), {("sum", inside.key[0]): exponent})
        return self.times(outside, root)

    def apply(self, name: str, arguments: tuple[Expression, ...]) -> Form:
        if name in ("pm", "mp"):
            raise Undecided(name)
        if name == "det":
            return self.of(determinant(arguments[0]))
        forms = [self.of(argument) for argument in arguments]
        match name:
            case "sin" | "cos" | "tan" | "cot" | "sec" | "csc":
                return self.trigonometric(name, forms[0])
            case "sinh" | "cosh" | "tanh":
                return self.hyperbolic(name, forms[0])
            case "exp":
                return self.general_power(single(("e",)), forms[0])
            case "ln":
                return self.logarithm(forms[0])
            case "lg":
                return self.over(self.logarithm(forms[0]), self.logarithm(constant(10)))
            case "log":
                if len(forms) == 1:  # to a base that is not said
                    return self.times(self.logarithm(forms[0]), single(("unsaid base",)))
                return self.over(self.logarithm(forms[0]), self.logarithm(forms[1]))
            case "abs":
                return self.constant_absolute(arguments[0], forms[0]) or self.absolute(forms[0])
            case "percent":
                return self.times(forms[0], constant(Fraction(1, 100)))
            case "base":
                return forms[0]
        return self.whole_number_function(name, forms)

    def turns(self, angle: Form) -> Form:
        """exp(i angle)"""
        if not angle.is_whole:
            return single(("cis", ("form", angle.key)))
        result = constant(1)
        for monomial, coefficient in angle.top.items():
            if any(atom == ("i",) for atom, _ in monomial):
                raise Undecided("a complex angle")
            result = self.times(result, self.turn(monomial, coefficient))
        return result

    def trigonometric(self, name: str, angle: Form) -> Form:
        forward = self.turns(angle)
        back = self.over(constant(1), forward)
        twice_cosine, twice_i_sine = self.plus(forward, back), self.minus(forward, back)
        match name:
            case "cos":
                return self.over(twice_cosine, constant(2))
            case "sec":
                return self.over(constant(2), twice_cosine)
            case "sin":
                return self.over(twice_i_sine, self.times(constant(2), I))
            case "csc":
                return self.over(self.times(constant(2), I), twice_i_sine)
        tangent = self.over(twice_i_sine, self.times(I, twice_cosine))
        return tangent if name == "tan" else self.over(constant(1), tangent)

    def hyperbolic(self, name: str, argument: Form) -> Form:
        forward = self.general_power(single(("e",)), argument)
        back = self.over(constant(1), forward)
        sums = {"sinh": self.minus(forward, back), "cosh": self.plus(forward, back)}
        if name == "tanh":
            return self.over(sums["sinh"], sums["cosh"])
        return self.over(sums[name], constant(2))

    def logarithm(self, form: Form) -> Form:
        """ln of a product is the sum of logarithms, on what both are real for."""
        if not form.top:
            raise Undefined("a logarithm of zero")
        if not form.is_whole:
            top, bottom = self.logarithm(Form(form.top)), self.logarithm(Form(form.bottom))
            return self.minus(top, bottom)
        if len(form.top) > 1:
            rational, monomial = content(form.top)
            inside = self.over(form, Form({monomial: rational}))
            outside = self.logarithm(Form({monomial: rational}))
            return self.plus(outside, single(("ln", ("sum", inside.key[0]))))
        ((monomial, coefficient),) = form.top.items()
        if coefficient < 0:
            raise Undecided("a logarithm of a negative number")
        primes = factorize(coefficient).items()
        terms = [self.scaled(single(("ln", ("p", p))), Fraction(k)) for p, k in primes]
        terms += [self.atom_logarithm(atom, exponent) for atom, exponent in monomial]
        return self.whole_sum(term.top for term in terms)

    def atom_logarithm(self, atom: Atom, exponent: Fraction) -> Form:
        if atom == ("e",):
            return constant(exponent)
        if atom[0] in ("i", "zeta", "cis", "minus"):
            raise Undecided("a complex logarithm")
        if atom[0] == "exp" and isinstance(atom[2], frozenset):
            base = self.atom_logarithm(atom[1], exponent)
            return self.times(base, Form({atom[2]: Fraction(1)}))
        is_even = exponent.numerator % 2 == 0 and not is_positive(atom)
        return self.scaled(single(("ln", ("abs", atom) if is_even else atom)), exponent)

    def scaled(self, form: Form, factor: Fraction) -> Form:
        return self.times_whole({ONE: factor}, form.top) if factor else constant(0)

    def constant_absolute(self, node: Expression, form: Form) -> Form | None:
        """|a real constant| by the sign of its value; None for anything else."""
        if len(form.top) < 2 or variables(node) or has_unknown_function(node):
            return None
        value = value_at(node, {})
        if value.imag or abs(value) < TINY:
            return None
        return form if value.real > 0 else self.negative(form)

    def absolute(self, form: Form) -> Form:
        if not form.top:
            return form
        if not form.is_whole:
            bottom = self.absolute(Form(form.bottom))
            return self.over(self.absolute(Form(form.top)), bottom)
        if len(form.top) > 1:
            if any(atom[0] == "i" for monomial in form.top for atom, _ in monomial):
                return self.modulus(form)
            return self.absolute_sum(form)
        ((monomial, coefficient),) = form.top.items()
        exponents = {
            atom if is_positive(atom) or e.numerator % 2 == 0 else ("abs", atom): e
            for atom, e in monomial
            if atom[0] not in ("i", "zeta", "cis")
        }
        return self.term(abs(coefficient), exponents)

    def modulus(self, form: Form) -> Form:
        """|a + bi| = sqrt(a^2 + b^2), for real a and b."""
        i = (("i",), Fraction(1))
        if any(a[0] in ("zeta", "cis") for monomial in form.top for a, _ in monomial):
            raise Undecided("the modulus of a complex function")
        imaginary = Form({m - {i}: c for m, c in form.top.items() if i in m})
        real = Form({m: c for m, c in form.top.items() if i not in m})
        squares = self.times(real, real), self.times(imaginary, imaginary)
        return self.power(self.plus(*squares), HALF)

    def absolute_sum(self, form: Form) -> Form:
        """|sum| by its content and a sign that does not depend on the order of the terms."""
        rational, monomial = content(form.top)
        inside = self.over(form, Form({monomial: rational}))
        other = self.negative(inside)
        chosen = min(inside, other, key=lambda f: sorted(map(str, map(_by_name, f.top.items()))))
        outside = self.absolute(Form({monomial: rational}))
        return self.times(outside, single(("abs", ("sum", chosen.key[0]))))

    def whole_number_function(self, name: str, forms: list[Form]) -> Form:
        values = [form.rational for form in forms]
        if None not in values:
            found = exact_function(name, values)  # type: ignore[arg-type]
            if found is not None:
                return constant(found)
        return single(("call", name, *(form.key for form in forms)))


def is_positive(atom: Atom) -> bool:
    """Whether an atom's value is positive whatever the variables are."""
    if atom[0] == "exp":
        return is_positive(atom[1])
    return atom[0] in ("p", "q", "pi", "e", "abs", "huge")


def prime_power(prime: int, power: Fraction | int) -> tuple[Atom, Fraction]:
    """The atom of a factor that `factorize` gave: "p" a prime, "q" what may be composite."""
    return ("p" if is_prime(prime) else "q", prime), Fraction(power)


def _by_name(term: tuple[Monomial, Fraction]) -> tuple[list[str], Fraction]:
    return sorted(map(str, term[0])), term[1]
