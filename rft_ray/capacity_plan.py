"""What a number of GPUs gives for one run: how they are best used, and hours, GPU hours and cost.

The config's machines stay what they are, their number changes. Samplers and training take turns, so
that each phase has all GPUs: replicas are spread by the work of their models, and of the ranks,
ZeRO-3 settings and row lengths that fit, those are taken that train fastest. What a step learns
from stays the same, which is what limits the largest numbers of GPUs: a step has 128 examples.
Left out: larger batches, and other ways to cut a model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import sqrt
from typing import Any

from rft_ray.config import MachinesConfig, RunConfig, SamplerConfig, TrainerConfig
from rft_ray.errors import InputError
from rft_ray.fit_advice import apply_changes, trainer_fits
from rft_ray.memory_plan import ZeroSettings
from rft_ray.model_shapes import model_shape
from rft_ray.parts import adapters_of, largest_model
from rft_ray.phase_plan import HOUR, Phase, PhasePlan, plan_phases, wall_seconds, why_no_time

ROW_FACTORS = (1, 2, 4)
PLACES = ("device", "cpu", "nvme")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What so many GPUs give; `problem` says why they give nothing."""

    gpus: int
    phases: list[Phase] = field(default_factory=list)
    samplers: str = ""
    trainer: str = ""
    problem: str = ""

    @property
    def hours(self) -> float:
        """From start to end."""
        return wall_seconds(self.phases) / HOUR

    def hours_of(self, *kinds: str) -> float:
        """Of the phases whose name begins so."""
        return wall_seconds([p for p in self.phases if p.name.startswith(kinds)]) / HOUR


def plan_capacity(config: RunConfig, gpus: int) -> Capacity:
    """The run on that many GPUs of the config's machines.

    Raises InputError where its time cannot be planned, or these are not whole machines.
    """
    if config.mode == "online":
        raise InputError("--gpus is for mode offline: online, samplers and ranks are a balance")
    if reason := why_no_time(config):
        raise InputError(f"--gpus needs the time of a run: {reason}")
    assert config.machines is not None  # else there was a reason
    sized = config.model_copy(update={"machines": resize(config.machines, gpus)})
    spread = spread_samplers(sized, gpus)
    if isinstance(spread, str):
        return Capacity(gpus, problem=spread)
    trainer = fastest_trainer(spread, gpus)
    if trainer is None:
        return Capacity(gpus, problem="no way to train the largest model fits")
    placed = spread.model_copy(update={"trainer": trainer})
    return Capacity(gpus, plan_phases(placed), _replicas(placed), _ranks(trainer))


