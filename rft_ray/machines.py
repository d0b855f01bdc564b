"""The sections that only `rft-ray plan` and placement read: machines, and what a run will meet.

Every number that a plan of time and cost takes for granted is a field here, so that it can be
replaced by a measured one; `rft-ray plan` prints those that it used.
"""

from typing import Annotated

from pydantic import Field, model_validator

from rft_ray.config_section import Count, Name, Section
from rft_ray.gpu_facts import GPUS, Gpu

Positive = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class MachinesConfig(Section):
    """The cluster a config is written for; `rft-ray plan` checks that the run fits on it."""

    nodes: Count = 1
    """Machines, all alike."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs of a machine."""
    gpu: str | None = None
    """Kind of GPU (H100, A100, L40S, ...), whose memory, peak and bandwidth are then known."""
    gpu_memory_gb: Positive | None = None
    """Memory of a GPU, in 10^9 bytes; none: that of its kind."""
    gpu_tflops: Positive | None = None
    """Peak of dense bfloat16 arithmetic, in 10^12 operations a second; none: that of its kind."""
    gpu_bandwidth_gb_s: Positive | None = None
    """Of a GPU's memory, in 10^9 bytes a second; none: that of its kind."""
    gpu_hour_cost: Positive | None = None
    """Price of one GPU for an hour, in any currency; none: no cost is planned."""
    cpus_per_node: Count = 8
    """Logical CPUs of a machine."""
    memory_gb: Positive | None = None
    """Main memory of a machine, in 10^9 bytes."""
    disk_gb: Positive | None = None
    """Local disks of a machine, in 10^9 bytes, which offloading to nvme needs; none: not known."""
    training_mfu: Share = 0.4
    """Share of the peak that training achieves where nothing but arithmetic holds it up; `mfu` in
    metrics.jsonl is a measured one."""
    sampling_mfu: Share = 0.5
    """The same for the arithmetic of sampling."""
    bandwidth_share: Share = 0.6
    """Share of a GPU's bandwidth that decoding achieves."""
    engine_step_s: Annotated[float, Field(ge=0.0)] = 0.005
    """What an engine needs for a token of all its sequences beside the GPU's work."""
    sampler_tokens_s: dict[Name, Positive] = Field(default={})
    """Measured tokens a second of a replica, by policy (or target), instead of an estimate."""
    node_link_gb_s: Positive = 150.0
    """What a GPU sends to the others of its machine, in 10^9 bytes a second, as measured."""
    link_gb_s: Positive = 20.0
    """What a ring over machines hands on, as NCCL's tests call its bus bandwidth. 20 is what the
    published hours of Yuan et al. come out with, 80 % of one 200 Gb/s port of a machine; one with a
    port for each GPU may reach eight times that: measure it."""
    pcie_gb_s: Positive = 20.0
    """Between a GPU and main memory."""
    memory_bandwidth_gb_s: Positive = 150.0
    """Of a machine's main memory, where an offloaded optimiser works."""
    nvme_gb_s: Positive = 6.0
    """Of a machine's local disks."""

    @model_validator(mode="after")
    def _knows_the_gpu(self) -> "MachinesConfig":
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(f"gpu {self.gpu!r} is none of {', '.join(GPUS)}")
        return self

    @property
    def memory_of_gpu(self) -> float | None:
        """Memory of a GPU in 10^9 bytes, as stated or as of its kind; None: not known."""
        kind = GPUS.get(self.gpu or "")
        return self.gpu_memory_gb or (kind.memory_gb if kind else None)

    @property
    def known_gpu(self) -> Gpu | None:
        """All that time takes; None where peak, bandwidth or memory are not known."""
        kind = GPUS.get(self.gpu or "")
        facts = (
            self.gpu_tflops or (kind and kind.tflops),
            self.gpu_bandwidth_gb_s or (kind and kind.bandwidth_gb_s),
            self.memory_of_gpu,
        )
        return Gpu(*facts) if all(facts) else None


class WorkloadConfig(Section):
    """What a run will meet, for `rft-ray plan`; the defaults are GSM8K's, by LLaMA's tokenizer."""

    train_problems: Count | None = None
    """None: those of the file, or GSM8K's 7,473 where it is not here."""
    heldout_problems: Count | None = None
    """None: those of the file, or GSM8K's 1,319 where it is not here."""
    question_tokens: Positive = 66.0
    """Mean tokens of a problem, without the template."""
    template_tokens: Annotated[float, Field(ge=0.0)] | None = None
    """Tokens of the prompt around a problem; none: a token for every four characters."""
    solution_tokens: Positive = 130.0
    """Mean tokens of a gold solution, EOS included."""
    response_tokens: Positive = 130.0
    """Mean tokens of a rollout, EOS included; never more than max_tokens."""
    accepted_share: Share = 0.6
    """Of the rollouts; Yuan et al. 2023 have 0.53 to 0.72 for models of 7B and 13B."""
    selected_per_problem: Positive | None = None
    """Selected rollouts of a problem; none: as many as Yuan et al. 2023 have for as many rollouts
    (5.25 of 100, 12.84 of 400)."""
    verdicts_s: Positive = 5000.0
    """Completions that one verifier worker grades in a second."""
