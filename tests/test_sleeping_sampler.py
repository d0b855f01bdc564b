"""Replicas that sleep between generations, on real engines: what they refuse, and what wakes them.

vLLM frees nothing on a CPU, but takes the same calls in the same order.

Run: pytest tests/test_sleeping_sampler.py
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rft_ray.sampling import LIVE, Weights
from tests.conftest import BASES
from tests.test_refresh import CAP_BYTES, assert_pair_serves, sample, send_folder

pytestmark = [pytest.mark.engine, pytest.mark.faults]
Checkpoints = Callable[[str, int], Path]
RUN = "asleep"


@pytest.fixture(scope="module")
def gate(ray_session: None) -> Any:
    """The gate that replicas of this module start through."""
    from rft_ray.gpu_gate import NAMESPACE, GateActor, gate_name

    return GateActor.options(name=gate_name(RUN), namespace=NAMESPACE, num_cpus=0).remote()


@pytest.fixture(scope="module")
def pair(gate: Any) -> Iterator[Any]:
    """Two replicas of the tied base."""
    from rft_ray.config import SamplerConfig
    from rft_ray.deployment import deployed_samplers
    from rft_ray.gpu_gate import gate_name

    config = SamplerConfig(
        num_replicas=2,
        vllm={"dtype": "float32", "max_model_len": 192, "max_num_seqs": 64},
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    models = {"pair": (str(BASES / "tied"), config)}
    with deployed_samplers(models, RUN, 1e-3, gate_name(RUN)) as handles:
        yield handles["pair"]


@pytest.fixture(scope="module")
def sleepers(pair: Any, gate: Any) -> Any:
    """What rank 0 puts both to sleep with, as replicas of the live policy."""
    from rft_ray.gpu_gate import Sharing
    from rft_ray.gpu_turns import Sleepers

    return Sleepers(Sharing(gate, pair.app_name, {pair.app_name: 2}), replicas_s=300)


@pytest.fixture(scope="module")
def link(pair: Any) -> Iterator[Any]:
    """Rank 0's half of refreshes."""
    from rft_ray.refresh import RefreshSettings, SamplerLink

    # The first tokens of an engine may take long on a busy machine.
    link = SamplerLink(pair.app_name, RefreshSettings(bucket_bytes=CAP_BYTES, timeout_s=60))
    yield link
    link.close()


def test_whoever_starts_waits_at_a_closed_gate_and_passes_where_there_is_none(gate: Any) -> None:
    from rft_ray.gpu_gate import gate_name, wait_at_gate

    async def scenario() -> None:
        await wait_at_gate("no such gate")
        await gate.close.remote()
        late = asyncio.create_task(wait_at_gate(gate_name(RUN)))
        await asyncio.sleep(0)
        # Calls of one process come in order: with this answer the actor has had both.
        await gate.close.remote()
        assert not late.done()
        await gate.open.remote()
        await late

    asyncio.run(scenario())


def assert_all_refuse(pair: Any, weights: Weights, reason: str) -> None:
    """Enough questions for both replicas to be asked."""
    for answer in [sample(pair, weights) for _ in range(8)]:
        with pytest.raises(Exception, match=reason):
            answer.result()


