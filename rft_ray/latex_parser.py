r"""Tokens -> tree: a recursive-descent parser of mathematical expressions in LaTeX or plain text.

Products without a sign bind like products with one and everything groups to the left, so 1/2x is
(1/2)x. What reads in two ways is refused ("2 3", "3\frac{7}{4}"). Left out: integrals, sums,
limits, cases, and everything else with its own binding of variables. `latex_answers.py` extends
this to whole answers; it supplies `items`.
"""

from fractions import Fraction

from rft_ray.latex_symbols import SymbolParser
from rft_ray.latex_tree import (
    MINUS_ONE,
    Answer,
    Apply,
    Bracket,
    Expression,
    LatexError,
    Listing,
    Matrix,
    Number,
    Power,
    Product,
    Sum,
    Symbol,
    as_expression,
    negated,
    quotient,
)
from rft_ray.latex_words import names

MAX_MATRIX_CELLS = 100

TRIGONOMETRIC = names("sin cos tan cot sec csc sinh cosh tanh")
PREFIX_FUNCTIONS = TRIGONOMETRIC | names(
    "arcsin arccos arctan arccot log ln lg exp gcd lcm max min det arg"
)
WRAPPERS = names("mathbf boldsymbol bm bold mathcal boxed fbox displaystyle mathop")
ACCENTS = names("vec hat bar tilde overrightarrow widehat overline")
GREEK = names(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"
)
NAMED = {"pi": "pi", "infty": "infinity", "circ": "degree", "emptyset": "emptyset"}
OPENING = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
BRACKETS = {r"\{": "{", r"\}": "}", r"\langle": "<", r"\rangle": ">"}
MATRICES = names("pmatrix bmatrix Bmatrix matrix smallmatrix array vmatrix")


