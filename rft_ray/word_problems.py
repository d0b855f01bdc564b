"""Seeded word problems in GSM8K's format, with every way of solving each of them.

The one idea: a problem is a template plus numbers, its meaning is an arithmetic expression, and a
solution is any order of single calculations that reduces the expression to one number. Operand
order, grouping, distribution and the order of independent steps all follow from that.

A hash of template and numbers (not of names and things) assigns each problem to one split, so the
splits are disjoint for every size and seed, and no held-out problem is a renamed training problem.

Left out: fractions, negative numbers, units that convert, and irrelevant facts.
"""

import ast
import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rft_ray.types import Problem

Split = Literal["train", "validation", "heldout", "pretraining"]

SPLIT_SHARES: dict[Split, int] = {"train": 4, "validation": 2, "heldout": 2, "pretraining": 2}
SPLIT_OF_RESIDUE = [split for split, share in SPLIT_SHARES.items() for _ in range(share)]
# fmt: off
NAMES = (
    "Ann", "Ben", "Cal", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Jan", "Kim", "Leo", "Mia",
    "Ned", "Pam", "Ray", "Sam", "Tom", "Una", "Zoe"
)
THINGS = (
    "pens", "cards", "books", "coins", "stamps", "shells", "beads", "cups", "eggs", "balls",
    "hats", "kites", "nuts", "plums", "rings", "seeds"
)
# fmt: on
OPENERS = ("So", "Then", "That is")
LARGEST_ANSWER = 99
FEWEST_PATHS = 6
ATTEMPTS_PER_PROBLEM = 200


@dataclass(frozen=True, slots=True)
class Node:
    """A sum ("+") or a product ("*") of parts; a part's sign -1 means minus or divided by."""

    op: str
    parts: tuple[tuple[int, "Term"], ...]


Term = int | str | Node


@dataclass(frozen=True, slots=True)
class Template:
    """The expression that answers it, each number's range, and question text with slots."""

    name: str
    formula: str
    ranges: dict[str, tuple[int, int]]
    text: str
    unit: str = "{things}"


# fmt: off
TEMPLATES = (
    Template(
        "three_colors", "a + b + c", {"a": (3, 30), "b": (3, 30), "c": (3, 30)},
        "{name} has {a} red, {b} blue and {c} green {things}. How many {things} in all?",
    ),
    Template(
        "gain_and_loss", "a + b - c", {"a": (5, 50), "b": (5, 40), "c": (2, 30)},
        "{name} has {a} {things}, buys {b} more and gives {c} to {friend}. How many are left?",
    ),
    Template(
        "mixed_boxes", "(a + b) * c", {"a": (2, 12), "b": (2, 12), "c": (2, 6)},
        "A box holds {a} red and {b} blue {things}. {name} buys {c} boxes. How many {things}?",
    ),
    Template(
        "bags_and_boxes", "a * b + c * d", {"a": (2, 7), "b": (2, 9), "c": (2, 7), "d": (2, 9)},
        "{name} has {a} bags of {b} {things} and {c} boxes of {d} {things}. How many {things}?",
    ),
    Template(
        "bags_found_lost", "a * b + c - d", {"a": (2, 8), "b": (2, 9), "c": (2, 20), "d": (2, 20)},
        "{name} fills {a} bags with {b} {things}, finds {c} and loses {d}. How many {things} now?",
    ),
    Template(
        "shelves", "a * b * c", {"a": (2, 8), "b": (2, 6), "c": (2, 8)},
        "A school has {a} rooms. Each room has {b} shelves of {c} {things}. How many {things}?",
    ),
    Template(
        "three_takers", "a - b - c - d", {"a": (25, 99), "b": (2, 20), "c": (2, 20), "d": (2, 20)},
        "Of {a} {things} {name} takes {b}, {friend} takes {c} and {third} {d}. How many are left?",
    ),
    Template(
        "more_than", "a + (a + b) + c", {"a": (3, 25), "b": (2, 20), "c": (2, 25)},
        "{name} has {a} {things}. {friend} has {b} more. {third} has {c}. How many in all?",
    ),
    Template(
        "times_as_many", "a + a * b + c", {"a": (2, 12), "b": (2, 6), "c": (2, 20)},
        "{name} has {a} {things}. {friend} has {b} times as many. {third} has {c}. "
        "How many in all?",
    ),
    Template(
        "shopping", "a + b - c * d", {"a": (10, 50), "b": (5, 40), "c": (2, 9), "d": (2, 9)},
        "{name} has {a} dollars, earns {b} and buys {c} {things} at {d} dollars. "
        "How much is left?",
        "dollars",
    ),
    Template(
        "sharing", "(a + b + c) / d", {"a": (2, 30), "b": (2, 30), "c": (2, 30), "d": (2, 9)},
        "{name} has {a} red, {b} blue and {c} green {things} and shares them among {d} friends. "
        "How many does each get?",
    ),
    Template(
        "broken", "(b - c) * a + d", {"a": (2, 6), "b": (6, 15), "c": (1, 9), "d": (2, 20)},
        "Each of {a} boxes has {b} {things} but {c} break. {name} adds {d}. "
        "How many good {things}?",
    ),
    Template(
        "wages", "(a + b) * c - d", {"a": (4, 15), "b": (2, 8), "c": (2, 5), "d": (2, 30)},
        "{name} earns {a} dollars and {b} in tips a day for {c} days and spends {d}. "
        "How much is left?",
        "dollars",
    ),
    Template(
        "trays", "a * b - c - d", {"a": (2, 9), "b": (3, 10), "c": (2, 20), "d": (2, 20)},
        "{name} buys {a} bags of {b} {things}, loses {c} and sells {d}. "
        "How many {things} are left?",
    ),
)
# fmt: on


