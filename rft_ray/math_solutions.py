"""Values given to several variables: "x=1, y=2", "(x,y) = (1,2)", "x=1, y=2 or x=3, y=4".

A solution says which variable has which value, so a set of its values will not do. A tuple without
names is (x, y, z); other variables are in the order in which they are named, unless that is not the
alphabet's and it matters, which leaves the answer undecided. Left out: variables that are one
letter with different subscripts, which only number the items of a list.
"""

from collections.abc import Callable
from typing import TypeAlias

from rft_ray.latex_tree import Answer, Bracket, Listing, Relation, Symbol
from rft_ray.math_names import ANY_NAME, split_name
from rft_ray.math_verdicts import Truth, all_paired, every

Solution: TypeAlias = dict[str, Answer]
IsSame: TypeAlias = Callable[[Answer, Answer], Truth]


def same_solutions(gold: Answer, other: Answer, same: IsSame) -> tuple[Truth] | None:
    """The verdict, where at least one of the answers names the values of several variables."""
    a, b = find_solutions(gold), find_solutions(other)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        return (all_paired(a, b, lambda left, right: _same_solution(left, right, same)),)
    named, source, bare = (a, gold, other) if a is not None else (b, other, gold)
    tuples = _bare_tuples(bare)
    if tuples is None or named is None:
        return None if isinstance(bare, Relation) else (False,)
    orders = _orders(list(named[0]), isinstance(source, Relation))
    return (all_paired(named, tuples, lambda a, b: _in_order(a, b, orders, same)),)


def find_solutions(node: Answer) -> list[Solution] | None:
    """Every solution of two or more variables; None where the answer is of another kind."""
    match node:
        case Relation((Bracket("(", names, ")"), Bracket("(", values, ")")), ("=",)):
            if len(names) == len(values) and all(isinstance(name, Symbol) for name in names):
                return [dict(zip((n.name for n in names), values, strict=True))]  # type: ignore[union-attr]
        case Listing(items, joint) if all(isinstance(item, Relation) for item in items):
            return _grouped([split_name(item) for item in items], joint)
    return None


def _grouped(pairs: list[tuple[str | None, Answer | None]], joint: str) -> list[Solution] | None:
    """Names and values side by side; a name that comes again begins the next solution."""
    found: list[Solution] = [{}]
    for name, value in pairs:
        if not name or name == ANY_NAME or value is None:
            return None
        if name in found[-1]:
            found.append({})
        found[-1][name] = value
    names = list(found[0])
    letters = {name.partition("_")[0] for name in names}
    is_choice = joint == "or" and len(found) == 1
    if len(letters) < 2 or is_choice or any(set(names) != set(each) for each in found):
        return None
    return found


def _bare_tuples(node: Answer) -> list[tuple[Answer, ...]] | None:
    """The values of an answer without names, as many tuples as it has; None for a set."""
    match node:
        case Bracket("(" | "<", items, ")" | ">"):
            return [items]
        case Bracket("{", items) | Listing(items) if all(_is_tuple(item) for item in items):
            return [item.items for item in items]  # type: ignore[union-attr]
        case Listing(items, ",") if not any(isinstance(item, Relation) for item in items):
            return [items]
    return None


def _is_tuple(node: Answer) -> bool:
    return isinstance(node, Bracket) and (node.left, node.right) in (("(", ")"), ("<", ">"))


def _same_solution(gold: Solution, other: Solution, same: IsSame) -> Truth:
    if set(gold) != set(other):
        return False
    return every([same(value, other[name]) for name, value in gold.items()])


def _orders(names: list[str], is_tuple: bool) -> list[list[str]]:
    """The orders that a tuple of their values may be meant in."""
    if set(names) <= set("xyz"):
        return [sorted(names)]
    return [names] if is_tuple or names == sorted(names) else [names, sorted(names)]


def _in_order(
    named: Solution, values: tuple[Answer, ...], orders: list[list[str]], same: IsSame
) -> Truth:
    if len(named) != len(values):
        return False
    verdicts = [
        every([same(named[name], value) for name, value in zip(names, values, strict=True)])
        for names in orders
    ]
    return verdicts[0] if len(set(verdicts)) == 1 else None
