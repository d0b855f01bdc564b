"""Claim: with as many rollouts in all, a budget that looks at pass rates solves more problems.

    python benchmarks/budgets.py [--quick] [--pool RUN_DIR | GROUPS]

A pool of graded rollouts of the quickstart's two policies is sampled once (or taken from a finished
run), and every budget draws from it without replacement, in the waves of `rft_ray.budget`. Rival is
fixed k. A problem gets at most twice as many, less where even one accepted rollout of each would
take more in all; then `correct` is the highest that fits, and the first few problems get one more,
so that totals are the same but for part of one problem. Repeats shuffle the pool. Accepted rollouts
for each one sampled, and paths, are context: what goes to hard problems is lost to easy ones, and
no budget that sees to the hard ones can have as many as fixed k.
"""

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft_ray.budget import BudgetConfig, Tried, next_wave
from rft_ray.selection import path_key
from rft_ray.types import Group

ROOT = Path(__file__).parents[1]
FIRST_WAVE = 2
ENOUGH = 4
"""Accepted rollouts from which a problem counts as well covered."""
FIXED_K = (4, 16)
"""Rollouts a policy of the fixed budget, which says how many every budget gets in all."""
MOST = 2
"""How many times as many one problem may get from the other budgets."""
COMPARED = "problems solved"
"""What has a goal, which is parity; the rest is context."""

Paths = list[str | None]
"""A policy's rollouts of a problem: each one's path where it is accepted."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a budget got out of a problem."""

    rollouts: int
    accepted: int
    paths: int


def main() -> None:
    """Sample or read the pool, draw, print the table and, last, the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--pool", type=Path, help="finished run or graded groups file")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    repeats = 10 if arguments.quick else 40
    if arguments.pool:
        from rft_ray.group_source import find_source

        pool = read_pool(find_source(arguments.pool, sampled=False))
    else:
        pool = sample_pool(*((96, 32, 100) if arguments.quick else (300, 64, None)))
    report(pool, {k: [draw_all(pool, k, seed) for seed in range(repeats)] for k in FIXED_K})


def sample_pool(problems: int, k: int, steps: int | None) -> list[list[Paths]]:
    """Fine-tune the quickstart's policies and sample a pool from both."""
    from rft_ray.config_file import load_config
    from rft_ray.fine_tuning import fine_tune
    from rft_ray.offline import sample_verify_select
    from rft_ray.study import open_study, running_samplers

    short = [f"sft.steps={steps}", f"policies.1.sft.steps={steps}"] if steps else []
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"run_dir={folder}/run",
            f"problems.train.count={problems}",
            "problems.heldout.count=16",
            "problems.validation=null",
            "sft.export_every=null",
            "rft.export_every=null",
            f"sampling.k={k}",
            *short,
        ]
        with open_study(load_config("configs/quickstart.yaml", overrides)) as study:
            checkpoints = fine_tune(study)
            with running_samplers(study) as samplers:
                sample_verify_select(study, samplers, 0, checkpoints)
            return read_pool(study.run.round(0).selected)


def read_pool(source: Path) -> list[list[Paths]]:
    """By problem and policy: the paths of the accepted rollouts, in the order of the samples."""
    from rft_ray.group_source import open_source

    return [group_paths(group) for group in open_source(source)]


def group_paths(group: Group) -> list[Paths]:
    """A group as a pool keeps it."""
    by_policy: dict[str, Paths] = {}
    for rollout in group.rollouts:
        path = path_key(rollout.completion) if rollout.is_accepted else None
        by_policy.setdefault(rollout.policy, []).append(path)
    return list(by_policy.values())


def draw_all(pool: list[list[Paths]], fixed_k: int, seed: int) -> dict[str, list[Drawn]]:
    """What each budget gets of every problem at the same total, from a pool shuffled anew."""
    rng = random.Random(seed)
    shuffled = [[rng.sample(own, len(own)) for own in problem] for problem in pool]
    rng.shuffle(shuffled)
    fixed = [draw_fixed(problem, fixed_k) for problem in shuffled]
    return {
        "fixed": fixed,
        **{kind: draw_equal(shuffled, kind, fixed_k) for kind in ("uniform", "prop2diff")},
    }


