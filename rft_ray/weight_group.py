"""The process group that live weights travel through: trainer rank 0 sends, every worker receives.

It stands apart from the training job's own group and from vLLM's, so that it can be thrown away and
formed anew when a sampler replica dies. Every wait has a limit: vLLM's own helper for such groups
takes none, and its 30 minutes would hold an engine that long. Both ends are here, so that they
cannot disagree about the wire: one broadcast per bucket, in the order of the plan, of the bytes of
its tensors one after another. Left out: who is in the group (`refresh.py`), what a worker does with
what it receives (`weights.py`).
"""

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore, Work
from torch.distributed.distributed_c10d import BroadcastOptions

from rft_ray.buckets import TensorSpec


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a group meets; `backend` is `gloo` on CPUs and `nccl` on GPUs."""

    host: str
    port: int
    world_size: int
    backend: str
    timeout_s: float


class WeightGroup:
    """One member's end of the group; rank 0 is the sender.

    A group in which any member failed is of no further use: `close` it, and the others notice.
    """

    def __init__(self, rendezvous: Rendezvous, rank: int, store: TCPStore | None = None) -> None:
        """Join; returns when all members have. RuntimeError after the rendezvous's timeout."""
        limit = timedelta(seconds=rendezvous.timeout_s)
        if store is None:
            store = TCPStore(rendezvous.host, rendezvous.port, None, False, timeout=limit)
        self._store = store
        size = rendezvous.world_size
        self._group = _open(rendezvous.backend, PrefixStore("weights", store), rank, size, limit)

    def post(self, flat: Tensor) -> Work:
        """Start the broadcast of rank 0's buffer; `wait` on what is returned may raise."""
        options = BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([flat], options)

    def receive(
        self, buckets: list[list[TensorSpec]], device: torch.device
    ) -> Iterator[tuple[list[TensorSpec], Tensor]]:
        """Each bucket with its bytes, uint8 (bytes of the bucket,), in a buffer of its own.

        The next bucket is under way while the caller uses this one.
        """
        pending = self._post_receive(buckets[0], device)
        for bucket, following in zip(buckets, [*buckets[1:], None], strict=True):
            flat, work = pending
            work.wait()
            if following is not None:
                pending = self._post_receive(following, device)
            yield bucket, flat

    def _post_receive(
        self, bucket: list[TensorSpec], device: torch.device
    ) -> tuple[Tensor, Work]:
        # Not reused: vLLM keeps a layer's tensors until it has all of them, and buckets end
        # anywhere in a layer.
        flat = torch.empty(bucket_bytes(bucket), dtype=torch.uint8, device=device)
        return flat, self.post(flat)

    def close(self) -> None:
        """Leave; whoever waits for this member gets an error at once."""
        with suppress(RuntimeError):
            self._group.abort()
        self._group = self._store = None


def open_store(host: str, timeout_s: float) -> TCPStore:
    """The meeting point, kept by rank 0 on a free port of one address of its machine."""
    # The store would listen on every address if it opened the port itself.
    listener = socket.create_server((host, 0))
    port, limit = listener.getsockname()[1], timedelta(seconds=timeout_s)
    return TCPStore(
        host,
        port,
        None,
        True,
        timeout=limit,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _open(backend: str, store: PrefixStore, rank: int, size: int, limit: timedelta) -> Any:
    from torch.distributed import distributed_c10d

    if backend == "gloo":
        return distributed_c10d.ProcessGroupGloo(store, rank, size, limit)
    options = distributed_c10d.ProcessGroupNCCL.Options()
    options._timeout = limit
    return distributed_c10d.ProcessGroupNCCL(store, rank, size, options)


def bucket_bytes(bucket: Iterable[TensorSpec]) -> int:
    """Bytes that a bucket takes on the wire."""
    return sum(tensor.num_bytes for tensor in bucket)


def pack(tensors: Iterable[Tensor], flat: Tensor) -> None:
    """Copy tensors into a uint8 buffer, one after another."""
    start = 0
    for tensor in tensors:
        source = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        flat[start : start + source.numel()].copy_(source)
        start += source.numel()


def unpack(flat: Tensor, bucket: Iterable[TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a bucket by name, as views of its buffer where alignment allows."""
    start = 0
    for spec in bucket:
        dtype = getattr(torch, spec.dtype)
        data = flat[start : start + spec.num_bytes]
        if start % dtype.itemsize:
            data = data.clone()
        yield spec.name, data.view(dtype).view(spec.shape)
        start += spec.num_bytes
