"""The buffer between sampling and training, under concurrency. Run: pytest tests/test_buffer.py"""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from rft_ray.buffer import GroupBuffer, StepGroups, TrainingEndedError
from rft_ray.types import Group, Problem, Rollout


def make_group(step: int, version: int, policy: str = "live") -> Group:
    return Group(Problem(f"p{step}", "q", "1"), [Rollout(policy, "x", policy_version=version)])


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


async def sample(buffer: GroupBuffer, current: list[int], rng: random.Random) -> list[int]:
    """A driver: asks, samples for a while with the weights that are current then, puts."""
    steps = []
    while (step := await buffer.next_step()) is not None:
        version = current[0]
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        await buffer.put(step, [make_group(step, version)], {"step": step})
        steps.append(step)
    return steps


async def train(
    buffer: GroupBuffer, current: list[int], rng: random.Random
) -> list[StepGroups]:
    """A trainer: takes a step, trains for a while, refreshes, says so."""
    taken = []
    version = current[0]
    await buffer.start(version)
    while (entry := await buffer.take(version)) is not None:
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        version = current[0] = entry.step
        await buffer.trained(version)
        taken.append(entry)
    return taken


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_repeated_out_of_order_or_too_stale(max_staleness: int, seed: int) -> None:
    rng, current = random.Random(seed), [0]

    async def both() -> list[StepGroups]:
        buffer = GroupBuffer(20, max_staleness, "live")
        _, taken = await asyncio.gather(sample(buffer, current, rng), train(buffer, current, rng))
        return taken

    taken = run(both())
    assert [entry.step for entry in taken] == list(range(1, 21))
    for entry in taken:
        # back-pressure alone keeps to the bound, so nothing had to be dropped
        assert entry.dropped == {} and entry.facts == {"step": entry.step}
        (group,) = entry.groups
        age = entry.step - 1 - group.rollouts[0].policy_version
        assert 0 <= age <= max_staleness and entry.staleness == {age: 1}


def test_sampling_runs_ahead_by_the_bound_and_no_further() -> None:
    async def ahead(max_staleness: int) -> int:
        buffer = GroupBuffer(20, max_staleness, "live")
        await buffer.start(0)
        count = 0
        while True:
            try:
                step = await asyncio.wait_for(buffer.next_step(), 0.05)
            except TimeoutError:
                return count
            await buffer.put(step, [], {})
            count += 1

    assert [run(ahead(bound)) for bound in (0, 1, 4)] == [1, 2, 5]


def test_what_is_too_stale_is_dropped_and_counted_whoever_put_it() -> None:
    async def take() -> StepGroups | None:
        buffer = GroupBuffer(9, 1, "live")
        await buffer.start(4)
        groups = [make_group(i, version) for i, version in enumerate([4, 3, 2, 0])]
        groups.append(make_group(9, 0, policy="frozen"))
        await buffer.put(5, groups, {})
        return await buffer.take(4)

    entry = run(take())
    assert [group.problem.id for group in entry.groups] == ["p0", "p1", "p9"]
    assert entry.dropped == {"stale": 2} and entry.staleness == {0: 1, 1: 1}


def test_a_trainer_that_goes_back_gets_the_steps_again_and_late_puts_are_ignored() -> None:
    async def go_back() -> list[Any]:
        buffer = GroupBuffer(9, 2, "live")
        await buffer.start(3)
        asked = [await buffer.next_step()]
        await buffer.put(4, [], {})
        asked.append(await buffer.next_step())
        await buffer.start(1)  # while step 5 was being sampled
        await buffer.put(5, [], {"late": True})
        asked.append(await buffer.next_step())
        await buffer.put(2, [], {})
        entry = await buffer.take(1)
        return [*asked, entry.step if entry else None]

    assert run(go_back()) == [4, 5, 2, 2]