def generate_word_problems(count: int, *, seed: int, split: Split) -> list[Problem]:
    """Distinct problems of one split, each with one random solution; same arguments, same list."""
    rng = random.Random(f"{split} {seed}")
    problems: dict[str, Problem] = {}
    for _ in range(count * ATTEMPTS_PER_PROBLEM):
        if len(problems) == count:
            break
        template = rng.choice(TEMPLATES)
        numbers = {slot: rng.randint(*bounds) for slot, bounds in template.ranges.items()}
        words = draw_words(rng)
        prompt = template.text.format(**words, **numbers)
        if prompt in problems or assign_split(template, numbers) != split:
            continue
        term = bind(parse_formula(template.formula), numbers)
        if not is_suitable(term):
            continue
        problems[prompt] = Problem(
            id=f"word-{split}-{seed}-{len(problems)}",
            prompt=prompt,
            answer=str(evaluate(term)),
            source=f"word_problems/{split}",
            solution=write_solution(term, template.unit.format(**words), rng),
        )
    if len(problems) < count:
        raise ValueError(f"asked for {count} problems of split {split}, found {len(problems)}")
    return list(problems.values())


def solution_paths(problem: Problem, limit: int = 10_000) -> list[str]:
    """Solution texts with pairwise different ordered equation lists, at most `limit` of them."""
    template, numbers, words = parse_prompt(problem.prompt)
    unit = template.unit.format(**words)
    paths = dict.fromkeys(list_all_paths(bind(parse_formula(template.formula), numbers)))
    first = itertools.islice(paths, limit)
    return [render_solution(path, [OPENERS[0]] * len(path), unit) for path in first]


def parse_prompt(prompt: str) -> tuple[Template, dict[str, int], dict[str, str]]:
    """The template, numbers and words a prompt was made of."""
    for template in TEMPLATES:
        match = re.fullmatch(prompt_pattern(template), prompt)
        if match:
            slots = match.groupdict()
            numbers = {slot: int(slots.pop(slot)) for slot in template.ranges}
            return template, numbers, slots
    raise ValueError(f"not a prompt of any template: {prompt!r}")


def prompt_pattern(template: Template) -> str:
    """A regular expression with one named group per slot; a repeated slot refers back."""
    pieces, seen = [], set[str]()
    for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\}|$)", template.text):
        pieces.append(re.escape(literal))
        if slot:
            pieces.append(f"(?P={slot})" if slot in seen else rf"(?P<{slot}>\w+)")
            seen.add(slot)
    return "".join(pieces)


def assign_split(template: Template, numbers: dict[str, int]) -> Split:
    """The one split that may hold this content, the same in every process and Python version."""
    content = f"{template.name} {sorted(numbers.items())}"
    residue = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")
    return SPLIT_OF_RESIDUE[residue % len(SPLIT_OF_RESIDUE)]


def is_suitable(term: Term) -> bool:
    """Whether the answer is a whole number in range that can be reached in enough ways."""
    answer = evaluate(term)
    if answer is None or answer > LARGEST_ANSWER:
        return False
    return len(set(itertools.islice(list_all_paths(term), 2 * FEWEST_PATHS))) >= FEWEST_PATHS


def draw_words(rng: random.Random) -> dict[str, str]:
    """Three different names and one kind of thing."""
    name, friend, third = rng.sample(NAMES, 3)
    return {"name": name, "friend": friend, "third": third, "things": rng.choice(THINGS)}


def write_solution(term: Term, unit: str, rng: random.Random) -> str:
    """One random path through the calculations, written out."""
    term = rng.choice(list_forms(term))
    path = []
    while isinstance(term, Node):
        equation, term = rng.choice(list(list_moves(term)))
        path.append(equation)
    return render_solution(tuple(path), [rng.choice(OPENERS) for _ in path], unit)


