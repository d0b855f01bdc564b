"""Live weights from a trainer into running samplers, on real engines.

One Ray Train run covers every ZeRO stage on both bases; what can go wrong on the way is tried with
a pair of replicas and rank 0's half alone.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rft_ray.buckets import TensorSpec, plan_buckets
from rft_ray.sampling import LIVE, Weights
from rft_ray.weight_group import bucket_bytes, pack
from tests.conftest import BASES, RUN_ID

pytestmark = [pytest.mark.engine, pytest.mark.faults]
Checkpoints = Callable[[str, int], Path]
# Small enough for a bucket to end in the middle of a layer's projections.
CAP_BYTES = 150_000
PROMPT = [5, 17, 33, 60, 61]


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def train_and_refresh(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The train loop: for each stage and base two real steps, each followed by a refresh."""
    from rft_ray.trainer import prepare_process

    rank, _ = prepare_process(config["trainer"])

    from rft_ray.engine import build_engine
    from rft_ray.export import probe_logprobs
    from rft_ray.refresh import Refresher

    rows = []
    for stage in (0, 1, 2, 3):
        for name, application in config["applications"].items():
            engine = build_engine(
                str(BASES / name), config["recipe"], stage_config(config["trainer"], stage)
            )
            refresher = Refresher(application, config["settings"], config["probes"])
            for version in (1, 2):
                generator = torch.Generator().manual_seed(version)
                ids = torch.randint(3, 60, (2, 32), generator=generator)
                engine.backward(engine(input_ids=ids, labels=ids).loss)
                engine.step()
                (report,) = refresher.refresh(engine, version)
                logprobs = probe_logprobs(engine, config["probes"])
                row = {"stage": stage, "name": name, "version": version, "report": report}
                if rank == 0:
                    row["scored"] = score(application, config["probes"], version)
                rows.append(row | {"logprobs": logprobs})
            refresher.close()
    return rows


def stage_config(trainer: Any, stage: int) -> Any:
    settings = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return trainer.model_copy(update={"zero_stage": stage, "deepspeed": settings})


def score(application: str, probes: list[list[int]], version: int) -> list[list[float]]:
    from ray import serve

    handle = serve.get_app_handle(application)
    return [handle.score.remote(ids, Weights(LIVE, version)).result() for ids in probes]


