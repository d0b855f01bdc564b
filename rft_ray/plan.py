"""`rft-ray plan`: do a config's engines and training ranks fit on the machines it names?

Only arithmetic on the config: nothing is started and nothing downloaded. Where there is no room for
samplers beside the trainer, an offline run has them in turns; online, what both need is added up. A
model's size is read from its folder, or from its name where there is no folder yet. Left out: time,
cost, disks, the verifier's processes, offloaded parameters, and the whole model that each rank
reads into main memory below ZeRO-3.
"""

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rft_ray.config import MachinesConfig, RunConfig, SamplerConfig, TrainerConfig
from rft_ray.errors import InputError
from rft_ray.placement import Room, find_order

GB = 1e9
USABLE = 0.9
"""Share of a memory that weights and training state may take; the rest is for what is not counted:
the cache of attention keys and values in a sampler, fragmentation in a trainer."""
ALLOWANCE_GB = 6.0
"""Per training rank on a GPU: CUDA, NCCL, DeepSpeed's buckets, gathered layers, logits."""
ACTIVATION_BYTES = 34
"""Per token, layer and hidden unit in bf16, attention matrices not kept (Korthikanti et al. 2022);
with activation checkpointing only a layer's input is left of them, 2 bytes."""
MODEL_SIZE = re.compile(r"(?<![^-_/ ])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The number of a model's parameters, and how it is known."""

    parameters: int
    source: str

    def __str__(self) -> str:
        unit, name = (1e9, "B") if self.parameters >= 1e9 else (1e6, "M")
        return f"{self.parameters / unit:.3g}{name} parameters {self.source}"


@dataclass(frozen=True, slots=True)
class Part:
    """The replicas of one sampler, or the ranks of the trainer: copies that are placed alike."""

    name: str
    copies: int
    gpus: float
    """Of one copy, all on one node."""
    cpus: float
    size: ModelSize | None
    """Of the model, the largest one of the trainer; none: not known."""
    device_gb: float | None
    """What weights and training state take of the memory of one device; none: not known."""
    labels: dict[str, str] = field(default_factory=dict)
    """Which a copy's node has to have."""

    @property
    def is_trainer(self) -> bool:
        """Ranks, not replicas."""
        return self.name == "trainer"


def print_plan(config: RunConfig) -> int:
    """Print what a run needs; 0 where it fits on the config's machines, or none are named.

    Raises InputError with all that does not fit, in one line.
    """
    machines = config.machines
    parts = [replace(part, labels={}) for part in list_parts(config)]
    print(f"{'part':24} {'copies':>6} {'GPUs':>6} {'CPUs':>6} {'GB a device':>12}  largest model")
    for part in parts:
        print(_row(part))
    print(f"{describe_amounts(parts)} in all")
    print(
        f"a device may be filled to {USABLE:.0%}; a training rank's GB include {ALLOWANCE_GB:g} GB"
        " of buffers and the activations of a micro-batch"
    )
    if config.mode == "online":
        _print_refresh(config)
    if machines is None:
        print("the config names no machines to check this against (section machines)")
        return 0
    if problems := check_placement(config):
        raise InputError(f"the run does not fit: {'; '.join(problems)}")
    print(f"fits on {_describe(machines)}")
    if find_order(parts, _rooms(machines), config.mode == "online") == "in turns":
        print("but not at once: samplers end before a training and start again after it")
    return 0


def describe_amounts(parts: list[Part]) -> str:
    """The devices of some parts together, in words."""
    return f"{_sum(parts, 'gpus'):g} GPUs and {_sum(parts, 'cpus'):g} CPUs"


def _rooms(machines: MachinesConfig) -> list[Room]:
    """The machines as far as counts of devices go; labels are known on the cluster only."""
    return [Room(machines.cpus_per_node, machines.gpus_per_node)] * machines.nodes


def _print_refresh(config: RunConfig) -> None:
    from rft_ray.refresh_plan import print_refresh_plan, refresh_of_run

    if plan := refresh_of_run(config):
        print("each refresh of the samplers:")
        print_refresh_plan(plan)
    else:
        print(f"the refresh of {config.target.model} is not planned: its folder is not here")


def _row(part: Part) -> str:
    memory = "unknown" if part.device_gb is None else f"{part.device_gb:.1f}"
    counts = f"{part.copies:6d} {part.copies * part.gpus:6g} {part.copies * part.cpus:6g}"
    return f"{part.name:24} {counts} {memory:>12}  {part.size or 'size not known'}"


def _describe(machines: MachinesConfig) -> str:
    memory = f" of {machines.gpu_memory_gb:g} GB" if machines.gpu_memory_gb else ""
    gpus = f"{machines.gpus_per_node} GPUs{memory} and {machines.cpus_per_node} CPUs"
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
    parts = [replace(part, labels={}) for part in list_parts(config)]
    counts = [
        *_check_count(parts, "GPUs", machines.nodes, machines.gpus_per_node),
        *_check_count(parts, "CPUs", machines.nodes, machines.cpus_per_node),
    ]
    if not counts and find_order(parts, _rooms(machines), config.mode == "online") is None:
        counts = [_why_not_placed(parts, machines, config.mode)]
    return [
        *counts,
        *_check_gpu_memory(parts, machines.gpu_memory_gb),
        *_check_main_memory(parts, machines),
    ]


def list_parts(config: RunConfig) -> list[Part]:
    """All samplers of a run, the target's own among them if no policy shares its base; trainer."""
    samplers = [(policy.name, policy.model, policy.sampler) for policy in config.policies]
    if config.own_policy is None:
        samplers.append(("target", config.target.model, config.target.sampler))
    return [*(_sampler_part(*sampler) for sampler in samplers), _trainer_part(config)]


def _sampler_part(name: str, model: str, sampler: SamplerConfig) -> Part:
    size, devices = model_size(model), sampler.tensor_parallel_size
    width = 4 if sampler.vllm.get("dtype") in ("float32", "float") else 2
    return Part(
        name=f"sampler {name}",
        copies=sampler.num_replicas,
        gpus=sampler.gpus_per_replica,
        cpus=sampler.cpus_per_replica * (1 if sampler.gpus_per_replica else devices),
        size=size,
        device_gb=size and size.parameters * width / devices / GB,
        labels=sampler.labels,
    )


def _trainer_part(config: RunConfig) -> Part:
    trainer = config.trainer
    sizes = [size for model in _trained_models(config) if (size := model_size(model))]
    largest = max(sizes, key=lambda size: size.parameters, default=None)
    return Part(
        name="trainer",
        copies=trainer.num_workers,
        gpus=trainer.gpus_per_worker,
        cpus=trainer.cpus_per_worker,
        size=largest,
        device_gb=largest and rank_gb(largest.parameters, trainer),
        labels=trainer.labels,
    )


def _trained_models(config: RunConfig) -> Iterator[str]:
    """The trainer's settings hold for every model that is trained: the largest has to fit."""
    # In the first round there is nothing to retrain on.
    is_retrained = any(config.round(n).retrain_policies for n in range(1, config.num_rounds))
    yield config.target.model
    yield from (policy.model for policy in config.policies if policy.sft or is_retrained)


def rank_gb(parameters: int, trainer: TrainerConfig) -> float:
    """Memory of one training rank, in 10^9 bytes.

    A parameter takes 2 bytes (4 in float32), its gradient 4, since micro-batches are summed in
    fp32, and AdamW's moments with the fp32 master copy 12 (8 without ZeRO, which needs no copy).
    Stage 1 shards the last of these, 2 the gradients too, 3 everything.
    """
    is_bf16 = trainer.dtype == "bfloat16"
    stage, is_offloaded = _zero_settings(trainer)
    ranks, state = trainer.num_workers, 12 if stage else 8
    weights = (2 if is_bf16 else 4) / (ranks if stage == 3 else 1)
    gradients = 4 / (ranks if stage >= 2 else 1)
    state = 0 if is_offloaded else state / (ranks if stage else 1)
    allowance = ALLOWANCE_GB if trainer.gpus_per_worker else 0.0
    activations = _activation_bytes(parameters, trainer)
    return (parameters * (weights + gradients + state) + activations) / GB + allowance


def _zero_settings(trainer: TrainerConfig) -> tuple[int, bool]:
    """The ZeRO stage that will run, and whether optimiser state is kept off the GPU.

    The user's own DeepSpeed settings win; they are unchecked, so anything may be in them.
    """
    own = trainer.deepspeed.get("zero_optimization")
    own = own if isinstance(own, dict) else {}
    stage = own["stage"] if own.get("stage") in (0, 1, 2, 3) else trainer.zero_stage
    # bf16 runs with stage 1 where 0 is asked for.
    stage = max(stage, 1) if trainer.dtype == "bfloat16" else stage
    offload = own.get("offload_optimizer")
    return stage, isinstance(offload, dict) and offload.get("device") in ("cpu", "nvme")


def _activation_bytes(parameters: int, trainer: TrainerConfig) -> float:
    """Of one micro-batch. A Llama has 12 h^2 parameters a layer and about h/128 layers."""
    hidden = (parameters * 128 / 12) ** (1 / 3)
    kept = 2 if "activation_checkpointing" in trainer.deepspeed else ACTIVATION_BYTES
    width = 1 if trainer.dtype == "bfloat16" else 2
    tokens = trainer.row_tokens * trainer.micro_batch_rows
    return kept * width * tokens * hidden * hidden / 128


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


def _why_not_placed(parts: list[Part], machines: MachinesConfig, mode: str) -> str:
    """A clause about a run each of whose phases has enough devices in number."""
    samplers = [part for part in parts if not part.is_trainer]
    trainer = [part for part in parts if part.is_trainer]
    there = _describe(machines)
    for field_name, per_node in (
        ("gpus", machines.gpus_per_node),
        ("cpus", machines.cpus_per_node),
    ):
        both, here = _sum(parts, field_name), machines.nodes * per_node
        if mode == "online" and both > here:
            own = f"samplers ({_sum(samplers, field_name):g}) and trainer"
            return (
                f"{own} ({_sum(trainer, field_name):g}) need {both:g} {field_name.upper()[:-1]}s "
                f"together, as online they work at the same time; {there}: {here} in all"
            )
    return f"no way to place replicas and ranks whole on one node each: {there}"


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


def model_size(model: str) -> ModelSize | None:
    """The size of a folder's model or, from its name, of one not here; None: not known.

    "meta-llama/Llama-2-70b-hf" -> 70B parameters from the name
    """
    folder = Path(model).expanduser()
    if weights := sorted(folder.glob("*.safetensors")):
        return ModelSize(sum(map(_count_in_file, weights)), "in its weights")
    if (folder / "config.json").is_file():
        return _size_of_shape(folder / "config.json")
    if sizes := MODEL_SIZE.findall(Path(model).name):
        number, unit = sizes[-1]
        return ModelSize(int(float(number) * {"b": 1e9, "m": 1e6}[unit.lower()]), "from the name")
    return None


def _count_in_file(path: Path) -> int:
    """Elements of all tensors, read off the header: a length and that many bytes of JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError(length)
            header: dict[str, Any] = json.loads(file.read(length))
        return sum(_product(entry["shape"]) for key, entry in header.items() if key[:2] != "__")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise InputError(f"{path}: not a safetensors file") from None


def _product(shape: list[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _size_of_shape(path: Path) -> ModelSize | None:
    """From the config of a dense Llama-like model; None for another kind."""
    try:
        shape = json.loads(path.read_text(encoding="utf-8"))
        hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
        head = shape.get("head_dim") or hidden // heads
        cached = shape.get("num_key_value_heads") or heads
        layer = 2 * hidden * head * (heads + cached) + 3 * hidden * shape["intermediate_size"]
        embeddings = shape["vocab_size"] * hidden * (1 if shape.get("tie_word_embeddings") else 2)
        # Two gains a layer and one at the end.
        layers = shape["num_hidden_layers"] * (layer + 2 * hidden)
    except ValueError:
        raise InputError(f"{path}: not valid JSON") from None
    except (KeyError, TypeError):
        return None
    if any("expert" in key for key in shape):
        return None
    return ModelSize(layers + embeddings + hidden, "from config.json")
