"""The plan of one weight refresh, on paper: which bytes of the trainer go where in the samplers.

Made from the shapes of a Llama-like Hugging Face model alone, so that a refresh of 70 billion
parameters over 64 training ranks can be checked on a laptop: what each bucket holds, which slice
of which tensor each tensor-parallel worker of vLLM keeps, what crosses each link, how long that
takes at stated rates, and the memory it needs on top of training and sampling. Left out: moving
anything, quantised samplers, pipeline parallelism, mixtures of experts, and the latency of a call
(milliseconds a bucket).

The sampler's side is stated here rather than read from vLLM, which takes half a minute to import;
the tests compare it with vLLM's own model, parameter by parameter and element by element.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rft_ray.buckets import TensorSpec, bytes_per_element, plan_buckets
from rft_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rft_ray.config import RunConfig

GB = 1e9
DEFAULT_CAP_BYTES = 2**30
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""vLLM's linear layers that hold several of the trainer's, one after the other."""
FUSED_INTO = {part: whole for whole, parts in FUSED.items() for part in parts}
CUT_BY_ROWS = {"q_proj", "gate_proj", "up_proj"}
CUT_BY_KV_HEADS = {"k_proj", "v_proj"}
CUT_BY_COLUMNS = {"o_proj", "down_proj"}
CUT_BY_VOCABULARY = {"embed_tokens", "lm_head"}
REPLICATED = {"input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm"}
VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this before it cuts it."""


@dataclass(frozen=True, slots=True)
class Participants:
    """Who takes part in a refresh."""

    trainer_ranks: int = 64
    """ZeRO-3 ranks: each holds an equal part of every tensor."""
    replicas: int = 1
    """Sampler replicas, each with the whole model."""
    tensor_parallel: int = 8
    """Workers of one replica, each with its slices of the model."""

    @property
    def workers(self) -> int:
        """Sampler workers in all."""
        return self.replicas * self.tensor_parallel


@dataclass(frozen=True, slots=True)
class LinkRates:
    """What one process sends or receives, each way at once; as measured, not as sold.

    The defaults are 80 % of a 200 Gb/s port for each GPU, and the 4 MiB in which a broadcast
    passes on what it receives.
    """

    trainer_gb_s: float = 20.0
    """Among the trainer's ranks, 10^9 bytes a second."""
    sampler_gb_s: float = 20.0
    """From the trainer to the sampler's workers and among them."""
    chunk_bytes: int = 2**22


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a trainer's tensor and where it goes in a sampler's parameter, along one dimension.

    Along every other dimension the two have the same length and all of it is taken.
    """

    source: str
    dim: int
    source_start: int
    target_start: int
    length: int


@dataclass(frozen=True, slots=True)
class SamplerParameter:
    """A parameter of one tensor-parallel worker, and the slices that fill it."""

    spec: TensorSpec
    rank: int
    slices: tuple[Slice, ...]
    padding: int = 0
    """Rows at the end that no tensor fills: the vocabulary's padding."""

    @property
    def received_bytes(self) -> int:
        """Bytes of its slices."""
        rows = self.spec.shape[0]
        return self.spec.num_bytes * (rows - self.padding) // rows


