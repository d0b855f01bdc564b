"""What a planned refresh costs: seconds by way of travelling, memory at its worst, and the page.

All of it follows from a `RefreshPlan` and the rates it states. Left out: the latency of a call
(milliseconds a bucket).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rft_ray.refresh_plan import GB, RefreshPlan, partition_bytes


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


def refresh_seconds(plan: RefreshPlan) -> tuple[float, float]:
    """Gather and chain in turn, and with the next bucket gathered while one is sent."""
    gather = next(_list_gathers(plan)).seconds
    chain = _pipeline_seconds(plan, plan.num_bytes, 1, plan.participants.workers)
    # What overlaps with nothing: the first bucket's gathering, or the last one's sending.
    share = max(plan.bucket_bytes) / plan.num_bytes
    return gather + chain, max(gather, chain) + share * min(gather, chain)


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


def _memory_lines(plan: RefreshPlan) -> Iterator[str]:
    in_turn, overlapped = peak_memory(plan), peak_memory(plan, overlapped=True)
    for place in ("trainer", "sampler"):
        name = "training rank 0" if place == "trainer" else "a sampler worker"
        yield (
            f"extra memory at {name}: {getattr(in_turn, place) / GB:.2f} GB bucket by bucket, "
            f"{getattr(overlapped, place) / GB:.2f} GB overlapped"
        )
