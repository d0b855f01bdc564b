"""The wire between trainer and workers: bytes, order, and what happens when one end goes away."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rft_ray.buckets import TensorSpec
from rft_ray.weight_group import (
    LandingBuffers,
    Rendezvous,
    WeightGroup,
    bucket_bytes,
    open_store,
    pack,
    unpack,
)

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


def test_a_buffer_is_used_again_when_the_last_view_of_it_is_gone() -> None:
    buffers, cpu = LandingBuffers(), torch.device("cpu")
    first = buffers.take(100, cpu)
    view = first[:40].view(torch.float32).view(2, 5)[1]
    address = first.data_ptr()
    del first
    second = buffers.take(100, cpu)
    assert second.data_ptr() != address
    view.fill_(7)
    del view, second
    assert buffers.take(100, cpu).data_ptr() == address
    assert buffers.take(60, cpu).data_ptr() == address
    # one that is too small does not do
    assert buffers.take(5000, cpu).numel() == 5000


def test_buffers_that_are_still_read_are_let_go() -> None:
    buffers, cpu = LandingBuffers(), torch.device("cpu")
    kept = [buffers.take(10, cpu)[:5] for _ in range(4)]
    assert len({own.data_ptr() for own in kept}) == 4
    spare = buffers.take(10, cpu).data_ptr()
    buffers.forget_read()
    assert buffers.take(10, cpu).data_ptr() == spare
    for number, own in enumerate(kept):
        own.fill_(number)
    assert [own.tolist() for own in kept] == [[n] * 5 for n in range(4)]


def test_tensors_kept_from_one_refresh_survive_the_next() -> None:
    sender, receiver = meet(2, 20)
    rounds = [
        [torch.full((bucket_bytes(b),), n, dtype=torch.uint8) for n, b in enumerate(BUCKETS, start)]
        for start in (0, 10, 20)
    ]
    kept = []
    with ThreadPoolExecutor(1) as pool:
        for flats in rounds:
            receiving = pool.submit(keep_every_second, receiver)
            for flat in flats:
                sender.post(flat).wait()
            kept.append(receiving.result())
    for flats, own in zip(rounds, kept, strict=True):
        for flat, got in zip(flats[::2], own, strict=True):
            assert torch.equal(got, flat)
    sender.close()
    receiver.close()


def keep_every_second(receiver: WeightGroup) -> list[torch.Tensor]:
    """As vLLM does with the first tensors of a layer: hold on to some of what came."""
    received = receiver.receive(BUCKETS, torch.device("cpu"))
    return [flat[:] for number, (_, flat) in enumerate(received) if number % 2 == 0]


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
