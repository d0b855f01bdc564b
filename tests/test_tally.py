"""Counting rollouts over groups. Run: pytest tests/test_tally.py"""

from dataclasses import replace

from rft_ray.selection import group_statistics, round_statistics, select_group
from rft_ray.tally import POOLED, Tally, counts_table
from rft_ray.types import Group, Problem, Rollout


def make_group(number: int, texts: dict[str, list[str]]) -> Group:
    """A graded and selected group; a text that says 4 is right."""
    rollouts = [
        Rollout(policy=policy, completion=text, verdict="correct" if "4" in text else "wrong")
        for policy, own in texts.items()
        for text in own
    ]
    return select_group(Group(Problem(str(number), "2+2?", "4"), rollouts))


def test_means_are_over_all_problems_and_pooled_paths_are_not_counted_twice() -> None:
    tally = Tally()
    shared = "<<2+2=4>>4\n#### 4"
    tally.add(group_statistics(make_group(0, {"a": [shared, "no"], "b": [shared, "<<1+3=4>>4"]})))
    tally.add(group_statistics(make_group(1, {"a": ["no"], "b": ["no"]})))
    assert tally.per_problem("a", "correct") == 0.5
    assert tally.per_problem("b", "distinct_paths") == 1.0
    # a and b found the same first path, so pooling adds only b's second one
    assert tally.per_problem(POOLED, "distinct_paths") == 1.0
    assert (tally.num_problems, tally.num_solved, tally.selected) == (2, 1, 2)
    assert tally.verdicts(POOLED)["wrong"] == 3
    assert tally.names() == ["a", "b", POOLED]


def test_a_policy_without_rollouts_found_the_problem_too_long() -> None:
    tally = Tally()
    tally.add(group_statistics(make_group(0, {"a": ["4"], "b": ["4"]})))
    statistics = group_statistics(make_group(1, {"a": ["4"]}))
    # a stream of Arrow rows fills what one group lacks with null
    statistics["policies"]["b"] = None
    tally.add(statistics)
    assert tally.row("b")["too_long"] == 1
    assert tally.row("a")["too_long"] == 0


def test_a_policy_that_found_every_problem_too_long_is_counted() -> None:
    tally = Tally.of(["a", "b"])
    tally.add(group_statistics(make_group(0, {"a": ["4"]})))
    tally.add(group_statistics(make_group(1, {"a": ["4"]})))
    assert tally.names() == ["a", "b", POOLED]
    row = tally.row("b")
    assert (row["too_long"], row["rollouts"], row["selected"]) == (2, 0, 0)
    assert tally.too_long("a") == tally.too_long(POOLED) == 0
    tally.add(group_statistics(make_group(2, {})))
    assert tally.too_long("a") == tally.too_long(POOLED) == 1


def test_a_rounds_own_rollouts_are_counted_apart_from_the_pool() -> None:
    first = make_group(0, {"a": ["<<2+2=4>>4", "no"]})
    second = make_group(0, {"a": ["<<1+3=4>>4"], "b": ["no", "no"]})
    later = [replace(rollout, round=1) for rollout in second.rollouts]
    joined = select_group(Group(first.problem, first.rollouts + later))
    tally = Tally()
    tally.add(round_statistics(joined, 1))
    assert [tally.row(name)["rollouts"] for name in tally.names()] == [1, 2, 3, 5]
    assert [tally.row(name)["selected"] for name in tally.names()] == [1, 0, 1, 2]
    assert tally.selected == 2 and tally.num_solved == 1


def test_the_table_shows_the_pool_only_where_there_are_several_rounds() -> None:
    tally = Tally()
    tally.add(round_statistics(make_group(0, {"a": ["4", "no"], "b": ["no"]}), 0))
    lines = [{"round": 0, "policy": name, **tally.row(name)} for name in tally.names()]
    table = counts_table(lines)
    assert "all rounds" not in table and "1 of 1" in table
    assert [row.split()[:3] for row in table.splitlines()[1:4]] == [
        ["a", "0", "2.00"],
        ["b", "0", "1.00"],
        ["pooled", "0", "3.00"],
    ]
    again = Tally()
    again.add(round_statistics(make_group(0, {"a": ["4", "no"]}), 1))
    lines += [{"round": 1, "policy": name, **again.row(name)} for name in again.names()]
    assert counts_table(lines).count("all rounds") == 1


def test_a_problem_that_has_enough_is_not_too_long() -> None:
    tally = Tally.of(["a"])
    tally.num_unasked = 1
    tally.add(round_statistics(make_group(0, {"a": ["4"]}), 1))
    assert tally.too_long("a") == 0 and tally.too_long("all_rounds") == 0
    tally.add(round_statistics(make_group(1, {}), 1))
    assert tally.too_long("a") == 1