def draw_equal(pool: list[list[Paths]], kind: str, fixed_k: int) -> list[Drawn]:
    """A budget's draw with the highest targets that take no more rollouts than fixed k in all."""
    total = fixed_k * sum(map(len, pool))
    k = MOST * fixed_k
    while total_rollouts(low := draw(pool, kind, 1, k)) > total:
        k -= 1
    correct = 1
    while total_rollouts(high := draw(pool, kind, correct + 1, k)) <= total:
        correct, low = correct + 1, high
        if correct > k * len(pool[0]):
            return low  # everybody gets the most
    best = low
    for number in range(len(pool) + 1):
        mixed = high[:number] + low[number:]
        if total_rollouts(best) < total_rollouts(mixed) <= total:
            best = mixed
    return best


def draw(pool: list[list[Paths]], kind: str, correct: int, k: int) -> list[Drawn]:
    """Every problem drawn in waves with one target."""
    budget = BudgetConfig(kind=kind, correct=correct, first_wave=FIRST_WAVE)
    return [draw_waves(problem, budget, k) for problem in pool]


def draw_waves(problem: list[Paths], budget: BudgetConfig, k: int) -> Drawn:
    """One problem, wave after wave, as a run would sample it."""
    asked = 0
    taken: Paths = []
    while size := next_wave(
        budget, k, asked, Tried(len(taken), sum(path is not None for path in taken)), Tried()
    ):
        taken += [path for own in problem for path in own[asked : asked + size]]
        asked += size
    return count(taken)


def draw_fixed(problem: list[Paths], k: int) -> Drawn:
    """The first k rollouts of each policy."""
    return count(path for own in problem for path in own[:k])


def count(taken: Iterable[str | None]) -> Drawn:
    """The counts of some rollouts of a problem."""
    taken = list(taken)
    accepted = [path for path in taken if path is not None]
    return Drawn(len(taken), len(accepted), len(set(accepted)))


def total_rollouts(drawn: list[Drawn]) -> int:
    """Over all problems."""
    return sum(own.rollouts for own in drawn)


def measure(drawn: list[Drawn]) -> dict[str, float]:
    """The numbers of the table, per problem or per rollout."""
    total, problems = total_rollouts(drawn), len(drawn)
    return {
        "problems solved": sum(own.accepted > 0 for own in drawn) / problems,
        f"problems with {ENOUGH} accepted": sum(own.accepted >= ENOUGH for own in drawn) / problems,
        "distinct paths": sum(own.paths for own in drawn) / problems,
        "accepted per rollout": sum(own.accepted for own in drawn) / total,
        "rollouts": total / problems,
    }


def report(pool: list[list[Paths]], repeats: dict[int, list[dict[str, list[Drawn]]]]) -> None:
    """A small table, a result file, and the JSON line of the benchmark contract."""
    from rft_ray.benchmark_summary import finish

    size = max(len(own) for problem in pool for own in problem)
    print(f"{len(pool)} problems, a pool of {size} rollouts of each policy")
    results = [row for k, drawn in repeats.items() for row in compare(k, drawn)]
    finish(__file__, results)


def compare(k: int, repeats: list[dict[str, list[Drawn]]]) -> list[dict[str, Any]]:
    """The rows of one total, printed on the way; medians over the shuffles."""
    measured = [{kind: measure(own) for kind, own in each.items()} for each in repeats]
    print(f"as many rollouts as fixed k = {k} takes; {len(repeats)} shuffles")
    rows = []
    for metric in measured[0]["fixed"]:
        values = {kind: [each[kind][metric] for each in measured] for kind in measured[0]}
        for kind, own in values.items():
            print(f"{metric:26} {kind:10} {statistics.median(own):8.3f}  {spread(own)}")
        rows += [metric_row(metric, kind, k, values) for kind in values if kind != "fixed"]
    return rows


def spread(values: list[float]) -> str:
    """The range over the shuffles."""
    return f"from {min(values):.3f} to {max(values):.3f}"


def metric_row(metric: str, kind: str, k: int, values: dict[str, list[float]]) -> dict[str, Any]:
    """A row of the JSON line."""
    from rft_ray.benchmark_summary import row

    mine, theirs = statistics.median(values[kind]), statistics.median(values["fixed"])
    unit = "per rollout" if metric == "accepted per rollout" else "per problem"
    context = {} if metric == COMPARED else {"info": True}
    rival, ratio = f"fixed k = {k}, as many rollouts", mine / theirs if theirs else 0.0
    return row(f"{metric}, {kind}", mine, rival, theirs, 1.0, unit, ratio) | context


if __name__ == "__main__":
    main()
