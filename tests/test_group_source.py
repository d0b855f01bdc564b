"""Commands read what a run directory holds with each problem once, wherever its parts are."""

import json
from pathlib import Path

import pytest

import rft_ray.group_source
from rft_ray.cli import main
from rft_ray.errors import InputError
from rft_ray.group_source import find_source, open_source
from rft_ray.records import read_groups, write_groups
from rft_ray.types import Group, Problem, Rollout


def group_of(problem_id: str, *samples: int, version: int = 0) -> Group:
    """A problem with these samples of one policy, every one right in a way of its own."""
    rollouts = [
        Rollout(
            "a", f"<<{i}+{version}={i + version}>>#### 1", policy_version=version, sample=i,
            token_ids=[i, 2], logprobs=[-1.0, -2.0], finish_reason="stop",
            verdict="correct", reward=1.0, selected=True,
        )
        for i in samples
    ]  # fmt: skip
    return Group(Problem(problem_id, f"What is {problem_id}?", "1"), rollouts)


@pytest.fixture
def online(tmp_path: Path) -> Path:
    """A run directory of three online steps, in which two problems had their turn twice."""
    run = tmp_path / "run"
    for step, names in enumerate((["p", "q"], ["r", "p"], ["q"])):
        groups = [group_of(name, 0, 1, version=step) for name in names]
        for folder in ("sampled", "selected"):
            (run / "round-000" / folder).mkdir(parents=True, exist_ok=True)
            write_groups(run / "round-000" / folder / f"step-{step + 1:06d}.parquet", groups)
    (run / "config.yaml").write_text("policies: [{name: a, model: m}]\n")
    return run


def test_a_run_directory_means_its_newest_round_that_has_rollouts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = run / "round-000/selected", run / "round-001/sampled"
    for folder in (first, second, run / "round-002"):
        folder.mkdir(parents=True)
    with pytest.raises(InputError, match="no selected or sampled rollouts in any round"):
        find_source(run)
    write_groups(first / "0.parquet", [group_of("p", 1)])
    write_groups(second / "0.parquet", [group_of("p", 2)])
    assert find_source(run) == second
    assert find_source(run, sampled=False) == first
    assert find_source(run, 0) == first
    assert find_source(first) == first
    with pytest.raises(InputError, match=r"there is no round 3 \(there: 0, 1, 2\)"):
        find_source(run, 3)
    with pytest.raises(InputError, match="no selected rollouts in round 1"):
        find_source(run, 1, sampled=False)
    with pytest.raises(InputError, match="not a run directory, so there is no round 0"):
        find_source(first, 0)



VERSIONS = {"p": [0, 0, 1, 1], "q": [0, 0, 2, 2], "r": [1, 1]}


def versions(groups: object) -> dict[str, list[int]]:
    return {g.problem.id: sorted(r.policy_version for r in g.rollouts) for g in groups}


@pytest.mark.parametrize("most", [1, 3, 8192])
def test_an_online_run_has_a_problem_once_with_what_it_got_in_every_step(
    online: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(rft_ray.group_source, "PARTS_AT_A_TIME", most)
    groups = open_source(find_source(online), with_tokens=True)
    assert len(groups) == 3 and versions(groups) == VERSIONS
    assert all(r.token_ids == [r.sample, 2] for group in groups for r in group.rollouts)
    assert list(versions(groups)) == ["p", "q", "r"]
    for group in open_source(find_source(online)):
        assert {r.token_ids for r in group.rollouts} == {None}


@pytest.mark.parametrize("place", ["", "round-000/selected", "round-000/sampled"])
def test_every_command_takes_an_online_run(online: Path, tmp_path: Path, place: str) -> None:
    source = str(online / place)
    verified, selected = tmp_path / "verified.parquet", tmp_path / "selected.jsonl"
    assert main(["verify", source, "-o", str(verified), "--workers", "1"]) == 0
    assert versions(read_groups(verified)) == VERSIONS
    assert main(["select", source, "-o", str(selected)]) == 0
    assert versions(read_groups(selected)) == VERSIONS
    assert main(["export", source, "-o", str(tmp_path / "rows.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["query"][8] for row in rows] == [*"ppppqqqqrr"]
    assert main(["export", source, "-o", str(tmp_path / "folder")]) == 0
    assert main(["inspect", source]) == 0
    assert main(["inspect", source, "--problem", "r"]) == 0
    assert main(["inspect", source, "--paths"]) == 0


def test_a_round_that_is_sampled_in_waves_has_whole_problems(tmp_path: Path) -> None:
    place = tmp_path / "round-000" / "sampled"
    place.mkdir(parents=True)
    for first in (2, 0):
        write_groups(place / f"{9 - first}.parquet", [group_of("p", first, first + 1)])
    (group,) = open_source(find_source(tmp_path))
    assert [r.sample for r in group.rollouts] == [0, 1, 2, 3]


def test_a_part_that_a_run_has_twice_counts_once(tmp_path: Path) -> None:
    place = tmp_path / "round-000" / "sampled"
    place.mkdir(parents=True)
    write_groups(place / "0.parquet", [group_of("p", 0, 1, version=1), group_of("q", 0)])
    write_groups(place / "1.parquet", [group_of("r", 0), group_of("p", 0, 1, version=2)])
    assert versions(open_source(place)) == {"p": [1, 1], "q": [0], "r": [0]}


def test_a_folder_that_is_not_of_a_run_has_a_problem_once(tmp_path: Path) -> None:
    for name in ("0", "1"):
        write_groups(tmp_path / f"{name}.parquet", [group_of("p", 0)])
    with pytest.raises(InputError, match=r"1\.parquet: row 1: problem.id: 'p' is also at"):
        list(open_source(tmp_path))


def test_a_damaged_file_of_a_run_is_named(online: Path) -> None:
    (online / "round-000/selected/step-000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"step-000002\.parquet: not a readable Parquet file"):
        open_source(find_source(online))