def test_asleep_they_refuse_everything_until_a_refresh_wakes_them(
    pair: Any, sleepers: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    for version in (1, 2):
        sleepers.put_to_sleep()
        # no old weights, no new ones, and none from a folder: there is nowhere to put them
        assert_all_refuse(pair, Weights(LIVE, 0), "have not come yet")
        assert_all_refuse(pair, Weights(str(BASES / "tied"), 0), "asleep while the trainer has")
        sleepers.put_to_sleep()  # again, as ranks that start anew do
        sleepers.open_gate()
        folder = make_checkpoint("tied", version)
        reports = send_folder(link, folder, version)
        assert [report.parity_max_abs_diff < 1e-3 for report in reports] == [True, True]
        assert_pair_serves(pair, folder, version)
    # awake, they take a folder's weights again, as evaluations after the last step ask
    assert sample(pair, Weights(str(BASES / "tied"), 0)).result().policy_version == 0


def test_requests_in_flight_are_answered_first(
    pair: Any, sleepers: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    folder = make_checkpoint("tied", 3)
    send_folder(link, folder, 3)
    long = [sample(pair, Weights(LIVE, 3), max_tokens=180) for _ in range(8)]
    time.sleep(0.3)
    sleepers.put_to_sleep()
    for answer in long:
        assert answer.result().policy_version == 3
        assert answer.result().lengths.tolist() == [180, 180]


def test_a_refresh_that_fails_leaves_nothing_to_serve_and_the_next_turn_is_whole(
    pair: Any, sleepers: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    from rft_ray.refresh import SamplerLink

    sleepers.put_to_sleep()
    hasty = SamplerLink(pair.app_name, replace(link._settings, timeout_s=5))
    with pytest.raises(Exception, match=r"Timed out|Connection closed"):
        send_folder(hasty, make_checkpoint("tied", 4), 4, sent=2)
    assert_all_refuse(pair, Weights(LIVE, 0), "have not come yet")
    # Half awake: weights have memory, keys and values have not.
    assert_all_refuse(pair, Weights(str(BASES / "tied"), 0), "asleep while the trainer has")
    sleepers.put_to_sleep()
    good = make_checkpoint("tied", 5)
    send_folder(link, good, 5)
    assert_pair_serves(pair, good, 5)


def test_weights_that_nobody_trains_are_there_after_sleep(pair: Any, sleepers: Any) -> None:
    folder = Weights(str(BASES / "tied"), 0)
    before = sample(pair, folder).result().token_ids.tolist()
    frozen = replace(sleepers._sharing, live="another application")
    others = type(sleepers)(frozen, replicas_s=300)
    others.put_to_sleep()
    assert_all_refuse(pair, folder, "asleep while the trainer has")
    others.open_gate()
    others.wake_frozen()
    for answer in [sample(pair, folder) for _ in range(8)]:
        assert answer.result().token_ids.tolist() == before


def test_a_replica_that_dies_while_all_sleep_starts_after_the_trainers_turn(
    pair: Any, sleepers: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    import ray
    from ray import serve
    from ray.serve._private.common import DeploymentID, ReplicaID

    sleepers.put_to_sleep()
    deployment = DeploymentID(pair.deployment_name, pair.app_name)
    first = link._look_for_replicas()[0].replica_id
    ray.kill(ray.get_actor(ReplicaID(first, deployment).to_full_id_str(), namespace="serve"))
    assert wait_for_state(serve, pair, "STARTING")
    # One is missing: the trainer could not begin a turn now, only go on with its own.
    assert not sleepers._all_sleep()
    # The next turn begins when it has started and sleeps too.
    sleepers.put_to_sleep()
    assert sleepers._all_sleep()
    folder = make_checkpoint("tied", 6)
    assert len(send_folder(link, folder, 6)) == 2
    assert_pair_serves(pair, folder, 6)


def test_a_replica_whose_engine_died_is_missing_until_another_has_started(
    pair: Any, sleepers: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    send_folder(link, make_checkpoint("tied", 7), 7)
    engine_of(pair).kill()
    # Not an error of the trainer's, whose ranks would start again for it.
    assert not sleepers._all_sleep()
    sleepers.put_to_sleep()
    assert sleepers._all_sleep()
    sleepers.open_gate()
    folder = make_checkpoint("tied", 8)
    assert len(send_folder(link, folder, 8)) == 2
    assert_pair_serves(pair, folder, 8)


def engine_of(pair: Any) -> psutil.Process:
    """An engine's process of these replicas, which this process's own Ray started."""
    return next(
        own
        for own in psutil.Process().children(recursive=True)
        if "VLLM::EngineCore" in " ".join(own.cmdline())
        and pair.app_name in " ".join(own.parent().cmdline())
    )


def wait_for_state(serve: Any, pair: Any, state: str) -> int:
    """How many replicas are in a state of Serve's, as soon as one is; 0 if none ever is."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        deployments = serve.status().applications[pair.app_name].deployments
        count = deployments[pair.deployment_name].replica_states.get(state, 0)
        if count:
            return count
        time.sleep(0.2)
    return 0
