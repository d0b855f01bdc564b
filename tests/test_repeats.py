"""Groups that were sampled twice count once. Run: pytest tests/test_repeats.py"""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rft_ray.pass_rates import first_samples, parts_on_disk
from rft_ray.pool import Pool
from rft_ray.records import read_groups, write_groups
from rft_ray.repeats import drop_repeats
from rft_ray.types import Group, Problem, Rollout


def part(problem_id: str, first: int, text: str, count: int = 2) -> Group:
    rollouts = [Rollout("a", f"{text} {i}", sample=i) for i in range(first, first + count)]
    return Group(Problem(problem_id, "q", "1"), rollouts)


def test_the_first_files_copy_is_kept_and_the_rest_left_as_it_was(tmp_path: Path) -> None:
    write_groups(tmp_path / "a.parquet", [part("p", 0, "a"), part("q", 0, "a", count=0)])
    write_groups(tmp_path / "b.parquet", [part("r", 0, "b"), part("q", 0, "b", count=0)])
    write_groups(tmp_path / "c.parquet", [part("q", 0, "c", count=0), part("p", 0, "c")])
    write_groups(tmp_path / "d.parquet", [part("s", 0, "d")])
    untouched = [(tmp_path / name).read_bytes() for name in ("a.parquet", "d.parquet")]
    assert drop_repeats(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.parquet", "b.parquet", "d.parquet"
    ]  # fmt: skip
    assert [(tmp_path / name).read_bytes() for name in ("a.parquet", "d.parquet")] == untouched
    texts = {g.problem.id: [r.completion for r in g.rollouts] for g in read_groups(tmp_path)}
    assert texts == {"p": ["a 0", "a 1"], "q": [], "r": ["b 0", "b 1"], "s": ["d 0", "d 1"]}
    assert drop_repeats(tmp_path) == drop_repeats(tmp_path / "not there") == 0


def test_the_parts_of_waves_are_no_repeats_of_each_other(tmp_path: Path) -> None:
    write_groups(tmp_path / "a.parquet", [part("p", 2, "a")])
    write_groups(tmp_path / "b.parquet", [part("p", 0, "b"), part("p2", 2, "b")])
    assert drop_repeats(tmp_path) == 0
    write_groups(tmp_path / "c.parquet", [part("p", 0, "c")])
    # an actor may also write while the run goes on
    group = Pool(tmp_path).get("p")
    assert group is not None and [r.completion for r in group.rollouts] == ["b 0", "b 1", "a 2",
                                                                            "a 3"]  # fmt: skip
    assert drop_repeats(tmp_path) == 1 and not (tmp_path / "c.parquet").exists()
    assert Pool(tmp_path).get("p") == group


@pytest.mark.parametrize("seed", range(5))
def test_a_part_is_known_by_its_lowest_sample(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    groups, expected = [], []
    for number in range(rng.randrange(40)):
        samples = rng.sample(range(100), rng.choice([0, 1, 3]))
        rollouts = [Rollout("a", "t", sample=sample) for sample in samples]
        groups.append(Group(Problem(f"p{number}", "q", "1"), rollouts))
        expected.append((f"p{number}", min(samples, default=0)))
    write_groups(tmp_path / "x.parquet", groups)
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        assert first_samples(file) == expected
    assert set(parts_on_disk(tmp_path)) == set(expected)
