"""A sampler that grows while there is more to sample than it takes, on nodes with its labels.

Run: pytest tests/test_elastic.py
"""

import asyncio
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from rft_ray.config import SamplerConfig
from rft_ray.config_file import load_config
from rft_ray.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
TIED = str(CONFIGS / "quickstart_base" / "tied")


def test_the_most_replicas_are_at_least_the_least() -> None:
    assert SamplerConfig(num_replicas=2).most_replicas == 2
    assert SamplerConfig(num_replicas=2, max_replicas=3).most_replicas == 3
    with pytest.raises(ValidationError, match=r"max_replicas \(1\) is less than num_replicas"):
        SamplerConfig(num_replicas=2, max_replicas=1)


def test_online_replicas_are_as_many_as_the_refresh_knows() -> None:
    load_config(CONFIGS / "quickstart.yaml", ["sampler.max_replicas=4"])
    with pytest.raises(InputError, match=r"sampler\.max_replicas is for mode offline only"):
        load_config(CONFIGS / "quickstart_online.yaml", ["sampler.max_replicas=4"])


@pytest.mark.engine
@pytest.mark.faults
def test_a_busy_sampler_gets_another_replica_which_holds_the_same_weights(
    ray_session: None,
) -> None:
    import ray
    from ray import serve

    from rft_ray.deployment import application_name, deployed_samplers
    from rft_ray.sampling import Weights

    (node,) = ray.nodes()
    config = SamplerConfig(
        max_replicas=2,
        labels={"ray.io/node-id": node["NodeID"]},
        vllm={"dtype": "float32", "max_model_len": 192, "max_num_seqs": 8},
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    name, sampling = application_name("elastic", "tied"), {"n": 4, "max_tokens": 64}

    def count_replicas() -> int:
        (deployment,) = serve.status().applications[name].deployments.values()
        return deployment.replica_states.get("RUNNING", 0)

    async def sample_some(handle: object) -> list[list[int]]:
        asked = (handle.sample.remote([5, 6, 7], Weights(TIED, 0), sampling, 1) for _ in range(32))
        return [own.token_ids.tolist() for own in await asyncio.gather(*asked)]

    with deployed_samplers({"tied": (TIED, config)}, "elastic", 1e-3) as handles:
        (first, *others) = asyncio.run(sample_some(handles["tied"]))
        deadline = time.monotonic() + 600
        while count_replicas() < 2:
            assert time.monotonic() < deadline
            others += asyncio.run(sample_some(handles["tied"]))
        others += asyncio.run(sample_some(handles["tied"]))
    assert all(own == first for own in others)