def render_solution(path: tuple[str, ...], openers: list[str], unit: str) -> str:
    """(("3+4=7",), ["So"], "pens") -> "So <<3+4=7>>7 pens.\\n#### 7"."""
    values = [equation.split("=")[1] for equation in path]
    lines = [
        f"{opener} <<{equation}>>{value} {unit}."
        for opener, equation, value in zip(openers, path, values, strict=True)
    ]
    return "\n".join([*lines, f"#### {values[-1]}"])


@functools.cache
def parse_formula(formula: str) -> Term:
    """A formula like `(a + b) * c` as a term over slots, nested sums and products flattened."""
    return convert_expression(ast.parse(formula, mode="eval").body)


def convert_expression(expression: ast.expr) -> Term:
    """A parsed formula as a term; nothing is ever evaluated by Python."""
    if isinstance(expression, ast.Name):
        return expression.id
    if not isinstance(expression, ast.BinOp):
        raise ValueError(f"only names and + - * / are formulas: {ast.dump(expression)}")
    op = "+" if isinstance(expression.op, ast.Add | ast.Sub) else "*"
    sign = 1 if isinstance(expression.op, ast.Add | ast.Mult) else -1
    left, right = convert_expression(expression.left), convert_expression(expression.right)
    return flatten(Node(op, ((1, left), (sign, right))))


def flatten(node: Node) -> Node:
    """a + (b + c) -> a + b + c, and the same for products."""
    parts: list[tuple[int, Term]] = []
    for sign, term in node.parts:
        inner = term.parts if isinstance(term, Node) and term.op == node.op else ((1, term),)
        parts += [(sign * inner_sign, inner_term) for inner_sign, inner_term in inner]
    return Node(node.op, tuple(parts))


def bind(term: Term, numbers: dict[str, int]) -> Term:
    """The term with its slots replaced by numbers."""
    if isinstance(term, Node):
        return Node(term.op, tuple((sign, bind(part, numbers)) for sign, part in term.parts))
    return numbers[term] if isinstance(term, str) else term


def evaluate(term: Term) -> int | None:
    """The value, or None where no order of steps keeps to positive whole numbers."""
    while isinstance(term, Node):
        _, term = next(list_moves(term), ("", None))
    return term if isinstance(term, int) else None


def list_forms(term: Term) -> list[Term]:
    """The term as it stands, and with a product distributed over its sum where there is one."""
    if not isinstance(term, Node):
        return [term]
    choices = [[(sign, form) for form in list_forms(part)] for sign, part in term.parts]
    forms = [flatten(Node(term.op, parts)) for parts in itertools.product(*choices)]
    sums = [part for _, part in term.parts if isinstance(part, Node) and part.op == "+"]
    if term.op == "*" and len(sums) == 1 and all(sign == 1 for sign, _ in term.parts):
        others = tuple(part for part in term.parts if part[1] is not sums[0])
        addends = tuple((sign, Node("*", ((1, part), *others))) for sign, part in sums[0].parts)
        forms.append(Node("+", addends))
    return forms


def list_all_paths(term: Term) -> Iterator[tuple[str, ...]]:
    """The paths of every form; a path that several forms or moves allow comes more than once."""
    return itertools.chain.from_iterable(list_paths(form) for form in list_forms(term))


def list_paths(term: Term) -> Iterator[tuple[str, ...]]:
    """Every ordered list of equations that reduces the term to a number."""
    if not isinstance(term, Node):
        yield ()
        return
    for equation, rest in list_moves(term):
        for path in list_paths(rest):
            yield (equation, *path)


def list_moves(term: Term) -> Iterator[tuple[str, Term]]:
    """Every single calculation that can be made next, with the term it leaves."""
    if not isinstance(term, Node):
        return
    for place, (sign, part) in enumerate(term.parts):
        before, after = term.parts[:place], term.parts[place + 1 :]
        for equation, reduced in list_moves(part):
            yield equation, Node(term.op, (*before, (sign, reduced), *after))
    for first, second in itertools.permutations(range(len(term.parts)), 2):
        combined = combine(term.op, term.parts[first], term.parts[second])
        if combined:
            equation, part = combined
            rest = tuple(p for i, p in enumerate(term.parts) if i not in (first, second))
            yield equation, Node(term.op, (part, *rest)) if rest else part[1]


def combine(
    op: str, first: tuple[int, Term], second: tuple[int, Term]
) -> tuple[str, tuple[int, int]] | None:
    """("+", (1, 7), (-1, 4)) -> ("7-4=3", (1, 3)); None unless the result is positive and whole."""
    (first_sign, x), (second_sign, y) = first, second
    if not (isinstance(x, int) and isinstance(y, int)) or first_sign < second_sign:
        return None
    if first_sign == second_sign:
        value = x + y if op == "+" else x * y
        return f"{x}{op}{y}={value}", (first_sign, value)
    if op == "+":
        return (f"{x}-{y}={x - y}", (1, x - y)) if x > y else None
    return (f"{x}/{y}={x // y}", (1, x // y)) if x % y == 0 else None
