"""Selection in the stream: the same choice however rows are batched, in memory that stays flat.

Run: pytest tests/test_selection_stage.py
"""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rft_ray.config_sections import SelectionConfig
from rft_ray.records import read_groups, write_groups
from rft_ray.selection import select_group
from rft_ray.types import Group, Problem, Rollout

# Peak memory of the command in a process of its own, in KiB.
MEASURED = """
import resource, sys
from rft_ray.cli import main
code = main(["select", sys.argv[1], "-o", sys.argv[2]])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def graded_groups(
    count: int, rollouts: int, repeats: int = 1, correct: int | None = None
) -> Iterator[Group]:
    """Problems with rollouts by two policies on seven paths, all of them correct or the first."""
    verdicts = ["correct"] * (rollouts if correct is None else correct) + ["wrong"] * rollouts
    for number in range(count):
        draw = random.Random(number)
        texts = (
            f"{''.join(draw.choices('abc ', k=40)) * repeats}<<{draw.randrange(7)}+1=1>>"
            for _ in range(rollouts)
        )
        yield Group(
            Problem(f"p{number}", "?", "1"),
            [
                Rollout("ab"[i % 2], text, sample=i // 2, verdict=verdict)
                for i, (text, verdict) in enumerate(zip(texts, verdicts, strict=False))
            ],
        )


@pytest.mark.engine
@pytest.mark.parametrize("rule", ["paper", "random", "max_min"])
def test_the_choice_is_the_same_however_rows_are_batched(
    ray_session: None, tmp_path: Path, rule: str
) -> None:
    from rft_ray.stages import read_groups_dataset, select_groups, table_to_groups

    config = SelectionConfig(rule=rule, cap=4, balance_policies=True)
    # large enough for the compiled distances, and small
    groups = [*graded_groups(2, rollouts=400), *graded_groups(9, rollouts=20)]
    groups = [Group(Problem(f"q{i}", "?", "1"), g.rollouts) for i, g in enumerate(groups)]
    expected = {group.problem.id: select_group(group, config) for group in groups}
    for size in (1, 4, len(groups)):
        folder = tmp_path / f"{rule}-{size}"
        folder.mkdir()
        for start in range(0, len(groups), size):
            write_groups(folder / f"{start}.parquet", groups[start : start + size])
        stream = select_groups(read_groups_dataset(str(folder)), config)
        found = [
            group
            for batch in stream.iter_batches(batch_size=3, batch_format="pyarrow")
            for group in table_to_groups(batch)
        ]
        assert {group.problem.id: group for group in found} == expected


def test_the_memory_of_the_command_does_not_grow_with_the_problems(tmp_path: Path) -> None:
    peaks = []
    for count in (20, 200):
        path, out = tmp_path / f"{count}.jsonl", tmp_path / f"{count}.out.jsonl"
        write_groups(path, graded_groups(count, rollouts=60, repeats=50, correct=8))
        command = [sys.executable, "-c", MEASURED, str(path), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        code, peak = map(int, done.stdout.split()[-2:])
        assert code == 0 and sum(1 for _ in read_groups(out)) == count
        peaks.append(peak * 1024)
    # the larger file alone is more than all that may be added
    assert path.stat().st_size > 20e6
    assert peaks[1] - peaks[0] < 12e6, peaks
