"""Live weights through memory that the trainer and the samplers of its machine both map.

A `SharedGroup` does what a `WeightGroup` does, for members on one machine: the bytes stay where
trainer rank 0 packed them and each worker copies them from there; only who may read and who has
read travels, through gloo. On CPUs the memory is an anonymous file of the trainer's, which nothing
needs to clean up; on GPUs it is the trainer's own (CUDA IPC), the only way to a sampler on the same
GPU, since NCCL refuses two ranks on a device. Left out: members on several machines.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore, Work
from torch.distributed.distributed_c10d import BroadcastOptions

from rft_ray.buckets import TensorSpec
from rft_ray.weight_group import LandingBuffers, Rendezvous, bucket_bytes, connect, leave

Address = dict[str, Any]


class SharedGroup:
    """One member's end of the group; rank 0 is the sender, and its buffers are the memory.

    A group in which any member failed is of no further use: `close` it, and the others notice.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        rank: int,
        store: TCPStore | None = None,
        buffers: Sequence[Tensor] = (),
    ) -> None:
        """Join; returns when all members have. RuntimeError after the rendezvous's timeout."""
        self._store, limit = connect(rendezvous, store)
        self._buffers = list(buffers) or list(map(open_buffer, rendezvous.buffers))
        self._landing = LandingBuffers()
        self._group: Any = ProcessGroupGloo(
            PrefixStore("shared", self._store), rank, rendezvous.world_size, limit
        )

    def post(self, flat: Tensor) -> Work:
        """Let all copy what begins one of rank 0's buffers; `wait` for when they have."""
        if flat.is_cuda:
            torch.cuda.synchronize(flat.device)
        starts = [buffer.data_ptr() for buffer in self._buffers]
        self._tell(torch.tensor([starts.index(flat.data_ptr())]))
        return self._arrived()

    def receive(
        self, buckets: list[list[TensorSpec]], device: torch.device
    ) -> Iterator[tuple[list[TensorSpec], Tensor]]:
        """Each bucket with its bytes, uint8 (bytes of the bucket,), the caller's to keep.

        The next bucket is being packed while the caller uses this one.
        """
        size = max(map(bucket_bytes, buckets))
        for bucket in buckets:
            number = torch.zeros(1, dtype=torch.int64)
            self._tell(number).wait()
            flat = self._landing.take(size, device)[: bucket_bytes(bucket)]
            flat.copy_(self._buffers[int(number)][: flat.numel()])
            if flat.is_cuda:
                torch.cuda.synchronize(device)
            arrived = self._arrived()
            yield bucket, flat
            del flat
        arrived.wait()
        self._landing.forget_read()

    def close(self) -> None:
        """Leave; whoever waits for this member gets an error at once."""
        if self._group is not None:
            leave(self._group)
        self._group = self._store = None
        self._buffers = []

    def _tell(self, number: Tensor) -> Work:
        options = BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([number], options)

    def _arrived(self) -> Work:
        """Ends when all members have called it as often."""
        return self._group.allreduce([torch.zeros(1)])


def share_buffer(size: int, device: torch.device) -> tuple[Tensor, Address]:
    """Memory of this process, uint8 (size,), and where others on this machine find it."""
    if device.type == "cuda":
        buffer = torch.empty(size, dtype=torch.uint8, device=device)
        # One export for all who open it: torch then never takes the memory back, nor do we.
        _, *parts = buffer.untyped_storage()._share_cuda_()
        coded = [part.hex() if isinstance(part, bytes) else part for part in parts]
        kinds = [isinstance(part, bytes) for part in parts]
        return buffer, {"gpu": _gpu_id(device.index or 0), "parts": coded, "are_bytes": kinds}
    name = f"weights-{uuid.uuid4().hex}"
    file = os.memfd_create(name)
    os.ftruncate(file, size)
    # Open as long as the process lives: a replica that joins later maps it too.
    address = {"path": f"/proc/{os.getpid()}/fd/{file}", "name": name, "size": size}
    return _map(address), address


def open_buffer(address: Address) -> Tensor:
    """What `share_buffer` returned to another process; RuntimeError on another machine."""
    if "gpu" in address:
        return _open_on_gpu(address)
    path = address["path"]
    # Another machine may have such a process and file too, but not by this name.
    if not os.path.lexists(path) or address["name"] not in os.readlink(path):
        raise RuntimeError("online.transfer: shared is for samplers on the trainer's machine")
    return _map(address)


def _map(address: Address) -> Tensor:
    return torch.from_file(address["path"], shared=True, size=address["size"], dtype=torch.uint8)


def _open_on_gpu(address: Address) -> Tensor:
    ids = list(map(_gpu_id, range(torch.cuda.device_count())))
    if address["gpu"] not in ids:
        raise RuntimeError("online.transfer: shared is for samplers that see the trainer's GPU")
    index = ids.index(address["gpu"])
    pairs = zip(address["parts"], address["are_bytes"], strict=True)
    parts = [bytes.fromhex(part) if is_bytes else part for part, is_bytes in pairs]
    storage = torch.UntypedStorage._new_shared_cuda(index, *parts)
    return torch.empty(0, dtype=torch.uint8, device=f"cuda:{index}").set_(storage)


def _gpu_id(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)
