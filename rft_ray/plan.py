"""`rft-ray plan`: does a config fit on the machines it names, how long will it take, at what cost?

Only arithmetic on the config: nothing is started and nothing downloaded. Where there is no room for
samplers beside the trainer, an offline run has them in turns; online, what both need is added up.
What the numbers mean is in `memory_plan.py`, `time_plan.py` and `workload.py`; how they are shown
in `plan_tables.py`. Left out: disks that are written to (`disk_needs.py`), the verifier's memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rft_ray.config import MachinesConfig, RunConfig
from rft_ray.errors import InputError
from rft_ray.fit_advice import USABLE, advise_sampler, advise_trainer, ranks_per_node
from rft_ray.memory_plan import GB, training_memory
from rft_ray.model_shapes import model_shape, model_size
from rft_ray.parts import (
    Part,
    adapters_of,
    largest_model,
    list_parts,
    list_samplers,
    parts_to_place,
)
from rft_ray.placement import Order, Room, find_order
from rft_ray.turn_memory import check_turns, turn_lines


def print_plan(config: RunConfig) -> int:
    """Print what a run needs; 0 where it fits on the config's machines, or none are named.

    Raises InputError with all that does not fit and the nearest change that does, in one line.
    """
    from rft_ray.plan_tables import memory_lines, time_lines

    machines = config.machines
    parts = parts_to_place(config)
    print("\n".join(memory_lines(config)))
    if config.shares_gpus:
        print("\n".join(turn_lines(config)))
    print(f"{_sum(parts, 'gpus'):g} GPUs and {_sum(parts, 'cpus'):g} CPUs in all")
    print("\n".join(time_lines(config)))
    if config.mode == "online":
        _print_refresh(config)
    if machines is None:
        print("the config names no machines to check this against (section machines)")
        return 0
    if problems := check_placement(config):
        changes = advise(config)
        nearest = f"; nearest change that fits: {' '.join(changes)}" if changes else ""
        raise InputError(f"the run does not fit: {'; '.join(problems)}{nearest}")
    print(f"fits on {_describe(machines)}")
    if config.mode == "offline" and _find_order(config, machines) == "in turns":
        print("but not at once: samplers end before a training and start again after it")
    return 0


def print_capacity(config: RunConfig, gpus: Sequence[int]) -> int:
    """Print what each number of GPUs gives for a run, and what that rests on; 0.

    Raises InputError where its time cannot be planned.
    """
    from rft_ray.capacity_plan import capacity_lines
    from rft_ray.plan_tables import assumption_lines

    print("\n".join(capacity_lines(config, gpus)))
    print("\n".join(assumption_lines(config)))
    return 0


def advise(config: RunConfig) -> list[str]:
    """The nearest changes with which each part of a run has room, as overrides.

    Empty where all fits, where nothing helps, or where it is machines that are missing; and where
    GPUs are shared, as what fits there alone may not in turns.
    """
    machines, model = config.machines, largest_model(config)
    if machines is None or config.shares_gpus:
        return []
    changes = _advise_ranks(config, model, machines) if model else []
    places = {policy.name: f"policies.{n}.sampler" for n, policy in enumerate(config.policies)}
    for name, (own, sampler) in list_samplers(config).items():
        place = places.get(name, "target.sampler")
        changes += advise_sampler(place, own, sampler, machines) or []
    return [f"'{text}'" if " " in text else text for text in changes]


def _advise_ranks(config: RunConfig, model: str, machines: MachinesConfig) -> list[str]:
    """As many ranks as there are GPUs for, and what makes a model fit on these."""
    trainer, changes = config.trainer, []
    there = machines.nodes * machines.gpus_per_node
    if trainer.gpus_per_worker and trainer.num_workers * trainer.gpus_per_worker > there > 0:
        ranks = max(1, int(there / trainer.gpus_per_worker))
        trainer = trainer.model_copy(update={"num_workers": ranks})
        changes = [f"trainer.num_workers={ranks}"]
    more = advise_trainer(model, trainer, machines, adapters_of(config, model))
    return [] if more is None else [*changes, *more]


def _rooms(machines: MachinesConfig) -> list[Room]:
    """The machines as far as counts of devices go; labels are known on the cluster only."""
    return [Room(machines.cpus_per_node, machines.gpus_per_node)] * machines.nodes


def _find_order(config: RunConfig, machines: MachinesConfig) -> Order | None:
    """How the run can be placed there; without labels."""
    parts = [replace(part, labels={}) for part in parts_to_place(config)]
    return find_order(parts, _rooms(machines), config.mode == "online", config.shares_gpus)


def _print_refresh(config: RunConfig) -> None:
    from rft_ray.refresh_costs import print_refresh_plan
    from rft_ray.refresh_plan import refresh_of_run

    if plan := refresh_of_run(config):
        print("each refresh of the samplers:")
        print_refresh_plan(plan)
    else:
        print(f"the refresh of {config.target.model} is not planned: its folder is not here")


def _describe(machines: MachinesConfig) -> str:
    room, kind = machines.memory_of_gpu, machines.gpu or ""
    memory = f" of {room:g} GB" if room else ""
    gpus = f"{machines.gpus_per_node} {kind} GPUs".replace("  ", " ")
    gpus += f"{memory} and {machines.cpus_per_node} CPUs"
    return f"{_nodes(machines.nodes)} with {gpus} each"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def check_placement(config: RunConfig) -> list[str]:
    """What does not fit, a clause with its numbers each; empty where all fits.

    Without a machines section there is nothing to compare with, and it is empty too.
    """
    machines = config.machines
    if machines is None:
        return []
    parts, placed = list_parts(config), parts_to_place(config)
    counts = [
        *_check_count(placed, "GPUs", machines.nodes, machines.gpus_per_node),
        *_check_count(placed, "CPUs", machines.nodes, machines.cpus_per_node),
    ]
    if not counts and _find_order(config, machines) is None:
        counts = [_why_not_placed(config, placed, machines)]
    memory = [*_check_gpu_memory(parts, machines.memory_of_gpu)]
    if config.shares_gpus and not memory:
        memory = [*check_turns(config, machines)]
    return [
        *counts,
        *memory,
        *_check_main_memory(parts, machines),
        *_check_offload(config, machines),
    ]


def _check_count(parts: list[Part], unit: str, nodes: int, per_node: int) -> Iterator[str]:
    """Clauses about whole devices: of one copy, and of each phase."""
    field = unit.lower()
    samplers = _sum([part for part in parts if not part.is_trainer], field)
    trainer = _sum([part for part in parts if part.is_trainer], field)
    there = f"{_nodes(nodes)} with {per_node} {unit} each: {nodes * per_node} in all"
    too_wide = [part for part in parts if getattr(part, field) > per_node]
    for part in too_wide:
        copy = "a rank" if part.is_trainer else "a replica"
        yield f"{part.name}: {copy} needs {getattr(part, field):g} {unit} on one node of {per_node}"
    for phase, needed in (("samplers", samplers), ("trainer", trainer)):
        if needed > nodes * per_node:
            yield f"{phase}: {needed:g} {unit} needed, {there}"


def _why_not_placed(config: RunConfig, parts: list[Part], machines: MachinesConfig) -> str:
    """A clause about a run each of whose phases has enough devices in number."""
    samplers = [part for part in parts if not part.is_trainer]
    trainer = [part for part in parts if part.is_trainer]
    there = _describe(machines)
    for field_name, per_node in (
        ("gpus", machines.gpus_per_node),
        ("cpus", machines.cpus_per_node),
    ):
        both, here = _sum(parts, field_name), machines.nodes * per_node
        if config.mode == "online" and both > here:
            own = f"samplers ({_sum(samplers, field_name):g}) and trainer"
            return (
                f"{own} ({_sum(trainer, field_name):g}) need {both:g} {field_name.upper()[:-1]}s "
                f"together, as online they work at the same time; {there}: {here} in all"
            )
    how = "all on one node, to share its GPUs" if config.shares_gpus else "whole on one node each"
    return f"no way to place replicas and ranks {how}: {there}"


def _sum(parts: list[Part], field: str) -> float:
    return sum(part.copies * getattr(part, field) for part in parts)


def _check_gpu_memory(parts: list[Part], gpu_memory_gb: float | None) -> Iterator[str]:
    if gpu_memory_gb is None:
        return
    for part in parts:
        if not part.gpus or part.device_gb is None:
            continue
        # A rank that asks for half a GPU has half its memory.
        limit = USABLE * gpu_memory_gb * min(1.0, part.gpus)
        if part.device_gb > limit:
            yield (
                f"{part.name}: {part.device_gb:.1f} GB a GPU needed ({part.size}), of "
                f"{gpu_memory_gb:g} GB {limit:.1f} can be used"
            )


def _check_main_memory(parts: list[Part], machines: MachinesConfig) -> Iterator[str]:
    """What runs on CPUs, over all nodes."""
    if machines.memory_gb is None:
        return
    on_cpu = [part for part in parts if not part.gpus and part.device_gb is not None]
    needed = sum(part.copies * part.device_gb for part in on_cpu)
    limit = USABLE * machines.nodes * machines.memory_gb
    if needed > limit:
        yield (
            f"{', '.join(part.name for part in on_cpu)}: {needed:.1f} GB of main memory needed, of "
            f"{machines.nodes} x {machines.memory_gb:g} GB {limit:.1f} can be used"
        )


def _check_offload(config: RunConfig, machines: MachinesConfig) -> Iterator[str]:
    """What ranks on GPUs keep in the main memory and on the disks of a node, or read there."""
    trainer, model = config.trainer, largest_model(config)
    shape, size = (model_shape(model), model_size(model)) if model else (None, None)
    if shape is None or size is None or not trainer.gpus_per_worker:
        return
    assert model  # else it had no shape
    memory = training_memory(shape, trainer, size.parameters, adapters_of(config, model))
    beside = ranks_per_node(trainer, machines)
    needs = {"main memory": (max(memory.host, memory.loading), machines.memory_gb)}
    needs["local disks (machines.disk_gb)"] = (memory.nvme, machines.disk_gb)
    for place, (bytes_each, there) in needs.items():
        if there is not None and beside * bytes_each > USABLE * there * GB:
            yield (
                f"trainer: {beside * bytes_each / GB:.1f} GB of {place} a node needed by "
                f"{beside} ranks ({size}), of {there:g} GB {USABLE * there:.1f} can be used"
            )
