"""A run as a list of phases with their seconds and GPUs, in the order in which they take place.

Composes `workload.py` (how much) with `time_plan.py` (how fast). Left out: what takes seconds or
minutes once (starting engines and ranks, downloads, exports, selection), and idle GPUs, which are
paid for: the sums of a run say both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rft_ray.config import MachinesConfig, RecipeConfig, RunConfig
from rft_ray.gpu_facts import Gpu
from rft_ray.memory_plan import GB, sampler_memory
from rft_ray.model_shapes import ModelShape, model_shape, model_size
from rft_ray.parts import list_samplers
from rft_ray.time_plan import (
    SamplingRate,
    StepTime,
    refresh_seconds,
    sampling_rate,
    step_time,
)
from rft_ray.workload import Workload, workload_of

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Phase:
    """What a run does for a while."""

    name: str
    seconds: float
    gpus: float
    """That work in it."""
    bound: str
    """What takes the time."""
    detail: str = ""
    is_beside: bool = False
    """Whether it takes place at the same time as the phase before it."""

    @property
    def gpu_hours(self) -> float:
        """Of the GPUs that work in it."""
        return self.seconds * self.gpus / HOUR


def wall_seconds(phases: Sequence[Phase]) -> float:
    """From the first to the last."""
    groups: list[float] = []
    for phase in phases:
        if phase.is_beside and groups:
            groups[-1] = max(groups[-1], phase.seconds)
        else:
            groups.append(phase.seconds)
    return sum(groups)


def why_no_time(config: RunConfig) -> str | None:
    """Why a run's time cannot be planned, a clause; None where it can."""
    machines = config.machines
    if machines is None:
        return "the config names no machines"
    if machines.known_gpu is None:
        return "machines.gpu does not say which GPUs, nor gpu_tflops, gpu_bandwidth_gb_s and memory"
    samplers = list_samplers(config)
    if not config.trainer.gpus_per_worker or any(
        not sampler.gpus_per_replica for _, sampler in samplers.values()
    ):
        return "rates of CPUs are not known"
    names = [*(model for model, _ in samplers.values()), config.target.model]
    unknown = [name for name in names if model_shape(name) is None]
    return f"the size of {unknown[0]} is not known" if unknown else None


def plan_phases(config: RunConfig) -> list[Phase]:
    """The phases of a run whose time can be planned (`why_no_time`)."""
    return list(PhasePlan(config).phases())


