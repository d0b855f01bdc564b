"""The process group that live weights travel through: trainer rank 0 sends, every worker receives.

It stands apart from the training job's own group and from vLLM's, so that it can be thrown away and
formed anew when a sampler replica dies. Every wait has a limit: vLLM's own helper for such groups
takes none, and its 30 minutes would hold an engine that long. Both ends are here, so that they
cannot disagree about the wire: one broadcast per bucket, in the order of the plan, of the bytes of
its tensors one after another. Left out: who is in the group (`refresh.py`), what a worker does with
what it receives (`weights.py`).
"""

import socket
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore, Work
from torch.distributed.distributed_c10d import BroadcastOptions

from rft_ray.buckets import TensorSpec


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a group meets; `backend` is `gloo` on CPUs, `nccl` on GPUs, or `shared` on either."""

    host: str
    port: int
    world_size: int
    backend: str
    timeout_s: float
    buffers: list[dict[str, Any]] = field(default_factory=list)
    """Of rank 0, where they are `shared` (`shared_group.py`)."""


class WeightGroup:
    """One member's end of the group; rank 0 is the sender.

    A group in which any member failed is of no further use: `close` it, and the others notice.
    """

    def __init__(self, rendezvous: Rendezvous, rank: int, store: TCPStore | None = None) -> None:
        """Join; returns when all members have. RuntimeError after the rendezvous's timeout."""
        self._store, limit = connect(rendezvous, store)
        self._landing = LandingBuffers()
        prefixed = PrefixStore("weights", self._store)
        self._group = _open(rendezvous.backend, prefixed, rank, rendezvous.world_size, limit)

    def post(self, flat: Tensor) -> Work:
        """Start the broadcast of rank 0's buffer; `wait` on what is returned may raise."""
        options = BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([flat], options)

    def receive(
        self, buckets: list[list[TensorSpec]], device: torch.device
    ) -> Iterator[tuple[list[TensorSpec], Tensor]]:
        """Each bucket with its bytes, uint8 (bytes of the bucket,), the caller's to keep.

        The next bucket is under way while the caller uses this one.
        """
        size = max(map(bucket_bytes, buckets))
        posted = deque([self._post_receive(buckets[0], size, device)])
        for bucket, following in zip(buckets, [*buckets[1:], None], strict=True):
            if following is not None:
                # Before the wait, as the sender does: the wire is never idle between two buckets.
                posted.append(self._post_receive(following, size, device))
            flat, work = posted.popleft()
            work.wait()
            # A work holds its buffer, which would look as if it were being read.
            del work
            yield bucket, flat
            del flat
        self._landing.forget_read()

    def _post_receive(
        self, bucket: list[TensorSpec], size: int, device: torch.device
    ) -> tuple[Tensor, Work]:
        flat = self._landing.take(size, device)[: bucket_bytes(bucket)]
        return flat, self.post(flat)

    def close(self) -> None:
        """Leave; whoever waits for this member gets an error at once."""
        leave(self._group)
        self._group = self._store = None


class LandingBuffers:
    """Where buckets arrive: buffers that are used again once nobody reads them.

    vLLM keeps a layer's tensors until it has all of them, and buckets end anywhere in a layer, so
    when a buffer is free is known to its storage alone. A new buffer for every bucket would be
    simpler; on a CPU its fresh pages cost more time than the bytes that arrive in them.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def take(self, size: int, device: torch.device) -> Tensor:
        """A buffer of at least that many bytes that no other tensor is a view of."""
        for buffer in self._buffers:
            if buffer.numel() >= size and buffer.device == device and not _is_read(buffer):
                return buffer
        self._buffers.append(torch.empty(size, dtype=torch.uint8, device=device))
        return self._buffers[-1]

    def forget_read(self) -> None:
        """Keep only what is free: whoever holds a view of the others owns them now.

        Three at most: the one that a loop's variable still names, the one after it that has
        arrived, and the next one under way.
        """
        self._buffers = [buffer for buffer in self._buffers if not _is_read(buffer)][:3]


def _is_read(buffer: Tensor) -> bool:
    """Whether there are tensors on the buffer's memory besides itself."""
    # The storage object made for asking counts too.
    return torch._C._storage_Use_Count(buffer.untyped_storage()._cdata) > 2


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


def connect(rendezvous: Rendezvous, store: TCPStore | None) -> tuple[TCPStore, timedelta]:
    """A member's store, its own where it is rank 0, and the limit of every wait."""
    limit = timedelta(seconds=rendezvous.timeout_s)
    if store is None:
        store = TCPStore(rendezvous.host, rendezvous.port, None, False, timeout=limit)
    return store, limit


def leave(group: Any) -> None:
    """End a process group at once."""
    with suppress(RuntimeError):
        group.abort()


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
