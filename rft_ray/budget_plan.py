"""What a budget will cost, before anything is sampled: rollouts per policy and wave of a round.

The waves of `budget.py` are played through with drawn outcomes. How often a policy solves a problem
is drawn from what is known of it: a Beta distribution of its stored rollouts, or, where there are
none, every rate alike. One quantile is drawn a problem, so what is hard for one policy is hard for
all. Left out: tokens and time (`costs.py` has the operations of one), and later rounds, which ask
for what the earlier ones leave missing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rft_ray.budget import BudgetConfig, Tried, missing, next_wave
from rft_ray.config import ProblemSetConfig, RunConfig
from rft_ray.errors import InputError
from rft_ray.pass_rates import part_of
from rft_ray.types import Group

FEWEST_PLAYED = 2_000
"""Problems that are played through at least, over and over where there are fewer."""
PER_PROBLEMS = 1_000
SEED = 0

Known = dict[str, Tried]
"""What is known of a problem, by policy."""


@dataclass(slots=True)
class Cost:
    """Sums over the problems that were played through."""

    played: int = 0
    waves: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By wave, from 0 on: rollouts by policy."""
    asked: Counter[int] = field(default_factory=Counter)
    """By wave: problems that were asked in it."""
    accepted: int = 0
    solved: int = 0
    reached: int = 0

    @property
    def rollouts(self) -> Counter[str]:
        """Of each policy in all waves."""
        return sum(self.waves.values(), Counter())


def print_budget(config: RunConfig, source: Path | None = None) -> None:
    """Print what the first round samples, with the pass rates of a graded groups file or of none.

    Raises InputError where the file is not readable or nothing in it is graded.
    """
    known = known_rates(source) if source else [{}]
    count = count_problems(config.problems.train)
    k = {policy.name: policy.sampling.k for policy in config.policies}
    cost = play(config.budget, k, known)
    scale = (count or PER_PROBLEMS) / cost.played
    of = f"{count} problems" if count else f"every {PER_PROBLEMS} problems"
    rates = f"pass rates of {len(known)} problems in {source}" if source else "any pass rate alike"
    print(f"rollouts of a first round for {of}, budget {config.budget.kind}, {rates}:")
    print(" ".join([f"{'wave':>6}", f"{'problems':>10}", *(f"{name:>12}" for name in k)]))
    for wave, rollouts in sorted(cost.waves.items()):
        row = [f"{wave + 1:6d}", f"{cost.asked[wave] * scale:10.0f}"]
        print(" ".join(row + [f"{rollouts[name] * scale:12.0f}" for name in k]))
    sums = [f"{cost.rollouts[name] * scale:12.0f}" for name in k]
    print(" ".join([f"{'all':>6}", f"{cost.played * scale:10.0f}", *sums]))
    total = cost.rollouts.total()
    print(
        f"accepted: {cost.accepted * scale:.0f}, {cost.accepted / total:.2f} for each rollout; "
        f"{cost.solved / cost.played:.1%} of the problems solved"
    )
    if unknown := [name for name in k if source and not any(name in own for own in known)]:
        print(f"no pass rates of {', '.join(unknown)}: any is taken to be alike")
    if config.budget.kind != "fixed":
        fixed = sum(k.values()) * cost.played
        print(
            f"{cost.reached / cost.played:.1%} reach their target; {total / fixed:.0%} of what a "
            "fixed budget with the same k samples"
        )


def count_problems(config: ProblemSetConfig) -> int | None:
    """How many training problems there are; None where their file is not here."""
    from rft_ray.problems import load_problems

    if config.count is not None:
        return config.count
    if config.format == "huggingface" or not Path(config.path or "").exists():
        return None
    return len(load_problems(config))


def known_rates(source: Path) -> list[Known]:
    """What a graded groups file says of each of its problems."""
    from rft_ray.group_source import open_source

    known = []
    for group in open_source(source):
        _check_graded(group, source)
        known.append(part_of(group).policies)
    return known


def _check_graded(group: Group, source: Path) -> None:
    for number, rollout in enumerate(group.rollouts):
        if rollout.verdict is None:
            raise InputError(
                f"{source}: problem {group.problem.id!r}: rollouts[{number}].verdict: none; grade "
                "the file with `rft-ray verify` first"
            )


def play(budget: BudgetConfig, k: dict[str, int], known: list[Known]) -> Cost:
    """Every problem through all its waves; `k` is the most of each policy."""
    rng, cost = np.random.default_rng(SEED), Cost()
    for _ in range(-(-FEWEST_PLAYED // len(known))):
        for own in known:
            _play_problem(budget, k, draw_rates(k, own, rng.random()), rng, cost)
    return cost


def draw_rates(policies: Iterable[str], known: Known, quantile: float) -> dict[str, float]:
    """The chance of each policy to solve a problem: that quantile of its Beta distribution."""
    from scipy.special import betaincinv

    rates = {}
    for name in policies:
        own = known.get(name, Tried())
        wrong = own.rollouts - own.accepted
        rates[name] = float(betaincinv(own.accepted + 1, wrong + 1, quantile))
    return rates


def _play_problem(
    budget: BudgetConfig,
    k: dict[str, int],
    rates: dict[str, float],
    rng: np.random.Generator,
    cost: Cost,
) -> None:
    asked, own, wave, most = 0, Tried(), 0, max(k.values())
    while size := _next_size(budget, most, asked, own):
        for name, rate in rates.items():
            rollouts = max(0, min(size, k[name] - asked))
            own += Tried(rollouts, int(rng.binomial(rollouts, rate)))
            cost.waves[wave][name] += rollouts
        cost.asked[wave] += 1
        asked, wave = asked + size, wave + 1
    cost.played += 1
    cost.accepted += own.accepted
    cost.solved += own.accepted > 0
    cost.reached += missing(budget, own) == 0


def _next_size(budget: BudgetConfig, most: int, asked: int, own: Tried) -> int:
    if budget.kind == "fixed":
        return most - asked
    return next_wave(budget, most, asked, own, Tried())