@dataclass(frozen=True, slots=True)
class Transfer:
    """One way to move the model, by what its links and its busiest process carry."""

    name: str
    links: int
    link_bytes: int
    """Over each link."""
    port_bytes: int
    """Through the process that sends or receives most, in that one direction."""
    seconds: float


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Bytes needed at once on top of training and sampling."""

    trainer: int
    """At rank 0."""
    sampler: int
    """At the worker that needs most."""


@dataclass(frozen=True)
class RefreshPlan:
    """What one refresh moves; tensors in the model's order, parameters of all workers of a replica.

    Invariant: the buckets hold every tensor once, in order.
    """

    tensors: list[TensorSpec]
    buckets: list[list[TensorSpec]]
    cap_bytes: int
    parameters: list[SamplerParameter]
    participants: Participants
    rates: LinkRates = field(default_factory=LinkRates)

    @cached_property
    def num_bytes(self) -> int:
        """Of the model."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @cached_property
    def bucket_bytes(self) -> list[int]:
        """Of each bucket."""
        return [sum(tensor.num_bytes for tensor in bucket) for bucket in self.buckets]

    @property
    def oversized(self) -> list[TensorSpec]:
        """Tensors larger than the cap, which travel alone."""
        return [tensor for tensor in self.tensors if tensor.num_bytes > self.cap_bytes]

    @cached_property
    def partition_bytes(self) -> int:
        """What each training rank holds of the model, padding included."""
        return sum(partition_bytes(t, self.participants.trainer_ranks) for t in self.tensors)

    @cached_property
    def bucket_of(self) -> dict[str, int]:
        """Number of the bucket of each tensor."""
        return {t.name: n for n, bucket in enumerate(self.buckets) for t in bucket}

    def worker_bytes(self, rank: int) -> int:
        """What the worker of this tensor-parallel rank keeps of the model."""
        return sum(p.received_bytes for p in self.parameters if p.rank == rank)

    @cached_property
    def spread(self) -> list[str]:
        """Names of the sampler's parameters whose slices come in more than one bucket."""
        first = (p for p in self.parameters if p.rank == 0)
        return [p.spec.name for p in first if len({self.bucket_of[s.source] for s in p.slices}) > 1]


def plan_refresh(
    config: "PretrainedConfig",
    participants: Participants,
    cap_bytes: int = DEFAULT_CAP_BYTES,
    rates: LinkRates | None = None,
    dtype: str = "bfloat16",
) -> RefreshPlan:
    """The refresh of a model of this shape.

    Raises InputError where the model is not Llama-like or cannot be cut for that many workers.
    """
    tensors = describe_tensors(config, dtype)
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return RefreshPlan(
        tensors=tensors,
        buckets=plan_buckets(tensors, cap_bytes),
        cap_bytes=cap_bytes,
        parameters=place_tensors(tensors, kv_heads, participants.tensor_parallel),
        participants=participants,
        rates=rates or LinkRates(),
    )


def refresh_of_run(config: "RunConfig") -> RefreshPlan | None:
    """The refresh of an online run's config; None where its target's folder is not here."""
    from transformers import AutoConfig

    if not Path(config.target.model, "config.json").is_file():
        return None
    own = config.own_policy
    sampler = own.sampler if own else config.target.sampler
    participants = Participants(
        trainer_ranks=config.trainer.num_workers,
        replicas=sampler.num_replicas,
        tensor_parallel=sampler.tensor_parallel_size,
    )
    shape = AutoConfig.from_pretrained(config.target.model, local_files_only=True)
    cap_bytes, dtype = config.online.bucket_mb * 2**20, config.trainer.dtype
    return plan_refresh(shape, participants, cap_bytes, dtype=dtype)


