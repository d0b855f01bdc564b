"""Where Ray puts samplers and ranks that share GPUs: one of either on each GPU.

Ray hands out the GPUs it is told of, so no real ones are needed.

Run: pytest tests/test_gpu_shares.py
"""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.local]

PLACE = """
import json, sys
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rft_ray.config import SamplerConfig
from rft_ray.deployment import bundles
from rft_ray.gpu_gate import RANK_SHARE, SAMPLER_SHARE

gpus, replicas, devices, ranks = map(int, sys.argv[1:])
ray.init(num_cpus=32, num_gpus=gpus, include_dashboard=False, log_to_driver=False)

@ray.remote(num_cpus=0)
class Worker:
    def gpu(self):
        return ray.get_gpu_ids()

def place(bundles, share, strategy):
    group = placement_group(bundles, strategy=strategy)
    ray.get(group.ready(), timeout=60)
    workers = [
        Worker.options(
            num_gpus=share, scheduling_strategy=PlacementGroupSchedulingStrategy(group, n)
        ).remote()
        for n in range(len(bundles))
    ]
    held.extend([group, workers])
    return [own for (own,) in ray.get([worker.gpu.remote() for worker in workers])]

held = []
sampler = SamplerConfig(tensor_parallel_size=devices, gpus_per_replica=devices)
own = bundles(sampler, SAMPLER_SHARE)
samplers = [place(own, SAMPLER_SHARE, "STRICT_PACK") for _ in range(replicas)]
ranks = place([{"CPU": 1, "GPU": RANK_SHARE}] * ranks, RANK_SHARE, "PACK")
# The first replica dies and comes back beside the ranks.
ray.util.remove_placement_group(held[0])
again = place(own, SAMPLER_SHARE, "STRICT_PACK")
print(json.dumps([samplers, ranks, again]))
"""


@pytest.mark.parametrize(
    ("gpus", "replicas", "devices", "ranks"),
    [(6, 2, 2, 4), (4, 1, 4, 2)],
)
def test_each_gpu_has_at_most_one_of_either(
    gpus: int, replicas: int, devices: int, ranks: int
) -> None:
    numbers = map(str, (gpus, replicas, devices, ranks))
    done = subprocess.run(
        [sys.executable, "-c", PLACE, *numbers], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    samplers, own, again = json.loads(done.stdout.splitlines()[-1])
    taken = [gpu for replica in samplers for gpu in replica]
    assert len(set(taken)) == replicas * devices
    # No two ranks on one, and each where a sampler is, also where there are GPUs without.
    assert len(set(own)) == ranks and set(own) <= set(taken)
    # Whoever comes back is not put on a GPU of another replica.
    assert len(set(again)) == devices
    assert not set(again) & {gpu for replica in samplers[1:] for gpu in replica}
