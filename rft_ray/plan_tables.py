"""The tables of `rft-ray plan`: memory of each part, time of each phase, and what both rest on."""

from collections.abc import Iterator, Sequence

from rft_ray.config import RunConfig, SamplerConfig
from rft_ray.fit_advice import USABLE, ranks_per_node
from rft_ray.memory_plan import GB, most_sequences, sampler_memory, training_memory
from rft_ray.model_shapes import model_shape, model_size
from rft_ray.parts import adapters_of, list_samplers, trained_models
from rft_ray.phase_plan import HOUR, Phase, plan_phases, wall_seconds, why_no_time
from rft_ray.workload import workload_of

MEMORY = ("weights", "grads", "adam", "layers", "activ.", "logits", "cache", "other", "all", "node")
NAME_WIDTH = 22


def memory_lines(config: RunConfig) -> Iterator[str]:
    """A line for each sampler and each trained model: GB of one device, by what holds them."""
    yield "GB of one device at its peak; node: main memory of a node"
    head = " ".join(f"{name:>6}" for name in MEMORY).replace("weights", "weight")
    yield f"{'':{NAME_WIDTH}} {'copies':>6} {head}"
    for name, (model, sampler) in list_samplers(config).items():
        row = _sampler_row(config, model, sampler)
        copies = f"{sampler.num_replicas}"
        if sampler.tensor_parallel_size > 1:
            copies += f"x{sampler.tensor_parallel_size}"
        yield _memory_line(f"sampler {name}", copies, row)
    for model in dict.fromkeys(trained_models(config)):
        yield _memory_line(
            f"train {model.rsplit('/', 1)[-1]}",
            f"{config.trainer.num_workers}",
            _trainer_row(config, model),
        )
    models = [model for model, _ in list_samplers(config).values()]
    for model in dict.fromkeys([*models, *trained_models(config)]):
        yield f"{model}: {model_size(model) or 'size not known'}"
    yield f"a device may be filled to {USABLE:.0%}"


def _memory_line(name: str, copies: str, row: Sequence[float] | None) -> str:
    cells = ["?"] * len(MEMORY) if row is None else [_gigabytes(own) for own in row]
    shown = " ".join(f"{cell:>6}" for cell in cells)
    return f"{name[:NAME_WIDTH]:{NAME_WIDTH}} {copies:>6} {shown}"


def _gigabytes(count: float) -> str:
    if not count:
        return "-"
    if count < 0.01 * GB:
        return "<0.01"
    return f"{count / GB:.0f}" if count >= 1000 * GB else f"{count / GB:.3g}"


def _trainer_row(config: RunConfig, model: str) -> list[float] | None:
    shape, size = model_shape(model), model_size(model)
    if shape is None or size is None:
        return None
    lora = adapters_of(config, model)
    own = training_memory(shape, config.trainer, size.parameters, lora)
    beside, machines = 1, config.machines
    if machines is not None:
        beside = ranks_per_node(config.trainer, machines)
    on_gpu = config.trainer.gpus_per_worker > 0
    node = max(own.host, own.loading) if on_gpu else own.device + own.host
    gradients = own.gradients + own.update
    held = [own.weights, gradients, own.optimiser, own.gathered, own.activations, own.logits]
    return [*held, 0.0, own.runtime, own.device, beside * node]


def _sampler_row(config: RunConfig, model: str, sampler: SamplerConfig) -> list[float] | None:
    shape, size = model_shape(model), model_size(model)
    if shape is None or size is None:
        return None
    room = config.machines.memory_of_gpu if config.machines else None
    own = sampler_memory(shape, sampler, room and room * GB, size.parameters)
    work = workload_of(config)
    most = most_sequences(sampler) * own.cache_token * (work.question + work.response)
    least = own.cache_token * own.longest
    cache = max(least, most) if own.room is None else max(least, own.room)
    device = own.weights + own.activations + own.runtime + cache
    node = 0.0 if sampler.gpus_per_replica else device
    return [own.weights, 0, 0, 0, own.activations, 0, cache, own.runtime, device, node]


def time_lines(config: RunConfig) -> Iterator[str]:
    """A line for each phase, sums, and what they rest on; or why time is not planned."""
    if reason := why_no_time(config):
        yield f"time and cost are not planned: {reason}"
        return
    assert config.machines is not None  # else there was a reason
    machines, phases = config.machines, plan_phases(config)
    price = machines.gpu_hour_cost
    yield f"{'':{NAME_WIDTH}} {'GPUs':>5} {'hours':>7} {'GPU h':>7} {'cost':>6} most of it is"
    for phase in phases:
        yield _phase_line(phase, price)
    hours, there = wall_seconds(phases) / HOUR, machines.nodes * machines.gpus_per_node
    worked = sum(phase.gpu_hours for phase in phases)
    cost = "" if price is None else f": {hours * there * price:.0f} at {price:g} a GPU hour"
    yield (
        f"{hours:.2f} hours in all; {worked:.1f} GPU hours of work, {hours * there:.1f} for all "
        f"{there} GPUs{cost}"
    )
    yield from assumption_lines(config)


def _phase_line(phase: Phase, price: float | None) -> str:
    cost = "-" if price is None else f"{phase.gpu_hours * price:.0f}"
    name = ("+ " if phase.is_beside else "") + phase.name
    return (
        f"{name[:NAME_WIDTH]:{NAME_WIDTH}} {phase.gpus:5g} {phase.seconds / HOUR:7.2f} "
        f"{phase.gpu_hours:7.1f} {cost:>6} {phase.bound}: {phase.detail}"
    )


def assumption_lines(config: RunConfig) -> Iterator[str]:
    """What time and cost rest on, each with the section to change it in."""
    machines = config.machines
    if machines is None or machines.known_gpu is None:
        return
    gpu, work = machines.known_gpu, workload_of(config)
    yield "+: at the same time as the line above. Taken for granted (sections workload, machines):"
    yield from (f"  {source}" for source in work.sources)
    yield (
        f"  a GPU {gpu.tflops:g} TFLOPS, {gpu.bandwidth_gb_s:g} GB/s; training_mfu "
        f"{machines.training_mfu:g}, sampling_mfu {machines.sampling_mfu:g}"
    )
    yield (
        f"  bandwidth_share {machines.bandwidth_share:g}, engine_step_s {machines.engine_step_s:g}"
    )
    yield (
        f"  GB/s: node_link {machines.node_link_gb_s:g} a GPU, link {machines.link_gb_s:g} a GPU, "
        f"pcie {machines.pcie_gb_s:g}, memory_bandwidth {machines.memory_bandwidth_gb_s:g}, "
        f"nvme {machines.nvme_gb_s:g}"
    )
    if machines.sampler_tokens_s:
        rates = ", ".join(f"{name} {own:g}" for name, own in machines.sampler_tokens_s.items())
        yield f"  tokens/s of a replica, measured: {rates}"
