"""Groups on disk, by problem id. Run: pytest tests/test_pool.py"""

from pathlib import Path

import pytest

from rft_ray.pool import FILES_IN_MEMORY, Pool
from rft_ray.records import write_groups
from rft_ray.types import Group, Problem, Rollout


def make_pool(folder: Path, num_files: int = 3, per_file: int = 2) -> list[Group]:
    """A folder of groups files, written out of order."""
    groups = [
        Group(Problem(f"p{i}", "q", "1"), [Rollout("a", f"text {i}")])
        for i in range(num_files * per_file)
    ]
    folder.mkdir()
    for number in reversed(range(num_files)):
        own = groups[number * per_file : (number + 1) * per_file]
        write_groups(folder / f"{num_files - number:03d}.parquet", own)
    return groups


def test_groups_are_found_by_id_and_come_in_the_order_of_the_problems(tmp_path: Path) -> None:
    groups = make_pool(tmp_path / "pool")
    pool = Pool(tmp_path / "pool")
    assert len(pool) == 6
    assert pool.get("p3") == groups[3] and pool.get("p9") is None
    problems = [group.problem for group in groups]
    assert list(pool.in_order(problems)) == groups
    assert list(pool.in_order(problems[::-1])) == groups[::-1]
    with pytest.raises(KeyError, match="p9"):
        list(pool.in_order([Problem("p9", "q", "1")]))


def test_only_a_few_files_stay_in_memory(tmp_path: Path) -> None:
    groups = make_pool(tmp_path / "pool", num_files=2 * FILES_IN_MEMORY, per_file=1)
    pool = Pool(tmp_path / "pool")
    for _ in range(2):
        assert [pool.get(group.problem.id) for group in groups] == groups
        assert len(pool._recent) == FILES_IN_MEMORY


def test_a_problem_sampled_in_waves_is_one_group(tmp_path: Path) -> None:
    """In whatever order the files are read: by policy as first asked, then by sample."""

    def part(first: int, *policies: str) -> Group:
        rollouts = [
            Rollout(name, f"{name} {sample}", sample=sample)
            for name in policies
            for sample in range(first, first + 2)
        ]
        return Group(Problem("p", "q", "1"), rollouts)

    for name, group in {"b": part(0, "z", "a"), "a": part(4, "a"), "c": part(2, "z", "a")}.items():
        write_groups(tmp_path / f"{name}.parquet", [group])
    pool = Pool(tmp_path)
    group = pool.get("p")
    assert group is not None and len(pool) == 1
    assert [r.completion for r in group.rollouts] == [
        "z 0", "z 1", "z 2", "z 3", "a 0", "a 1", "a 2", "a 3", "a 4", "a 5",
    ]  # fmt: skip
