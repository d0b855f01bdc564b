"""Sampling in waves: over real files with a made-up policy, then on real engines.

Run: pytest tests/test_waves.py
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.budget import BudgetConfig, Tried, missing
from rft_ray.config_file import load_config
from rft_ray.pass_rates import (
    PassRates,
    load_rates,
    part_of,
    parts_on_disk,
    stored_rates,
)
from rft_ray.pool import Pool
from rft_ray.prompts import Prompt
from rft_ray.records import read_groups, write_groups
from rft_ray.run_dir import RunDir
from rft_ray.sampling import Ask, Policy, SamplingPlan, Weights, request_seed
from rft_ray.study import Study
from rft_ray.types import Group, Problem, Rollout
from rft_ray.waves import plan_wave, sample_in_waves, sample_round
from rft_ray.word_problems import generate_word_problems
from tests.conftest import BASES, RUN_ID

ROOT = Path(__file__).parents[1]
PROMPT = Prompt("Question: {prompt}\nAnswer:\n")
PROBLEMS = [Problem(f"p{number}", "q", "1") for number in range(12)]
BUDGET = BudgetConfig(kind="uniform", correct=3, first_wave=2)


class Coins:
    """A policy that is right as a coin falls, the same coin for the same sample, as by a seed."""

    def __init__(self, plan: SamplingPlan) -> None:
        self.plan = plan

    def answer(self, ask: Ask) -> Group:
        number = int(ask.problem.id[1:])
        rollouts = []
        for policy in self.plan.policies:
            for sample in range(ask.first, min(ask.first + ask.count, policy.sampling["n"])):
                seed = request_seed(self.plan.seed, self.plan.round, policy.name, ask.problem.id)
                # from never right to always right over the problems
                is_right = random.Random(seed + sample).random() < number / (len(PROBLEMS) - 1)
                verdict = "correct" if is_right else "wrong"
                text = f"{policy.name} {sample}"
                rollouts.append(
                    Rollout(policy.name, text, round=self.plan.round, sample=sample,
                            finish_reason="stop", verdict=verdict)
                )  # fmt: skip
        # one problem is too long for everybody
        return Group(ask.problem, [] if number == 5 else rollouts)


def make_plan(k: dict[str, int] | None = None, round: int = 0) -> SamplingPlan:
    """Two policies that are asked for up to k rollouts of a problem."""
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 16}
    policies = [
        Policy(
            name=name,
            application=f"rft-{RUN_ID}-{name}",
            tokenizer=str(BASES / name),
            weights=Weights(str(BASES / name), 0),
            prompt=PROMPT,
            sampling={**sampling, "n": n, "ignore_eos": True},
            max_model_len=192,
            max_rollouts_in_flight=24,
        )
        for name, n in (k or {"tied": 16, "untied": 16}).items()
    ]
    return SamplingPlan(policies, seed=0, round=round)


def run_waves(folder: Path, plan: SamplingPlan, kill_after: int | None = None) -> PassRates:
    """The loop of `sample_in_waves` without engines; the kill comes after so many files.

    Two asks a file, counted only when the whole wave is there, as a run does.
    """
    rates, uncounted = load_rates(folder / "pass_rates.jsonl", folder)
    for path in sorted(set(uncounted.values())):
        for group in read_groups(path):
            rates.add(part_of(group))
    files = 0
    while asks := plan_wave(PROBLEMS, plan, BUDGET, rates, PassRates()):
        came = []
        for start in range(0, len(asks), 2):
            if files == kill_after:
                return rates
            groups = [Coins(plan).answer(ask) for ask in asks[start : start + 2]]
            names = "-".join(f"{ask.problem.id}_{ask.first}" for ask in asks[start : start + 2])
            assert not (folder / f"{names}.parquet").exists()
            write_groups(folder / f"{names}.parquet", groups)
            came += groups
            files += 1
        for group in came:
            rates.add(part_of(group))
        rates.save(folder / "pass_rates.jsonl")
    return rates


def pooled(folder: Path) -> dict[str, Group | None]:
    pool = Pool(folder)
    return {problem.id: pool.get(problem.id) for problem in PROBLEMS}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Group | None]:
    """The joined groups of waves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("waves")
    run_waves(folder, make_plan())
    return pooled(folder)