class PhasePlan:
    """A config with what its phases are computed from."""

    def __init__(self, config: RunConfig) -> None:
        machines = config.machines
        assert machines is not None and machines.known_gpu is not None, why_no_time(config)
        self.config = config
        self.machines: MachinesConfig = machines
        self.gpu: Gpu = machines.known_gpu
        self.workload: Workload = workload_of(config)
        self.samplers = list_samplers(config)
        self.own = config.own_policy.name if config.own_policy else "target"

    def phases(self) -> Iterator[Phase]:
        """All of them, in order."""
        yield from self._fine_tuning()
        if self.config.mode == "online":
            yield from self._online()
        else:
            for number in range(self.config.num_rounds):
                yield from self._round(number)
        yield self.evaluation()

    def _fine_tuning(self) -> Iterator[Phase]:
        done = set()
        models = [(policy.name, policy.model, policy.sft) for policy in self.config.policies]
        for name, model, recipe in [*models, ("target", self.config.target.model, self.target_sft)]:
            # Equal trainings are done once.
            key = (model, recipe.model_dump_json() if recipe else None)
            if recipe and key not in done:
                done.add(key)
                yield self._training(f"sft {name}", model, recipe, 0.0)

    @property
    def target_sft(self) -> RecipeConfig | None:
        """Of the target."""
        return self.config.target.sft

    def _round(self, number: int) -> Iterator[Phase]:
        config, label = self.config, f" round {number}" if self.config.num_rounds > 1 else ""
        pool = number * self.workload.selected
        if number and config.round(number).retrain_policies:
            for policy in config.policies:
                yield self._training(f"rft {policy.name}{label}", policy.model, policy.rft, pool)
        yield from self._sampling(label)
        selected = self.workload.selected * (number + 1)
        target = config.target
        yield self._training(f"rft target{label}", target.model, target.rft, selected)
        for control in config.controls:
            accepted = self.workload.accepted * (number + 1)
            own = accepted if control == "no_dedup" else selected
            own = own / len(config.policies) if control == "own" else own
            yield self._training(f"control {control}{label}", target.model, target.rft, own)

    def _training(self, name: str, model: str, recipe: RecipeConfig, selected: float) -> Phase:
        work, trainer = self.workload, self.config.trainer
        steps = work.steps(recipe, selected)
        tokens = min(work.example, recipe.max_length)
        shape = _shape(model)
        step = step_time(
            shape, trainer, self.machines, self.gpu, recipe.batch_size, tokens, recipe.lora
        )
        return Phase(
            name=name,
            seconds=steps * step.seconds,
            gpus=trainer.num_workers * trainer.gpus_per_worker,
            bound=step.bound,
            detail=f"{steps} steps of {step.seconds:.3g} s, {step.micro_batches} micro-batches",
        )

    def _sampling(self, label: str) -> Iterator[Phase]:
        problems, total = self.workload.train_problems, 0
        for number, policy in enumerate(self.config.policies):
            rollouts = problems * policy.sampling.k
            total += rollouts
            seconds, rate = self.sampling_seconds(policy.name, problems, policy.sampling.k)
            yield Phase(
                name=f"sample {policy.name}{label}",
                seconds=seconds,
                gpus=self._gpus(policy.name),
                bound=rate.bound,
                detail=_rate_text(rate),
                is_beside=number > 0,
            )
        workers, own = self.config.verifier.workers, self.config.workload
        rate_s = workers * own.verdicts_s
        detail = f"{total} rollouts at {rate_s:.0f}/s"
        yield Phase(f"verify{label}", total / rate_s, 0, "CPUs", detail, is_beside=True)

    def sampling_seconds(
        self, name: str, problems: int, k: int, extra_prompt: float = 0.0
    ) -> tuple[float, SamplingRate]:
        """Of k rollouts for each of so many problems, in all replicas of a sampler."""
        rate, work = self.rate(name), self.workload
        replicas = self.samplers[name][1].num_replicas
        # The rollouts of a problem share what was computed of its prompt.
        prompts = problems * (work.question + extra_prompt) / rate.prompt_tokens_s
        return (prompts + problems * k * work.response / rate.tokens_s) / replicas, rate

    def rate(self, name: str) -> SamplingRate:
        """Of one replica: as measured, where `machines.sampler_tokens_s` says."""
        model, sampler = self.samplers[name]
        shape, size = _shape(model), model_size(model)
        assert size is not None  # its shape is known
        memory = sampler_memory(shape, sampler, self.gpu.memory_gb * GB, size.parameters)
        context = self.workload.question + self.workload.response / 2
        rate = sampling_rate(shape, sampler, memory, self.machines, self.gpu, context)
        measured = self.machines.sampler_tokens_s.get(name)
        if measured is None:
            return rate
        return SamplingRate(measured, rate.prompt_tokens_s, rate.sequences, "as measured")

    def _gpus(self, name: str) -> float:
        sampler = self.samplers[name][1]
        return sampler.num_replicas * sampler.gpus_per_replica

    def evaluation(self) -> Phase:
        """Every policy's SFT greedily; the target at each stage, with samples where asked for."""
        config, problems = self.config, self.workload.heldout_problems
        settings = config.evaluation
        seconds = sum(
            self.sampling_seconds(policy.name, problems, 1)[0]
            for policy in config.policies
            if policy.sft
        )
        rollouts = 1 + settings.samples
        rounds = 1 if config.mode == "online" else config.num_rounds
        stages = int(config.target.sft is not None) + rounds * (1 + len(config.controls))
        one, rate = self.sampling_seconds(self.own, problems, rollouts)
        seconds += stages * one
        if settings.icl_shots:
            shots = settings.icl_shots * self.workload.example
            seconds += self.sampling_seconds(self.own, problems, rollouts, shots)[0]
            stages += 1
        detail = f"{stages} target stages, {problems} x {rollouts} rollouts"
        return Phase("evaluate", seconds, self._gpus(self.own), rate.bound, detail)

    def _online(self) -> Iterator[Phase]:
        """The parts of all steps; the next batch is sampled while this one is trained on, where
        rollouts may be stale, except during a refresh."""
        config, steps = self.config, self.config.online.steps
        sampling, bound = 0.0, ""
        for policy in config.policies:
            problems, k = config.online.problems_per_step, policy.sampling.k
            own, rate = self.sampling_seconds(policy.name, problems, k)
            sampling, bound = max((sampling, bound), (own, rate.bound))
        step = self._online_step()
        training = config.online.updates_per_batch * step.seconds
        refresh = refresh_seconds(_shape(config.target.model), config.trainer, self.machines)
        ranks = config.trainer.num_workers * config.trainer.gpus_per_worker
        samplers = sum(self._gpus(policy.name) for policy in config.policies)
        detail = f"{steps} of {training:.3g} s, {step.micro_batches} micro-batches"
        yield Phase("online training", steps * training, ranks, step.bound, detail)
        detail, beside = f"{steps} of {sampling:.3g} s", config.online.max_staleness > 0
        yield Phase("online sampling", steps * sampling, samplers, bound, detail, beside)
        detail = f"{steps} of {refresh:.3g} s"
        both = max(ranks, samplers) if config.shares_gpus else ranks + samplers
        yield Phase("online refresh", steps * refresh, both, "messages", detail)

    def _online_step(self) -> StepTime:
        config, target = self.config, self.config.target
        rollouts = sum(policy.sampling.k for policy in config.policies)
        rollouts *= config.online.problems_per_step
        examples = max(1, round(rollouts * config.workload.accepted_share))
        tokens = min(self.workload.question + self.workload.response, target.rft.max_length)
        shape = _shape(target.model)
        return step_time(
            shape, config.trainer, self.machines, self.gpu, examples, tokens, target.rft.lora
        )


def _shape(model: str) -> ModelShape:
    shape = model_shape(model)
    assert shape is not None  # why_no_time has seen to it
    return shape


def _rate_text(rate: SamplingRate) -> str:
    return f"{rate.tokens_s:.0f} tokens/s a replica, {rate.sequences} at a time"
