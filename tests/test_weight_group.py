"""The wire between trainer and workers: bytes, order, and what happens when one end goes away."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rft_ray.buckets import TensorSpec
from rft_ray.weight_group import Rendezvous, WeightGroup, bucket_bytes, open_store, pack, unpack

BUCKETS = [[TensorSpec("a", (5,), "float32"), TensorSpec("b", (3, 2), "bfloat16")]] + [
    [TensorSpec(str(number), (number, 4), "float32")] for number in range(1, 5)
]


def test_what_is_packed_is_unpacked() -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "unaligned": torch.randn(2, 3),
        "scalar": torch.tensor(7),
        "strided": torch.randn(4, 2).T,
        "bool": torch.tensor([True, False]),
    }
    bucket = [spec_of(name, tensor) for name, tensor in tensors.items()]
    flat = torch.empty(bucket_bytes(bucket), dtype=torch.uint8)
    pack(tensors.values(), flat)
    for (name, tensor), (own_name, own) in zip(
        tensors.items(), unpack(flat, bucket), strict=True
    ):
        assert own_name == name
        assert torch.equal(own, tensor) and own.dtype == tensor.dtype


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def meet(size: int, timeout_s: float) -> list[WeightGroup]:
    """All members of a group, in this one process."""
    store = open_store("127.0.0.1", timeout_s)
    meeting = Rendezvous("127.0.0.1", store.port, size, "gloo", timeout_s)
    with ThreadPoolExecutor(size) as pool:
        joining = [
            pool.submit(WeightGroup, meeting, rank, None if rank else store)
            for rank in range(size)
        ]
        return [future.result() for future in joining]


def test_every_member_receives_every_bucket_in_order() -> None:
    sender, *receivers = meet(3, 20)
    flats = [
        torch.randint(0, 256, (bucket_bytes(bucket),), dtype=torch.uint8) for bucket in BUCKETS
    ]
    with ThreadPoolExecutor(2) as pool:
        receiving = [
            pool.submit(list, member.receive(BUCKETS, torch.device("cpu"))) for member in receivers
        ]
        for flat in flats:
            sender.post(flat).wait()
        for future in receiving:
            for (bucket, got), own, flat in zip(future.result(), BUCKETS, flats, strict=True):
                assert bucket == own
                assert torch.equal(got, flat)
    for member in (sender, *receivers):
        member.close()


def test_a_bucket_that_does_not_come_is_not_waited_for_for_ever() -> None:
    sender, receiver = meet(2, 2)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(list, receiver.receive(BUCKETS, torch.device("cpu")))
        sender.post(torch.zeros(bucket_bytes(BUCKETS[0]), dtype=torch.uint8)).wait()
        with pytest.raises(RuntimeError, match="Timed out"):
            receiving.result()
    receiver.close()
    # and the sender is told, not left waiting
    with pytest.raises(RuntimeError, match=r"[Cc]onnection|closed"):
        for bucket in BUCKETS[1:]:
            sender.post(torch.zeros(bucket_bytes(bucket), dtype=torch.uint8)).wait()
    sender.close()


def test_a_sender_that_leaves_is_noticed() -> None:
    sender, receiver = meet(2, 30)
    threading.Timer(0.5, sender.close).start()
    with pytest.raises(RuntimeError, match=r"[Cc]onnection|closed"):
        list(receiver.receive(BUCKETS, torch.device("cpu")))
    receiver.close()


def test_a_member_that_does_not_come_is_not_waited_for_for_ever() -> None:
    store = open_store("127.0.0.1", 1)
    meeting = Rendezvous("127.0.0.1", store.port, 2, "gloo", 1)
    with pytest.raises(RuntimeError):
        WeightGroup(meeting, 0, store)