def test_waiting_for_a_step_ends_when_training_goes_back_before_it() -> None:
    async def wait() -> list[bool]:
        buffer = GroupBuffer(9, 2, "live")
        await buffer.start(0)
        await buffer.put(1, [], {})
        await buffer.put(2, [], {})
        waiting = asyncio.ensure_future(buffer.wait_trained(2))
        await asyncio.sleep(0.01)
        await buffer.start(1)  # a rank died; the checkpoint was of step 1
        went_back = await waiting
        await buffer.put(2, [], {})
        await buffer.trained(2)
        return [went_back, await buffer.wait_trained(2)]

    assert run(wait()) == [False, True]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_a_step_being_sampled_has_its_weights_unless_training_went_back_behind_them(
    max_staleness: int,
) -> None:
    async def ask() -> list[bool]:
        buffer, version = GroupBuffer(99, max_staleness, "live"), 5
        await buffer.start(version)
        while await buffer.next_step() < version + 1 + max_staleness:
            await buffer.put(await buffer.next_step(), [], {})
        oldest = await buffer.next_step() - 1 - max_staleness
        has_weights = [await buffer.wait_trained(oldest)]
        for checkpoint in (oldest, oldest - 1, oldest - 3):
            await buffer.start(checkpoint)
            # said at once: the trainer is waiting for steps, not the driver for it
            has_weights.append(await buffer.wait_trained(oldest))
        return has_weights

    assert run(ask()) == [True, True, False, False]


def test_ranks_that_do_not_take_wait_for_a_step_also_where_it_is_taken_already() -> None:
    async def scenario() -> list[bool]:
        buffer = GroupBuffer(9, 0, "live")
        await buffer.start(3)
        early = asyncio.ensure_future(buffer.wait_put(3))
        await asyncio.sleep(0)
        seen = [early.done()]
        await buffer.put(4, [], {})
        await early
        entry = await buffer.take(3)
        await buffer.wait_put(3)  # a rank that is late
        late = asyncio.ensure_future(buffer.wait_put(4))
        await asyncio.sleep(0)
        seen += [entry is not None, late.done()]
        await buffer.close()  # there is no further step
        await late
        return seen

    assert run(scenario()) == [False, True, False]


def test_closing_ends_both_sides_after_what_was_put() -> None:
    async def close() -> list[Any]:
        buffer = GroupBuffer(9, 5, "live")
        await buffer.start(0)
        await buffer.put(1, [], {})
        await buffer.close()
        first, second = await buffer.take(0), await buffer.take(1)
        return [first and first.step, second, await buffer.next_step()]

    assert run(close()) == [1, None, None]


@pytest.mark.parametrize("method", ["next_step", "take", "wait_put", "wait_trained"])
def test_whoever_waits_wakes_when_training_fails(method: str) -> None:
    async def fail() -> None:
        buffer = GroupBuffer(9, 0, "live")
        await buffer.start(0)
        await buffer.put(1, [], {})
        arguments = () if method == "next_step" else (1,)
        waiting = asyncio.ensure_future(getattr(buffer, method)(*arguments))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await buffer.end("training failed: out of memory")
        with pytest.raises(TrainingEndedError, match="out of memory"):
            await waiting

    run(fail())


def test_the_trainer_waits_until_the_samplers_are_free() -> None:
    async def wait() -> list[bool]:
        buffer = GroupBuffer(9, 1, "live")
        waiting = asyncio.ensure_future(buffer.wait_open())
        await asyncio.sleep(0.01)
        before = waiting.done()
        await buffer.open()
        await waiting
        return [before, waiting.done()]

    assert run(wait()) == [False, True]


def test_whoever_waits_for_the_samplers_wakes_at_a_failure() -> None:
    async def wait() -> None:
        buffer = GroupBuffer(9, 1, "live")
        waiting = asyncio.ensure_future(buffer.wait_open())
        await asyncio.sleep(0.01)
        await buffer.end("training failed: a rank died")
        with pytest.raises(TrainingEndedError, match="a rank died"):
            await waiting

    run(wait())


def test_a_trainer_with_nothing_left_to_do_needs_no_step() -> None:
    async def resume() -> int | None:
        buffer = GroupBuffer(9, 1, "live")
        await buffer.open()
        await buffer.end(None)
        return await buffer.next_step()

    assert run(resume()) is None