def resize(machines: MachinesConfig, gpus: int) -> MachinesConfig:
    """As many of these machines as have so many GPUs; one that has fewer, where that is enough."""
    own = min(gpus, machines.gpus_per_node)
    if own < 1 or gpus % own:
        raise InputError(f"--gpus {gpus}: not whole machines of {machines.gpus_per_node} GPUs")
    return machines.model_copy(update={"nodes": gpus // own, "gpus_per_node": own})


def spread_samplers(config: RunConfig, gpus: int) -> RunConfig | str:
    """Replicas that share all GPUs by the work of their models; or why one of each has no room.

    Sampling ends with its slowest policy and evaluation follows it: its share is as the roots of
    both works, which makes the sum of their times least.
    """
    single = _with_replicas(config, {})
    plan = PhasePlan(single)
    wide = {name: int(own.gpus_per_replica) for name, (_, own) in plan.samplers.items()}
    if sum(wide.values()) > gpus:
        asked = ", ".join(f"{name} {own}" for name, own in wide.items())
        return f"a sampler of each model needs {sum(wide.values())} GPUs at once ({asked})"
    work = {
        policy.name: wide[policy.name]
        * plan.sampling_seconds(policy.name, plan.workload.train_problems, policy.sampling.k)[0]
        for policy in config.policies
    }
    sampled, left = sum(work.values()), gpus
    if config.own_policy is None:
        scored = plan.evaluation().gpu_hours * HOUR
        share = sqrt(scored) / (sqrt(scored) + sqrt(sampled))
        most = gpus - sum(own for name, own in wide.items() if name != "target")
        target = max(1, min(most, round(share * gpus)) // wide["target"])
        left -= target * wide["target"]
        counts = {"target": target}
    else:
        counts = {}
    for name in (policy.name for policy in config.policies):
        counts[name] = max(1, int(left * work[name] / sampled / wide[name]))
    while sum(counts[name] * wide[name] for name in wide) > gpus:
        counts[max(counts, key=counts.__getitem__)] -= 1
    return _with_replicas(config, counts)


def _with_replicas(config: RunConfig, counts: dict[str, int]) -> RunConfig:
    """That many replicas of each sampler, one where nothing is said."""

    def sized(name: str, sampler: SamplerConfig) -> SamplerConfig:
        return sampler.model_copy(
            update={"num_replicas": counts.get(name, 1), "max_replicas": None}
        )

    policies = [
        policy.model_copy(update={"sampler": sized(policy.name, policy.sampler)})
        for policy in config.policies
    ]
    target = config.target.model_copy(update={"sampler": sized("target", config.target.sampler)})
    return config.model_copy(update={"policies": policies, "target": target})


def fastest_trainer(config: RunConfig, gpus: int) -> TrainerConfig | None:
    """The ranks, row length and offloading with which all trainings of a run take least time."""
    fitting = [own for own in _trainers(config, gpus) if _fits(config, own)]
    return min(fitting, key=lambda own: _training_seconds(config, own), default=None)


def _trainers(config: RunConfig, gpus: int) -> Iterator[TrainerConfig]:
    own, beside = config.trainer, config.machines.gpus_per_node if config.machines else 1
    most = int(gpus / own.gpus_per_worker)
    counts = {min(most, 2**n) for n in range(most.bit_length() + 1)} | {min(most, own.num_workers)}
    for ranks, factor, place in product(sorted(counts), ROW_FACTORS, PLACES):
        size = {"num_workers": ranks, "row_tokens": factor * own.row_tokens}
        zero: dict[str, Any] = {"offload_optimizer": {"device": place}} if place != "device" else {}
        plain = apply_changes(own, [size, {"deepspeed": {"zero_optimization": zero}}])
        yield plain
        if own.zero_stage == 3 and ranks % beside == 0 and ranks > beside > 1:
            copied = {"zero_optimization": {"zero_hpz_partition_size": beside}}
            yield apply_changes(plain, [{"deepspeed": copied}])


def _fits(config: RunConfig, trainer: TrainerConfig) -> bool:
    model = largest_model(config)
    shape = model and model_shape(model)
    assert model and shape and config.machines is not None
    lora = adapters_of(config, model)
    return trainer_fits(shape, model, trainer, config.machines, lora)


def _training_seconds(config: RunConfig, trainer: TrainerConfig) -> float:
    phases = plan_phases(config.model_copy(update={"trainer": trainer}))
    return wall_seconds([p for p in phases if p.name.startswith(("sft", "rft", "control"))])


def _replicas(config: RunConfig) -> str:
    samplers = PhasePlan(config).samplers
    return ", ".join(
        f"{own.num_replicas}" + (f"x{own.tensor_parallel_size}" * (own.tensor_parallel_size > 1))
        for _, own in samplers.values()
    )


def _ranks(trainer: TrainerConfig) -> str:
    zero = ZeroSettings.of(trainer)
    text = f"{trainer.num_workers} ranks, rows of {trainer.row_tokens}"
    text += f", hpZ {zero.copy_ranks}" if zero.copy_ranks > 1 else ""
    return text + (f", optimiser on {zero.optimiser}" if zero.optimiser != "device" else "")


def capacity_lines(config: RunConfig, gpus: Sequence[int]) -> list[str]:
    """A table in Markdown, a line for each number of GPUs."""
    price = config.machines.gpu_hour_cost if config.machines else None
    head = ["GPUs", "replicas", "training", "SFT h", "sampling h", "RFT h", "evaluation h"]
    head += ["all h", "GPU h", "cost"]
    rows = [head, ["---:"] + ["---"] * 2 + ["---:"] * (len(head) - 3)]
    for number in gpus:
        own = plan_capacity(config, number)
        if own.problem:
            rows.append([str(number), f"does not fit: {own.problem}", *[""] * (len(head) - 2)])
            continue
        paid = own.hours * number
        parts = [("sft",), ("sample", "verify"), ("rft", "control"), ("evaluate",)]
        hours = [f"{own.hours_of(*kinds):.2f}" for kinds in parts]
        cost = f"{paid * price:.0f}" if price else "not known"
        rows.append([str(number), own.samplers, own.trainer, *hours, f"{own.hours:.2f}"])
        rows[-1] += [f"{paid:.0f}", cost]
    return ["| " + " | ".join(row) + " |" for row in rows]