def test_every_zero_stage_brings_the_trainers_log_probabilities(
    samplers: dict[str, Any], tmp_path: Path
) -> None:
    from ray import cloudpickle
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from rft_ray.config import RecipeConfig, TrainerConfig
    from rft_ray.deployment import application_name
    from rft_ray.refresh import RefreshSettings

    # The ranks cannot import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    config = {
        "applications": {name: application_name(RUN_ID, name) for name in ("tied", "untied")},
        "recipe": RecipeConfig(learning_rate=3e-3),
        "trainer": TrainerConfig(num_workers=2),
        "settings": RefreshSettings(bucket_bytes=CAP_BYTES, timeout_s=30, attempts=1),
        "probes": [[5, 17, 33], [*range(3, 40)]],
    }
    rows = TorchTrainer(
        train_and_refresh,
        train_loop_config=config,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="refresh", storage_path=str(tmp_path)),
    ).fit().return_value
    assert len(rows) == 16
    for row in rows:
        assert row["report"].parity_max_abs_diff < 1e-3, row
        tensors = load_file(BASES / row["name"] / "model.safetensors").values()
        # the trainer's weights are fp32, whatever the folder's are
        assert row["report"].num_bytes == sum(4 * tensor.numel() for tensor in tensors)
        for ours, theirs in zip(row["scored"], row["logprobs"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)
    # each step changed what is said
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["scored"][1] != pytest.approx(second["scored"][1], abs=0.01)


@pytest.fixture(scope="module")
def pair(ray_session: None) -> Iterator[Any]:
    """Two replicas of the tied base."""
    from rft_ray.config import SamplerConfig
    from rft_ray.deployment import deployed_samplers

    config = SamplerConfig(
        num_replicas=2,
        vllm={"dtype": "float32", "max_model_len": 192, "max_num_seqs": 64},
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    with deployed_samplers({"pair": (str(BASES / "tied"), config)}, "refresh", 1e-3) as handles:
        yield handles["pair"]


@pytest.fixture(scope="module")
def link(pair: Any) -> Iterator[Any]:
    """Rank 0's half of refreshes."""
    from rft_ray.deployment import application_name
    from rft_ray.refresh import RefreshSettings, SamplerLink

    settings = RefreshSettings(bucket_bytes=CAP_BYTES, timeout_s=5, drain_s=60)
    link = SamplerLink(application_name("refresh", "pair"), settings)
    yield link
    link.close()


def plan_of(tensors: dict[str, torch.Tensor]) -> list[list[TensorSpec]]:
    return plan_buckets([spec_of(*item) for item in tensors.items()], CAP_BYTES)


def send_folder(
    link: Any, folder: Path, version: int, sent: int = 10**6, wrong: bool = False
) -> list[Any]:
    """A refresh with a folder's tensors, as the trainer would send them, or the first buckets."""
    tensors = load_file(folder / "model.safetensors")
    plan = plan_of(tensors)
    probe = json.loads((folder / "probe.json").read_text())
    try:
        link.prepare(plan)
        for number, bucket in enumerate(plan):
            size = bucket_bytes(bucket)
            flat = link._buffers[number % 2][:size] if link._buffers else make_buffer(size)
            pack([tensors[spec.name] * (2 if wrong else 1) for spec in bucket], flat)
            if number < sent:
                link.send(flat)
        return link.finish(version, probe)
    except Exception:
        link.abandon()
        raise


def make_buffer(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def assert_pair_serves(pair: Any, folder: Path, version: int) -> None:
    """Every answer is by these weights: enough questions for both replicas to be asked."""
    probe = json.loads((folder / "probe.json").read_text())
    ids, expected = probe["token_ids"][1], probe["logprobs"][1]
    answers = [pair.score.remote(ids, Weights(LIVE, version)) for _ in range(16)]
    for answer in answers:
        assert answer.result() == pytest.approx(expected, abs=1e-3)


def assert_nothing_live(pair: Any) -> None:
    answers = [pair.score.remote(PROMPT, Weights(LIVE, 0)) for _ in range(8)]
    for answer in answers:
        with pytest.raises(Exception, match="have not come yet"):
            answer.result()


def test_both_replicas_are_refreshed_and_say_which_version_wrote(
    pair: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    assert_nothing_live(pair)
    for version in (1, 2):
        folder = make_checkpoint("tied", version)
        reports = send_folder(link, folder, version)
        assert len(reports) == 2
        assert all(report.parity_max_abs_diff < 1e-3 for report in reports)
        assert_pair_serves(pair, folder, version)
    # who would do with version 1 gets version 2, and is told so; nobody gets version 3
    assert sample(pair, Weights(LIVE, 1)).result().policy_version == 2
    with pytest.raises(Exception, match="version 3 have not come yet"):
        sample(pair, Weights(LIVE, 3)).result()


def sample(handle: Any, weights: Weights, max_tokens: int = 8) -> Any:
    sampling = {"n": 2, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": max_tokens}
    return handle.sample.remote(PROMPT, weights, {**sampling, "ignore_eos": True}, 3)


def test_buckets_withheld_and_wrong_weights_leave_nothing_served(
    pair: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    from rft_ray.sampling import ParityError

    good = make_checkpoint("tied", 3)
    send_folder(link, good, 3)
    # the first to time out leaves the group, which the other may notice before its own time is up
    with pytest.raises(Exception, match=r"Timed out|Connection closed"):
        send_folder(link, make_checkpoint("tied", 4), 4, sent=2)
    assert_nothing_live(pair)
    # what half-loaded layers kept of version 4 must not turn up now
    send_folder(link, good, 5)
    assert_pair_serves(pair, good, 5)
    with pytest.raises(ParityError, match="after loading version 6"):
        send_folder(link, good, 6, wrong=True)
    assert_nothing_live(pair)
    send_folder(link, good, 7)
    assert_pair_serves(pair, good, 7)


def test_a_trainer_that_goes_silent_is_given_up_on(
    pair: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    from rft_ray.refresh import SamplerLink

    folder = make_checkpoint("tied", 8)
    send_folder(link, folder, 8)
    first = SamplerLink(pair.app_name, replace(link._settings, timeout_s=3))
    spec = [[TensorSpec("model.norm.weight", (128,), "float32")]]
    first.prepare(spec)
    # a request that waits meanwhile is answered, not held for ever
    with pytest.raises(Exception, match="have not come yet"):
        pair.score.remote(PROMPT, Weights(LIVE, 8)).result(timeout_s=60)
    # the next trainer, with a link of its own
    send_folder(link, folder, 9)
    assert_pair_serves(pair, folder, 9)


def test_weights_come_through_memory_of_the_trainers_machine_too(
    pair: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    from rft_ray.refresh import SamplerLink

    shared = SamplerLink(pair.app_name, replace(link._settings, backend="shared"))
    tensors = load_file(make_checkpoint("tied", 30) / "model.safetensors")
    shared.share_buffers(plan_of(tensors), torch.device("cpu"))
    for version in (30, 31):
        folder = make_checkpoint("tied", version)
        reports = send_folder(shared, folder, version)
        assert [report.parity_max_abs_diff < 1e-3 for report in reports] == [True, True]
        assert_pair_serves(pair, folder, version)
    with pytest.raises(Exception, match=r"Timed out|Connection closed"):
        send_folder(shared, folder, 32, sent=2)
    assert_nothing_live(pair)
    send_folder(shared, folder, 33)
    assert_pair_serves(pair, folder, 33)
    shared.close()


@pytest.mark.parametrize("in_flight", ["wait", "keep", "abort"])
def test_requests_in_flight_wait_go_on_or_fail(
    pair: Any, link: Any, make_checkpoint: Checkpoints, in_flight: str
) -> None:
    folder = make_checkpoint("tied", 10)
    send_folder(link, folder, 10)
    long = [sample(pair, Weights(LIVE, 10), max_tokens=180) for _ in range(8)]
    time.sleep(0.3)
    link._settings = replace(link._settings, in_flight=in_flight)
    try:
        send_folder(link, folder, 11)
    finally:
        link._settings = replace(link._settings, in_flight="wait")
    assert_pair_serves(pair, folder, 11)
    if in_flight == "abort":
        with pytest.raises(Exception, match="aborted"):
            [answer.result() for answer in long]
        return
    for answer in long:
        assert answer.result().policy_version == 10
        assert answer.result().lengths.tolist() == [180, 180]


def test_a_replica_that_comes_back_serves_nothing_before_its_refresh(
    pair: Any, link: Any, make_checkpoint: Checkpoints
) -> None:
    import ray
    from ray.llm._internal.serve.utils.broadcast import broadcast
    from ray.serve._private.common import DeploymentID, ReplicaID

    send_folder(link, make_checkpoint("tied", 20), 20)
    deployment = DeploymentID(pair.deployment_name, pair.app_name)
    first = link._look_for_replicas()[0].replica_id
    ray.kill(ray.get_actor(ReplicaID(first, deployment).to_full_id_str(), namespace="serve"))
    # the replica that is left goes on without it
    folder = make_checkpoint("tied", 21)
    assert 1 <= len(refresh_with_retries(link, folder, 21)) <= 2
    states = wait_for_replicas(link, 2)
    assert [state.group_id for state in states].count(None) == 1
    # asked one by one: the new replica refuses, the other answers
    with pytest.raises(Exception, match="have not come yet"):
        broadcast(pair, "score", args=(PROMPT, Weights(LIVE, 21)))
    assert ask_until_answered(pair, Weights(LIVE, 21)).policy_version == 21
    last = make_checkpoint("tied", 22)
    assert len(send_folder(link, last, 22)) == 2
    assert_pair_serves(pair, last, 22)


def ask_until_answered(pair: Any, weights: Weights) -> Any:
    """Serve may send a request to the replica that refuses; whoever asks then asks again."""
    for _ in range(30):
        try:
            return sample(pair, weights).result()
        except Exception as error:
            failure = error
    raise failure


def refresh_with_retries(link: Any, folder: Path, version: int) -> list[Any]:
    """As `Refresher` does: a death can be noticed in the middle of an attempt."""
    for _ in range(3):
        try:
            return send_folder(link, folder, version)
        except Exception as error:
            failure = error
    raise failure


def wait_for_replicas(link: Any, count: int) -> list[Any]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        states = link._look_for_replicas()
        if len(states) == count:
            return states
        time.sleep(1)
    raise TimeoutError(f"no {count} replicas")
