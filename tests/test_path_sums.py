"""Paths against samples are means over all draws, and who found them is counted once each."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from rft_ray.cli import main
from rft_ray.path_sums import KS, PathSums, missing_curve
from rft_ray.path_table import path_tables
from rft_ray.records import read_groups, write_groups
from rft_ray.types import Group, Problem, Rollout

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"

# The paths of the rollouts of three policies; "-" is a rejected rollout.
POOL = {"one": "aab-", "two": "b-cc", "three": "d---"}


def sums_of(pool: dict[str, str], gold: str | None = None) -> PathSums:
    sums = PathSums()
    rollouts = [(name, None if path == "-" else path) for name in pool for path in pool[name]]
    sums.add(rollouts, gold)
    return sums


def mean_over_draws(names: list[str], k: int, gold: str = "") -> float:
    draws = itertools.product(*(itertools.combinations(POOL[name], k) for name in names))
    found = [len({path for own in draw for path in own} - {"-"} | set(gold)) for draw in draws]
    return sum(found) / len(found)


def at_three(values: np.ndarray) -> float:
    return float(values[KS.index(3)])


def test_values_are_means_over_all_draws() -> None:
    sums = sums_of(POOL, gold="b")
    for name in POOL:
        assert at_three(sums.alone[name]) == pytest.approx(mean_over_draws([name], 3))
        assert at_three(sums.with_gold[name]) == pytest.approx(mean_over_draws([name], 3, "b"))
        others = [other for other in POOL if other != name]
        assert at_three(sums.without[name]) == pytest.approx(mean_over_draws(others, 3))
        # one of three policies less: of one sample each, half of the draws take two
        both = [mean_over_draws(others, k) for k in (1, 2)]
        assert sums.matched[name][0] == pytest.approx(sum(both) / 2)
    assert at_three(sums.alone["pooled"]) == pytest.approx(mean_over_draws([*POOL], 3))
    assert at_three(sums.with_gold["pooled"]) == pytest.approx(mean_over_draws([*POOL], 3, "b"))
    assert sums.alone["pooled"][-1] == 4
    assert missing_curve(4, 1, (1, 2, 9)) == (0.75, 0.5, 0.0)
    assert missing_curve(0, 0, (8,)) == (1.0,)


def test_the_order_of_rollouts_and_of_problems_does_not_matter() -> None:
    turned = sums_of({name: paths[::-1] for name, paths in reversed(POOL.items())})
    for name, values in sums_of(POOL).alone.items():
        assert turned.alone[name] == pytest.approx(values)


def test_paths_are_counted_by_who_found_them() -> None:
    sums = sums_of(POOL)
    assert sums.finders == {("one",): 1, ("one", "two"): 1, ("two",): 1, ("three",): 1}
    assert [sums.exclusive(name) for name in POOL] == [1, 1, 1]


def test_problems_without_rollouts_or_paths_count_as_nothing() -> None:
    sums = PathSums()
    sums.add([])
    assert sums.curves() == {} and sums.marginal() == []
    sums.add([("one", None)] * 4, gold="a")
    assert sums.curves() == {"one": [(1, 0), (3, 0), (4, 0)], "pooled": [(1, 0), (3, 0), (4, 0)]}
    assert sums.curves(sums.with_gold)["one"][-1] == (4, 0.5)


def test_a_policy_is_worth_what_it_adds_beyond_more_samples() -> None:
    # the second policy repeats the first, the third finds what no other does
    same = sums_of({"one": "ab" * 6, "two": "ab" * 6, "three": "cd" * 6})
    worth = {name: pool - more for name, k, pool, _, more in same.marginal() if k == 6}
    assert worth["three"] > 1.5
    assert worth["one"] == pytest.approx(worth["two"])
    assert abs(worth["one"]) < 0.1


def test_the_tables_are_printed_for_any_groups_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "groups.jsonl"
    rollouts = [
        Rollout(name, f"<<{letter}=1>>", sample=i, verdict="correct" if letter != "-" else "wrong")
        for name, letters in POOL.items()
        for i, letter in enumerate(letters)
    ]
    write_groups(path, [Group(Problem("p", "?", "1", solution="<<b=1>>"), rollouts)])
    assert main(["inspect", str(path), "--paths"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["one", "3.00", "2.00", "2.00", "2.00", "1.00", "1.00"] in lines
    assert ["all", "policies", "7.00", "4.00", "4.00", "4.00", "3.00", "1.00"] in lines
    header = lines.index(["k", "1", "3", "4"])
    assert lines[header + 1] == ["one", "0.75", "1.75", "2.00"]
    ungraded = [Group(Problem("p", "?", "1"), [Rollout("a", "x")])]
    write_groups(path, ungraded)
    assert main(["inspect", str(path), "--paths"]) == 2


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data is not here")
def test_published_solutions_of_four_models_have_the_paths_that_are_labelled() -> None:
    from rft_ray.equations import path_key

    labels = (GSM8K / "example_model_solutions.jsonl").read_text().splitlines()
    found, groups = {}, []
    for group, line in zip(read_groups(GSM8K / "example_groups.jsonl"), labels, strict=True):
        labelled = json.loads(line)
        right = [r for r in group.rollouts if labelled[r.policy]["is_correct"]]
        for rollout in right:
            found.setdefault(rollout.policy, []).append(path_key(rollout.completion))
        rollouts = [Rollout(r.policy, r.completion, verdict="correct") for r in right]
        groups.append(Group(group.problem, rollouts))
    table = "\n".join(path_tables(groups))
    assert len(found) == 4
    for name, paths in found.items():
        # one solution a model and problem: as many paths as right solutions
        mean = len(paths) / len(groups)
        assert any(
            line.split()[:2] == [name, f"{mean:.2f}"] for line in table.splitlines()
        ), name