def test_every_problem_is_asked_until_enough_are_right_or_the_most_is_reached(
    uninterrupted: dict[str, Group | None],
) -> None:
    counts = {}
    for name, group in uninterrupted.items():
        assert group is not None
        k = len(group.rollouts) // 2
        # in the order in which one request for all of them would have come
        assert [(r.policy, r.sample) for r in group.rollouts] == [
            (policy, sample) for policy in ("tied", "untied") for sample in range(k)
        ]
        assert len(group.accepted) >= 3 or k == 16 or name == "p5"
        counts[name] = k
    assert (counts["p0"], counts["p5"], counts["p11"]) == (16, 0, 2)
    assert sum(counts.values()) < 16 * 11


@pytest.mark.parametrize("kill_after", [0, 1, 5, 6, 7, 11, 13])
def test_a_kill_at_any_file_loses_nothing_and_doubles_nothing(
    tmp_path: Path, kill_after: int, uninterrupted: dict[str, Group | None]
) -> None:
    run_waves(tmp_path, make_plan(), kill_after)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(before) == kill_after
    rates = run_waves(tmp_path, make_plan())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert pooled(tmp_path) == uninterrupted
    for name, group in uninterrupted.items():
        assert group is not None
        assert rates.tried(name) == Tried(len(group.rollouts), len(group.accepted))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_lost_files_are_sampled_again_and_the_rest_is_left(
    tmp_path_factory: pytest.TempPathFactory,
    uninterrupted: dict[str, Group | None],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("lost")
    run_waves(folder, make_plan())
    files = sorted(folder.glob("*.parquet"))
    for path in data.draw(st.sets(st.sampled_from(files), min_size=1)):
        path.unlink()
    run_waves(folder, make_plan())
    ours = pooled(folder)
    samples = Counter((k, r.policy, r.sample) for k, g in ours.items() if g for r in g.rollouts)
    assert set(samples.values()) == {1}
    assert ours == uninterrupted


def test_a_policy_with_a_smaller_k_stops_at_its_own(tmp_path: Path) -> None:
    run_waves(tmp_path, make_plan({"tied": 3, "untied": 16}))
    group = pooled(tmp_path)["p0"]
    assert group is not None
    assert Counter(r.policy for r in group.rollouts) == {"tied": 3, "untied": 16}


def test_a_later_round_asks_only_for_what_the_earlier_ones_lack(tmp_path: Path) -> None:
    first = run_waves(tmp_path, make_plan())
    earlier = stored_rates([tmp_path / "pass_rates.jsonl"])
    for problem in PROBLEMS:
        assert earlier.tried(problem.id) == first.tried(problem.id)
    asks = plan_wave(PROBLEMS, make_plan(round=1), BUDGET, PassRates(), earlier)
    assert [(ask.problem.id, ask.first, ask.count) for ask in asks] == [
        (p.id, 0, 2) for p in PROBLEMS if first.tried(p.id).accepted < 3
    ]
    assert 0 < len(asks) < len(PROBLEMS)


def test_counts_survive_the_file_and_a_line_without_rollouts_is_left_out(tmp_path: Path) -> None:
    rates = run_waves(tmp_path, make_plan())
    again, uncounted = load_rates(tmp_path / "pass_rates.jsonl", tmp_path)
    assert (again, uncounted) == (rates, {})
    assert len(parts_on_disk(tmp_path)) == sum(map(len, rates.parts.values()))
    nothing, _ = load_rates(tmp_path / "pass_rates.jsonl", tmp_path / "elsewhere")
    assert nothing == PassRates()


def test_blocks_hold_no_more_than_is_in_flight_and_every_ask_once() -> None:
    from rft_ray.stages import cut_wave

    rng = random.Random(0)
    asks = [Ask(problem, 0, rng.choice([1, 2, 8])) for problem in PROBLEMS]
    blocks = cut_wave(asks, 8)
    assert [ask for block in blocks for ask in block] == asks
    assert all(1 <= sum(ask.count for ask in block) <= 8 for block in blocks)
    # neighbouring blocks would not fit into one
    for one, other in pairwise(blocks):
        assert sum(ask.count for ask in one) + other[0].count > 8


def make_study(folder: Path, *overrides: str) -> Study:
    """A run's study over five generated problems; its models are not asked for."""
    config = load_config(ROOT / "configs/quickstart.yaml", [f"run_dir={folder}", *overrides])
    problems = generate_word_problems(5, seed=0, split="train")
    return Study(config, RunDir(folder), {"train": problems}, models={})


@pytest.mark.engine
def test_waves_on_engines_give_the_rollouts_of_one_request(
    samplers: dict[str, Any], tmp_path: Path
) -> None:
    from rft_ray.stages import sample_groups, table_to_groups

    waves = ["budget.kind=uniform", "budget.correct=6", "budget.first_wave=2"]
    plan = make_plan({"tied": 6, "untied": 5})
    study = make_study(tmp_path, *waves)
    problems = study.problems["train"]
    groups, num_unasked = sample_round(study, plan, 0)
    tables = groups.iter_batches(batch_size=None, batch_format="pyarrow")
    joined = {group.problem.id: group for table in tables for group in table_to_groups(table)}
    assert num_unasked == 0 and len(joined) == 5
    # the bases have learned nothing: everybody gets the most, in waves of 2, 2 and 2
    sampled = tmp_path / "round-000" / "sampled"
    assert Counter(first for _, first in parts_on_disk(sampled)) == {0: 5, 2: 5, 4: 5}
    sample_groups(problems, plan, str(tmp_path / "at-once")).materialize()
    for group in read_groups(tmp_path / "at-once"):
        assert joined[group.problem.id] == group
        assert Counter(r.policy for r in group.rollouts) == {"tied": 6, "untied": 5}

    # started again it finds everything; what was sampled but not counted is graded first
    times = {path: path.stat().st_mtime_ns for path in sampled.iterdir()}
    stored = tmp_path / "round-000" / "pass_rates.jsonl"
    counted = stored.read_text().splitlines()
    stored.write_text("".join(f"{line}\n" for line in counted[:7]))
    sample_in_waves(study, plan, 0)
    assert sorted(stored.read_text().splitlines()) == sorted(counted)
    assert {path: path.stat().st_mtime_ns for path in sampled.iterdir()} == times


@pytest.mark.engine
@pytest.mark.faults
def test_a_run_killed_between_waves_goes_on_with_what_is_on_disk(tmp_path: Path) -> None:
    overrides = [
        f"run_dir={tmp_path / 'run'}",
        "problems.train.count=24",
        "problems.validation.count=8",
        "problems.heldout.count=8",
        "sft.steps=120",
        "policies.1.sft.steps=120",
        "trainer.num_workers=1",
        "sampling.k=12",
        "budget={kind: uniform, correct: 1, first_wave: 3}",
    ]
    command = [sys.executable, "-m", "rft_ray", "sample", "configs/quickstart.yaml", *overrides]
    folder = tmp_path / "run" / "round-000"
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        process_group=0,
    )  # fmt: skip
    deadline = time.monotonic() + 900
    while not (folder / "pass_rates.jsonl").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "sampled").glob("*.parquet")}
    assert kept and not (folder / "selected").exists()

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    pool = Pool(folder / "sampled")
    budget = BudgetConfig(kind="uniform", correct=1, first_wave=3)
    sizes = set()
    for group in read_groups(folder / "selected"):
        k = len(group.rollouts) // 2
        assert [(r.policy, r.sample) for r in group.rollouts] == [
            (policy, sample) for policy in ("tied", "untied") for sample in range(k)
        ]
        sampled = pool.get(group.problem.id)
        assert sampled is not None
        assert [r.completion for r in sampled.rollouts] == [r.completion for r in group.rollouts]
        tried = Tried(len(group.rollouts), len(group.accepted))
        assert k == 12 or missing(budget, tried) == 0
        sizes.add(k)
    assert len(pool) == 24 and min(sizes) >= 3 and len(sizes) > 1

    # a further round is not begun where this one found too little, whatever num_rounds allows
    more = [*command, "num_rounds=2", "budget.min_new_paths=99"]
    again = subprocess.run(more, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout == done.stdout and not (tmp_path / "run" / "round-001").exists()
