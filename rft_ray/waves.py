"""Sampling in waves: rollouts go where the budget wants them, by what came of the waves before.

A wave is a stream: asks in, rollouts on disk under the round's `sampled/`, graded, counted. What a
problem is asked next depends on its own counts alone (`budget.py`), so a run that is killed asks
for the same rollouts again and for none that are on disk. Only counts stay in memory. When nothing
is wanted any more, the problems' parts are read as the groups of a fixed budget, and graded once
more, since a wave keeps counts and no verdicts. Left out: `verifier.majority` and
`verifier.best_of`, which are of all of a problem's rollouts and so cannot be counted by parts.
"""

from typing import TYPE_CHECKING

from rft_ray.budget import BudgetConfig, add_up, next_wave
from rft_ray.console import progress, say
from rft_ray.pass_rates import PassRates, load_rates, parse_part, stored_rates
from rft_ray.repeats import drop_repeats
from rft_ray.sampling import Ask, SamplingPlan
from rft_ray.study import Study
from rft_ray.torn_files import set_torn_aside
from rft_ray.types import Problem

if TYPE_CHECKING:
    from ray.data import Dataset


def sample_round(study: Study, plan: SamplingPlan, number: int) -> tuple["Dataset", int]:
    """A round's sampled groups as a stream, and how many problems the budget asks nothing of.

    A fixed budget samples while the stream runs; any other has sampled in waves before.
    """
    from rft_ray import stages

    problems, sampled = study.problems["train"], str(study.run.round(number).sampled)
    set_torn_aside(study.run.round(number).sampled)
    if repeats := drop_repeats(study.run.round(number).sampled):
        say(f"{sampled}: {repeats} groups were there twice; of each the first file's was kept")
    if study.config.budget.kind == "fixed":
        return stages.sample_groups(problems, plan, sampled), 0
    rates = sample_in_waves(study, plan, number)
    num_unasked = sum(not rates.of(problem.id) for problem in problems)
    return stages.read_sampled(problems, sampled), num_unasked


def sample_in_waves(study: Study, plan: SamplingPlan, number: int) -> PassRates:
    """Sample and count, wave after wave, until the round's budget asks for nothing more."""
    from rft_ray import stages

    problems, round_dir = study.problems["train"], study.run.round(number)
    earlier = stored_rates(study.run.round(past).pass_rates for past in range(number))
    rates, uncounted = load_rates(round_dir.pass_rates, round_dir.sampled)
    if uncounted:
        groups = stages.read_files(sorted(set(uncounted.values())))
        count_accepted(study, groups, rates, number, len(uncounted))
    while asks := plan_wave(problems, plan, study.config.budget, rates, earlier):
        groups = stages.sample_wave(asks, plan, str(round_dir.sampled))
        count_accepted(study, groups, rates, number, len(asks))
    return rates


def count_accepted(
    study: Study, groups: "Dataset", rates: PassRates, number: int, num_parts: int
) -> None:
    """Run a wave's stream: grade its groups and add their counts, which are stored at the end."""
    from rft_ray import stages

    graded = stages.verify_groups(groups, study.config.verifier, False, study.test_text)
    came, wave = [], 1 + max((len(parts) for parts in rates.parts.values()), default=0)
    with (
        study.run.timed("sample wave", round=number, wave=wave),
        progress(f"sample, round {number}, wave {wave}", num_parts, "problem") as advance,
    ):
        for line in stages.pass_rate_lines(graded):
            came.append(parse_part(line))
            rates.add(came[-1])
            advance(1)
    rates.save(study.run.round(number).pass_rates)
    sums = add_up(own for part in came for own in part.policies.values())
    counts = {"problems": num_parts, "rollouts": sums.rollouts, "accepted": sums.accepted}
    study.run.log("wave", round=number, wave=wave, **counts)


def plan_wave(
    problems: list[Problem],
    plan: SamplingPlan,
    budget: BudgetConfig,
    rates: PassRates,
    earlier: PassRates,
) -> list[Ask]:
    """What to ask now, in the order of the problems; nothing of those that have enough."""
    most = {policy.name: policy.sampling["n"] for policy in plan.policies}
    asks = []
    for problem in problems:
        first, gap = rates.asked(problem.id)
        own = rates.policies(problem.id)
        # a policy that the problem is too long for answers nothing, however much it may be asked
        k = max(most[name] for name in own or most)
        size = gap or next_wave(
            budget, k, first, rates.tried(problem.id), earlier.tried(problem.id)
        )
        if size:
            asks.append(Ask(problem, first, size))
    return asks