class ExpressionParser(SymbolParser):
    """Reads expressions; every method consumes what it returns."""

    def additive(self) -> Answer:
        self.deepen()
        terms = [self.signed_term()]
        while self.next.text in ("+", "-", "pm", "mp") and self.next.kind != "word":
            if self.next.text == "-" and is_set(terms[0]):
                break  # \mathbb{R} - \{0\}: what is joined is not an expression
            terms[0] = as_expression(terms[0])
            terms.append(as_expression(self.signed_term()))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))  # type: ignore[arg-type]

    def signed_term(self) -> Answer:
        sign = self.next.text if self.next.kind in ("operator", "command") else ""
        if sign not in ("+", "-", "pm", "mp"):
            return self.term()
        self.at += 1
        if self.next.text in ("+", "-", "pm", "mp"):
            raise LatexError("two signs in a row")
        term = self.term()
        if sign == "+":
            return term
        term = as_expression(term)
        return negated(term) if sign == "-" else Apply(sign, (term,))

    def term(self) -> Answer:
        value, depth = self.power(), self.depth
        while True:
            if self.take("*"):
                value = _times(as_expression(value), as_expression(self.signed_factor()))
            elif self.take("/"):
                self.deepen()
                value = quotient(as_expression(value), as_expression(self.signed_factor()))
            elif self.starts_factor():
                value = _times(as_expression(value), as_expression(self.power()))
            else:
                self.depth = depth
                return value

    def signed_factor(self) -> Answer:
        if self.take("-"):
            return negated(as_expression(self.power()))
        self.take("+")
        return self.power()

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign; a number never does: "2 3" is no product."""
        token = self.next
        if token.kind == "letter":
            return True
        if token.kind == "environment":
            return token.text.startswith("begin")
        if token.kind == "operator":
            return token.text in ("(", "[", "{") or (token.text == "|" and self.bars == 0)
        return token.kind == "command" and (
            token.text in PREFIX_FUNCTIONS
            or token.text in GREEK
            or token.text in WRAPPERS
            or token.text in names("frac sqrt pi circ infty binom lfloor lceil angle")
        )

    def power(self) -> Answer:
        """A primary with what stands behind it: powers, factorials, percent and degree signs."""
        base, depth = self.primary(), self.depth
        while True:
            if self.take("^"):
                base = self.raised(as_expression(base))
            elif self.take("%"):
                base = Apply("percent", (as_expression(base),))
            elif self.next.text == "!" and self.next.kind == "operator":
                self.at += 1
                if self.next.text == "!":
                    raise LatexError("double factorial")
                base = Apply("factorial", (as_expression(base),))
            else:
                self.depth = depth
                return base
            self.deepen()

    def raised(self, base: Expression) -> Expression:
        """base ^ what follows; a raised circle is the degree sign."""
        if self.take("circ") or self.take_group("circ"):
            return Product((base, Symbol("degree")))
        if any(map(self.take_group, ("st", "nd", "rd", "th"))):
            return base
        if self.take_group("prime") or self.take("prime"):
            raise LatexError("a derivative")
        return Power(base, self.exponent())

    def exponent(self) -> Expression:
        self.deepen()
        if self.take("-"):
            found = negated(self.exponent())
        else:
            found = self.argument()
            if self.take("^"):
                found = Power(found, self.exponent())
        self.depth -= 1
        return found

    def take_group(self, name: str) -> bool:
        """Step over {\\name} if it follows."""
        if self.next.text == "{" and self.peek().text == name and self.peek(2).text == "}":
            self.at += 3
            return True
        return False

    def group(self) -> Answer:
        """What braces hold: one answer, or several side by side."""
        self.expect("{")
        found = self.items()
        if self.next.text in ("choose", "over") and self.next.kind == "command":
            found = [self.stacked(as_expression(found[0]) if len(found) == 1 else None)]
        self.expect("}")
        return found[0] if len(found) == 1 else Listing(tuple(found))

    def stacked(self, top: Expression | None) -> Expression:
        r"""What \over or \choose makes of all that its group has before and behind it."""
        is_fraction = self.next.text == "over"
        self.at += 1
        below = self.items()
        if top is None or len(below) != 1:
            raise LatexError("several values over one, or over several")
        bottom = as_expression(below[0])
        return quotient(top, bottom) if is_fraction else Apply("binom", (top, bottom))

    def argument(self, by_digit: bool = False) -> Expression:
        r"""A command's argument: a group or one primary; \frac takes single digits: \frac12.

        A number without braces ends where it ends: \log_2\frac18 has no mixed number in it.
        """
        token = self.next
        if token.text == "{" and token.kind == "operator":
            return as_expression(self.group())
        if by_digit and token.kind == "number" and len(token.text) > 1 and "." not in token.text:
            self.tokens[self.at] = token._replace(text=token.text[1:])
            return Number(Fraction(token.text[0]))
        if token.kind == "number" and self.peek().text == "frac":
            self.at += 1
            return self.plain_number(token.text)
        return as_expression(self.primary())

    def primary(self) -> Answer:
        self.deepen()
        token = self.next
        self.at += 1
        match token.kind:
            case "number":
                value = self.number(token.text)
            case "letter":
                value = self.named(token.text)
            case "command":
                value = self.command(token.text)
            case "environment":
                value = self.matrix(token.text)
            case "operator":
                value = self.bracketed(token.text)
            case _:
                raise LatexError(f"unexpected {token.text!r}")
        self.depth -= 1
        return value

    def command(self, name: str) -> Answer:
        if name in NAMED:
            return Symbol(NAMED[name])
        if name in GREEK:
            return self.named(name)
        if name in PREFIX_FUNCTIONS:
            return self.function(name)
        if name == "angle":
            return Symbol(f"angle {self.points()}")
        if name in WRAPPERS:
            return self.group() if self.next.text == "{" else self.primary()
        if name in ACCENTS:
            return self.accented(name)
        match name:
            case "frac" if self.fraction_ahead and self.fraction_ahead[0] == self.at - 1:
                _, self.at, value = self.fraction_ahead
                return value
            case "frac":
                top = self.argument(by_digit=True)
                return quotient(top, self.argument(by_digit=True))
            case "binom":
                return Apply("binom", (self.argument(by_digit=True), self.argument(by_digit=True)))
            case "sqrt" | "cbrt":
                return self.root(3 if name == "cbrt" else 2)
            case "lfloor" | "lceil":
                value = as_expression(self.additive())
                self.expect("rfloor" if name == "lfloor" else "rceil")
                return Apply("floor" if name == "lfloor" else "ceil", (value,))
            case "mathbb":
                return Symbol(f"set {self.subscript()}")
        raise LatexError(f"unknown command \\{name}")

    def root(self, degree: int) -> Expression:
        order: Expression = Number(Fraction(degree))
        if self.next.text == "[":
            self.at += 1
            order = as_expression(self.additive())
            self.expect("]")
        if isinstance(order, Number) and order.value == 0:
            raise LatexError("a zeroth root")
        return Power(self.argument(), quotient(Number(Fraction(1)), order))

    def function(self, name: str) -> Expression:
        r"""\sin^2 x, \log_2 8, \ln(x+1): the argument is a bracket or a product without signs."""
        base = self.argument() if name == "log" and self.take("_") else None
        exponent = self.exponent() if self.take("^") else None
        if base is None and name == "log" and self.take("_"):
            base = self.argument()
        if exponent == MINUS_ONE and name in TRIGONOMETRIC:
            name, exponent = "arc" + name, None
        arguments = self.function_arguments()
        value = Apply(name, arguments if base is None else (*arguments, base))
        return value if exponent is None else Power(value, exponent)

    def function_arguments(self) -> tuple[Expression, ...]:
        if self.next.text in ("(", "[", r"\{", "{") and self.next.kind == "operator":
            opener = self.next.text
            self.at += 1
            found = tuple(as_expression(item) for item in self.items())
            self.expect({"{": "}"}.get(opener, OPENING.get(opener, "}")))
            return found
        factors = [as_expression(self.power())]
        while self.starts_factor() and self.next.text not in PREFIX_FUNCTIONS:
            factors.append(as_expression(self.power()))
        return (factors[0] if len(factors) == 1 else Product(tuple(factors)),)

    def bracketed(self, opener: str) -> Answer:
        if opener == "{":
            self.at -= 1
            return self.group()
        if opener == "|":
            return self.absolute()
        if opener not in OPENING:
            raise LatexError(f"unexpected {opener!r}")
        bars, self.bars = self.bars, 0
        found = [] if self.next.text == OPENING[opener] else self.items()
        self.bars = bars
        return self.closed(opener, found)

    def closed(self, opener: str, found: list[Answer]) -> Answer:
        """What stands in brackets, whose closing one is next; a group is its content."""
        closer = self.next.text
        if closer not in (")", "]", r"\}", r"\rangle") or self.next.kind != "operator":
            raise LatexError(f"unclosed {opener!r}")
        self.at += 1
        is_group = len(found) == 1 and opener in "([" and closer == OPENING[opener]
        if is_group:
            return found[0]
        return Bracket(BRACKETS.get(opener, opener), tuple(found), BRACKETS.get(closer, closer))

    def absolute(self) -> Expression:
        self.bars += 1
        value = as_expression(self.additive())
        self.bars -= 1
        self.expect("|")
        return Apply("det" if isinstance(value, Matrix) else "abs", (value,))

    def matrix(self, edge: str) -> Expression:
        name = edge.removeprefix("begin ")
        if name not in MATRICES:
            raise LatexError(f"unknown environment {edge}")
        if name == "array" and self.next.text == "{":
            self.subscript()  # the columns, such as {cc}
        rows: list[tuple[Expression, ...]] = []
        while self.next.text != f"end {name}":
            rows.append(self.row())
            if sum(map(len, rows)) > MAX_MATRIX_CELLS:
                raise LatexError(f"a matrix of more than {MAX_MATRIX_CELLS} cells")
        self.at += 1
        if not rows or len(set(map(len, rows))) != 1:
            raise LatexError("rows of different lengths")
        found = Matrix(tuple(rows))
        return Apply("det", (found,)) if name == "vmatrix" else found

    def row(self) -> tuple[Expression, ...]:
        cells = [as_expression(self.additive())]
        while self.take("&"):
            cells.append(as_expression(self.additive()))
        if not self.take(r"\\") and not self.next.text.startswith("end "):
            raise LatexError(f"unexpected {self.next.text!r} in a matrix")
        if self.next.text == "[" and self.peek(2).text in ("mm", "cm", "pt", "ex", "em"):
            self.at += 3  # the distance of two rows
            self.expect("]")
        return tuple(cells)


def is_set(node: Answer) -> bool:
    """Whether a minus behind it takes elements away."""
    is_named = isinstance(node, Symbol) and node.name.startswith("set ")
    return is_named or (isinstance(node, Bracket) and node.left == "{")


def _times(left: Expression, right: Expression) -> Expression:
    factors = left.factors if isinstance(left, Product) else (left,)
    return Product((*factors, right))