def describe_tensors(config: "PretrainedConfig", dtype: str = "bfloat16") -> list[TensorSpec]:
    """The parameters of a Hugging Face model in its order, tied ones once; no weights are made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return [
        TensorSpec(name, tuple(weight.shape), dtype) for name, weight in model.named_parameters()
    ]


def partition(numel: int, ranks: int) -> list[tuple[int, int]]:
    """Start and end of the elements that each ZeRO-3 rank holds of a flat tensor.

    The tensor is padded until it divides, so the last ranks may hold less, or nothing.

    (10, 4) -> [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    size = math.ceil(numel / ranks)
    return [(min(r * size, numel), min((r + 1) * size, numel)) for r in range(ranks)]


def partition_bytes(tensor: TensorSpec, ranks: int) -> int:
    """What one ZeRO-3 rank stores and sends of a tensor, padding included."""
    return math.ceil(math.prod(tensor.shape) / ranks) * bytes_per_element(tensor.dtype)


def place_tensors(
    tensors: list[TensorSpec], kv_heads: int, tensor_parallel: int
) -> list[SamplerParameter]:
    """The parameters of every worker of one replica, rank by rank, with what fills them.

    Raises InputError for a tensor that has no known place or does not divide.
    """
    targets: dict[str, list[TensorSpec]] = {}
    for tensor in tensors:
        targets.setdefault(target_name(tensor.name), []).append(tensor)
    for name, sources in targets.items():
        _check_parts(name, sources)
    return [
        _place(name, sources, _Worker(rank, tensor_parallel, kv_heads))
        for rank in range(tensor_parallel)
        for name, sources in targets.items()
    ]


def target_name(name: str) -> str:
    """The sampler's parameter that a trainer's tensor goes to.

    "model.layers.0.self_attn.k_proj.weight" -> "model.layers.0.self_attn.qkv_proj.weight"
    """
    *path, layer, kind = name.split(".")
    return ".".join([*path, FUSED_INTO.get(layer, layer), kind])


def _check_parts(target: str, sources: list[TensorSpec]) -> None:
    """All parts of a fused layer, in the order in which it holds them."""
    layer = target.split(".")[-2]
    found = tuple(source.name.split(".")[-2] for source in sources)
    if found != FUSED.get(layer, (layer,)):
        raise InputError(f"model: {target} of the sampler cannot be made of {', '.join(found)}")


@dataclass(frozen=True, slots=True)
class _Worker:
    """One tensor-parallel rank, and what it needs to know to cut."""

    rank: int
    ranks: int
    kv_heads: int


def _place(name: str, sources: list[TensorSpec], worker: _Worker) -> SamplerParameter:
    slices: list[Slice] = []
    filled = 0
    for source in sources:
        cut = replace(_cut(source, worker), target_start=filled)
        slices.append(cut)
        filled += cut.length
    shape, dim, padding = list(sources[0].shape), slices[0].dim, 0
    if name.split(".")[-2] in CUT_BY_VOCABULARY:
        padding = _padded_vocabulary(shape[0]) // worker.ranks - filled
    shape[dim] = filled + padding
    spec = TensorSpec(name, tuple(shape), sources[0].dtype)
    return SamplerParameter(spec, worker.rank, tuple(slices), padding)


def _cut(source: TensorSpec, worker: _Worker) -> Slice:
    """What a worker keeps of a tensor."""
    layer = source.name.split(".")[-2]
    rank, ranks, rows = worker.rank, worker.ranks, source.shape[0]
    # The bias of a layer cut by columns is added once, after the sum, but every worker stores it.
    if layer in REPLICATED or (layer in CUT_BY_COLUMNS and len(source.shape) == 1):
        return Slice(source.name, 0, 0, 0, rows)
    if layer in CUT_BY_COLUMNS:
        return _even_cut(source, 1, rank, ranks)
    if layer in CUT_BY_ROWS:
        return _even_cut(source, 0, rank, ranks)
    if layer in CUT_BY_VOCABULARY:
        size = _divide(_padded_vocabulary(rows), ranks, source.name)
        start = min(rank * size, rows)
        return Slice(source.name, 0, start, 0, min((rank + 1) * size, rows) - start)
    if layer in CUT_BY_KV_HEADS:
        # With fewer heads than workers, neighbours keep the same head.
        copies = _divide(ranks, worker.kv_heads, source.name) if ranks > worker.kv_heads else 1
        return _even_cut(source, 0, rank // copies, ranks // copies)
    raise InputError(f"model: no place in the sampler is known for the tensor {source.name}")


def _even_cut(source: TensorSpec, dim: int, part: int, parts: int) -> Slice:
    size = _divide(source.shape[dim], parts, source.name)
    return Slice(source.name, dim, part * size, 0, size)


def _padded_vocabulary(rows: int) -> int:
    return math.ceil(rows / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _divide(length: int, parts: int, name: str) -> int:
    if length % parts:
        raise InputError(f"model: {name} cannot be cut: {length} does not divide by {parts}")
    return length // parts


def list_transfers(plan: RefreshPlan) -> list[Transfer]:
    """Ways to gather the model from the trainer, then ways to bring it to all workers."""
    return [*_list_gathers(plan), *_list_broadcasts(plan), *_list_sharded(plan)]


def _list_gathers(plan: RefreshPlan) -> Iterator[Transfer]:
    """Rank 0 receives as much either way; the other ranks of an all-gather do too."""
    ranks, part = plan.participants.trainer_ranks, plan.partition_bytes
    port = (ranks - 1) * part
    seconds = port / (plan.rates.trainer_gb_s * GB)
    yield Transfer("gather to rank 0", ranks - 1, part, port, seconds)
    yield Transfer("all-gather in a ring (DeepSpeed's)", ranks, port, port, seconds)


def _list_broadcasts(plan: RefreshPlan) -> Iterator[Transfer]:
    """The whole model from rank 0 to every worker, over each link of the shape once."""
    workers, size = plan.participants.workers, plan.num_bytes
    shapes = {"star": (workers, 1), "binary tree": (min(2, workers), _tree_depth(workers))}
    for name, (children, depth) in (shapes | {"chain": (1, workers)}).items():
        seconds = _pipeline_seconds(plan, size, children, depth)
        yield Transfer(f"broadcast, {name}", workers, size, children * size, seconds)


def _tree_depth(workers: int) -> int:
    """Links from rank 0, the root, to the farthest of its descendants."""
    return math.floor(math.log2(workers + 1))


def _pipeline_seconds(plan: RefreshPlan, size: int, children: int, depth: int) -> float:
    """The root sends all to each child; the last child starts when its first chunk arrives."""
    fill = (depth - 1) * children * min(plan.rates.chunk_bytes, size)
    return (children * size + fill) / (plan.rates.sampler_gb_s * GB)


def _list_sharded(plan: RefreshPlan) -> Iterator[Transfer]:
    """Each worker gets its own slices only: a chain over the replicas for each rank."""
    who = plan.participants
    sizes = [plan.worker_bytes(rank) for rank in range(who.tensor_parallel)]
    for senders, port in (("rank 0", sum(sizes)), ("a rank each", max(sizes))):
        fill = (who.replicas - 1) * min(plan.rates.chunk_bytes, max(sizes))
        seconds = (port + fill) / (plan.rates.sampler_gb_s * GB)
        yield Transfer(f"slices, chains from {senders}", who.workers, max(sizes), port, seconds)


def peak_memory(plan: RefreshPlan, overlapped: bool = False) -> PeakMemory:
    """Memory for buckets, gathered and sent in turn or, overlapped, the next while one is sent.

    Rank 0 holds a bucket's gathered tensors, padded, and the packed copy that it sends; overlapped,
    a second packed copy.
    """
    ranks = plan.participants.trainer_ranks
    gathered = [ranks * sum(partition_bytes(t, ranks) for t in b) for b in plan.buckets]
    in_turn = max(g + p for g, p in zip(gathered, plan.bucket_bytes, strict=True))
    trainer = in_turn + (max(plan.bucket_bytes) if overlapped else 0)
    workers = range(plan.participants.tensor_parallel)
    return PeakMemory(trainer, max(_worker_memory(plan, rank, overlapped) for rank in workers))


def _worker_memory(plan: RefreshPlan, rank: int, overlapped: bool) -> int:
    """Buckets that have to be kept, the one that arrives, and the layer that is put together.

    vLLM keeps references to what it is given until a layer has all its elements, then fills a new
    copy of the layer; one with padding never has all, and waits for the end of the refresh.
    """
    own = [p for p in plan.parameters if p.rank == rank]
    last = list(range(len(plan.buckets)))
    for parameter in own:
        numbers = [plan.bucket_of[s.source] for s in parameter.slices]
        until = len(plan.buckets) - 1 if parameter.padding else max(numbers)
        for number in numbers:
            last[number] = max(last[number], until)
    ahead = 1 if overlapped else 0
    kept = (
        sum(size for n, size in enumerate(plan.bucket_bytes) if n <= now + ahead and last[n] >= now)
        for now in range(len(plan.buckets))
    )
    return max(kept) + max(p.spec.num_bytes for p in own)


def refresh_plan_lines(plan: RefreshPlan) -> list[str]:
    """The plan as text, a line each, no longer than 100 columns."""
    return [
        *_size_lines(plan),
        *_bucket_lines(plan),
        *_transfer_lines(plan),
        *_memory_lines(plan),
    ]


def print_refresh_plan(plan: RefreshPlan) -> None:
    """Print the plan."""
    print("\n".join(refresh_plan_lines(plan)))


def _size_lines(plan: RefreshPlan) -> Iterator[str]:
    who = plan.participants
    parameters = sum(math.prod(tensor.shape) for tensor in plan.tensors)
    yield (
        f"refresh: {parameters / 1e9:.3g} billion parameters in {len(plan.tensors)} tensors, "
        f"{plan.num_bytes / GB:.4g} GB"
    )
    yield (
        f"from {who.trainer_ranks} ZeRO-3 ranks ({plan.partition_bytes / GB:.4g} GB each) to "
        f"{who.replicas} x {who.tensor_parallel} sampler workers "
        f"({max(map(plan.worker_bytes, range(who.tensor_parallel))) / GB:.4g} GB each)"
    )


def _bucket_lines(plan: RefreshPlan) -> Iterator[str]:
    sizes = plan.bucket_bytes
    yield (
        f"{len(sizes)} buckets of at most {plan.cap_bytes / GB:.4g} GB: "
        f"{min(sizes) / GB:.3g} to {max(sizes) / GB:.3g}, mean {sum(sizes) / len(sizes) / GB:.3g}"
    )
    for tensor in plan.oversized:
        yield f"larger than the cap, alone: {tensor.name}, {tensor.num_bytes / GB:.4g} GB"
    if plan.spread:
        yield (
            f"{len(plan.spread)} of the sampler's parameters come in more than one bucket: "
            "keep those until it is whole"
        )


def _transfer_lines(plan: RefreshPlan) -> Iterator[str]:
    rates = plan.rates
    yield (
        f"at {rates.trainer_gb_s:g} GB/s a training rank, {rates.sampler_gb_s:g} GB/s a "
        "sampler worker, each way:"
    )
    yield f"  {'':36} {'links':>6} {'GB a link':>10} {'busiest GB':>11} {'seconds':>9}"
    for way in list_transfers(plan):
        yield (
            f"  {way.name:36} {way.links:6d} {way.link_bytes / GB:10.2f} "
            f"{way.port_bytes / GB:11.2f} {way.seconds:9.2f}"
        )
    in_turn, overlapped = refresh_seconds(plan)
    yield (
        f"gather, then broadcast in a chain: {in_turn:.1f} s bucket by bucket, "
        f"{overlapped:.1f} s overlapped"
    )


def refresh_seconds(plan: RefreshPlan) -> tuple[float, float]:
    """Gather and chain in turn, and with the next bucket gathered while one is sent."""
    gather = next(_list_gathers(plan)).seconds
    chain = _pipeline_seconds(plan, plan.num_bytes, 1, plan.participants.workers)
    # What overlaps with nothing: the first bucket's gathering, or the last one's sending.
    share = max(plan.bucket_bytes) / plan.num_bytes
    return gather + chain, max(gather, chain) + share * min(gather, chain)


def _memory_lines(plan: RefreshPlan) -> Iterator[str]:
    in_turn, overlapped = peak_memory(plan), peak_memory(plan, overlapped=True)
    for place in ("trainer", "sampler"):
        name = "training rank 0" if place == "trainer" else "a sampler worker"
        yield (
            f"extra memory at {name}: {getattr(in_turn, place) / GB:.2f} GB bucket by bucket, "
            f"{getattr(overlapped, place) / GB:.2f} GB overlapped"
        )
