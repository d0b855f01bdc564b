"""Samplers and trainer on the same GPUs: what a config has to say, what is counted, who starts.

Run: pytest tests/test_share_gpus.py
"""

import asyncio
import re
from pathlib import Path

import pytest

from rft_ray.cli import main
from rft_ray.config import RunConfig
from rft_ray.config_file import load_config
from rft_ray.errors import InputError
from rft_ray.gpu_gate import RANK_SHARE, SAMPLER_SHARE, GpuGate
from rft_ray.memory_plan import GB, GPU_RUNTIME, training_memory
from rft_ray.model_shapes import model_shape
from rft_ray.placement import Room
from rft_ray.plan import check_placement
from rft_ray.preflight import Node, find_shortages, order_on
from rft_ray.turn_memory import turn_memory

CONFIGS = Path(__file__).parents[1] / "configs"
ONLINE, QUICKSTART = CONFIGS / "llama2_7b_online.yaml", CONFIGS / "quickstart_online.yaml"
GIB = 2**30
SHARED = [
    "online={steps: 10, max_staleness: 0, share_gpus: true, transfer: shared}",
    "sampler.num_replicas=8",
    "sampler.vllm.gpu_memory_utilization=0.7",
    "trainer.num_workers=8",
]


def shared(*overrides: str) -> RunConfig:
    return load_config(ONLINE, [*SHARED, *overrides])


def node(cpus: float = 96, gpus: float = 8, **labels: str) -> Node:
    return Node("10.0.0.1", "a" * 56, Room(cpus, gpus, labels), 700 * GIB, 200 * GIB)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["online.max_staleness=1"], "online: share_gpus needs max_staleness 0, not 1: while a"),
        (["online.transfer=network"], "online.share_gpus needs online.transfer shared, as NCCL"),
        (["sampler.num_replicas=7"], "8 ranks with 1 GPUs each cannot take turns with samplers on"),
        (["trainer.gpus_per_worker=2"], "8 ranks with 2 GPUs each cannot take turns with samplers"),
        (["trainer.gpus_per_worker=0"], "online.share_gpus: samplers and trainer are all on GPUs,"),
        (["mode=offline"], "online.share_gpus is for mode online; offline, samplers end before a"),
    ],
)
def test_what_cannot_take_turns_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        shared(*overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_without_gpus_nothing_is_counted_otherwise() -> None:
    plain = load_config(QUICKSTART, ["online.max_staleness=0"])
    config = load_config(QUICKSTART, ["online.max_staleness=0", "online.share_gpus=true"])
    assert config.online.share_gpus and not config.shares_gpus
    laptop = [Node("10.0.0.1", "", Room(16, 0), 8 * GIB, 2 * GIB)]
    assert order_on(config, laptop) == order_on(plain, laptop) == "together"


def test_the_gpus_are_counted_once_and_on_one_node() -> None:
    config = shared()
    assert find_shortages(config, [node()]) == []
    # What is trained before the loop has the GPUs without samplers.
    assert order_on(config, [node(16, 0), node()]) == "in turns"
    assert find_shortages(config, [node(gpus=4)]) == [
        "asked for 8 GPUs on 1 node, cluster has 4 on 1 node"
    ]
    halves = [node(gpus=4), node(gpus=4)]
    (line,) = find_shortages(config, halves)
    assert line.startswith("no way to place replicas and ranks all on one node, to share its GPUs")
    # With GPUs of their own, four ranks and four replicas would fit there.
    apart = load_config(ONLINE, [])
    assert find_shortages(apart, halves) == []
    # CPUs are not shared: 8 + 8, and the stream's.
    assert find_shortages(config, [node(cpus=17)]) == []
    assert order_on(config, [node(cpus=16)]) is None


def test_rays_shares_keep_each_kind_to_one_a_gpu() -> None:
    assert 2 * SAMPLER_SHARE > 1 and SAMPLER_SHARE + 2 * RANK_SHARE > 1
    assert SAMPLER_SHARE + RANK_SHARE == 1


def test_a_plan_says_what_each_turn_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_placement(shared()) == []
    assert main(["plan", str(ONLINE), *SHARED]) == 0
    out = capsys.readouterr().out
    assert "8 GPUs and 16 CPUs in all" in out
    assert "in turns on a GPU: a rank trains beside 3.31 GB of a sampler asleep" in out
    (line,) = check_placement(shared("sampler.vllm.gpu_memory_utilization=0.9"))
    assert line == (
        "sampler live: vllm.gpu_memory_utilization 0.9 leaves 8.0 GB of a GPU to a rank at rest, "
        "which holds 22.6; 0.71 fits"
    )
    # Whoever fits alone may not fit beside what sleeps.
    alone = "machines={gpus_per_node: 8, gpu_memory_gb: 46, cpus_per_node: 96}"
    share = "sampler.vllm.gpu_memory_utilization=0.5"
    (line,) = check_placement(shared(alone, share))
    assert line.startswith("trainer: 39.6 GB a GPU needed, and 3.3 for a sampler asleep, of 46 GB")
    # Recomputed activations would be enough for it alone, and are not named as what fits.
    less = alone.replace("46", "40")
    assert main(["plan", str(ONLINE), *SHARED, less, share]) == 2
    assert capsys.readouterr().err.endswith("of 40 GB 36.0 can be used\n")
    (line,) = check_placement(shared("machines.nodes=2", "machines.gpus_per_node=4"))
    assert line.startswith("no way to place replicas and ranks all on one node, to share its GPUs:")
    (line,) = check_placement(shared("machines.memory_gb=80", "trainer.zero_stage=3"))
    assert line.startswith("trainer: 80.9 GB of main memory needed by 8 ranks at rest, of 80 GB")


def test_the_command_of_the_readme_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"rft-ray (plan \S+ online.share_gpus=true(?:.*\\\n)*.*)", readme)
    monkeypatch.chdir(CONFIGS.parent)
    assert main(command.replace("\\\n", " ").split()) == 0
    assert "fits on 1 node with 8 H100 GPUs" in capsys.readouterr().out


def test_at_rest_a_rank_holds_all_but_what_only_training_needs() -> None:
    config = shared("trainer.zero_stage=3")
    own, shape = turn_memory(config), model_shape(config.target.model)
    assert own is not None and shape is not None
    memory = training_memory(shape, config.trainer)
    assert own.training == pytest.approx(memory.device / GB)
    only = memory.optimiser + memory.activations + memory.logits + memory.update
    buckets = 256 * 2**20
    assert own.resting == pytest.approx((memory.device - only + 2 * buckets) / GB)
    assert own.asleep == pytest.approx((GPU_RUNTIME + 3 * buckets) / GB)
    # 12 bytes of each parameter, over the ranks
    assert own.parked == pytest.approx(12 * 6.74 / 8, rel=1e-2)


def test_a_replica_starts_when_the_gate_opens_and_not_before() -> None:
    async def scenario() -> list[str]:
        gate, seen = GpuGate(), []

        async def start(name: str) -> None:
            await gate.wait()
            seen.append(name)

        await asyncio.wait_for(start("before"), 60)
        await gate.close()
        late = asyncio.create_task(start("late"))
        for _ in range(10):
            await asyncio.sleep(0)
        seen.append("training")
        await gate.open()
        await asyncio.wait_for(late, 60)
        return seen

    assert asyncio.run(scenario()) == ["before", "training", "late"]
