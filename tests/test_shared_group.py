"""Buckets through memory that both ends map: contents, order, flow, and ends that go away."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
import torch

from rft_ray.buckets import TensorSpec
from rft_ray.shared_group import SharedGroup, open_buffer, share_buffer
from rft_ray.weight_group import Rendezvous, bucket_bytes, open_store

CPU = torch.device("cpu")
BUCKETS = [[TensorSpec(str(number), (number, 4), "float32")] for number in range(1, 8)]
SIZE = max(map(bucket_bytes, BUCKETS))
READER = """
import sys, json
from rft_ray.shared_group import open_buffer
print(open_buffer(json.loads(sys.argv[1])).tolist())
"""


@pytest.fixture
def members() -> Iterator[list[SharedGroup]]:
    """A sender with two buffers and two receivers that have mapped them."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(member)) for member in meet(3, 5)]


def meet(size: int, timeout_s: float) -> list[SharedGroup]:
    store = open_store("127.0.0.1", timeout_s)
    buffers, addresses = zip(*(share_buffer(SIZE, CPU) for _ in range(2)), strict=True)
    meeting = Rendezvous("127.0.0.1", store.port, size, "shared", timeout_s, list(addresses))
    with ThreadPoolExecutor(size) as pool:
        joining = [pool.submit(SharedGroup, meeting, 0, store, buffers)]
        joining += [pool.submit(SharedGroup, meeting, rank) for rank in range(1, size)]
        return [future.result() for future in joining]


def send(sender: SharedGroup, start: int) -> None:
    """Bucket n full of start + n, packed while the bucket before is on its way."""
    before = None
    for number, bucket in enumerate(BUCKETS):
        flat = sender._buffers[number % 2][: bucket_bytes(bucket)]
        flat.fill_(start + number)
        work = sender.post(flat)
        if before:
            before.wait()
        before = work
    before.wait()


def received(member: SharedGroup) -> list[tuple[int, list[int]]]:
    """The size and the distinct bytes of each bucket, all of them kept until the last one."""
    kept = [flat for _, flat in member.receive(BUCKETS, CPU)]
    return [(flat.numel(), flat.unique().tolist()) for flat in kept]


def test_every_member_gets_every_bucket_though_buffers_are_written_again(
    members: list[SharedGroup],
) -> None:
    sender, *receivers = members
    for start in (0, 100):
        with ThreadPoolExecutor(2) as pool:
            receiving = [pool.submit(received, member) for member in receivers]
            send(sender, start)
            for future in receiving:
                sizes = map(bucket_bytes, BUCKETS)
                assert future.result() == [(size, [start + n]) for n, size in enumerate(sizes)]


def test_the_sender_waits_for_the_slowest_member(members: list[SharedGroup]) -> None:
    sender, quick, slow = members
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(received, quick)
        flats = slow.receive(BUCKETS, CPU)
        posted = sender.post(sender._buffers[0][: bucket_bytes(BUCKETS[0])].fill_(7))
        assert not posted.is_completed()
        next(flats)
        posted.wait()
        sender.close()
        with pytest.raises(RuntimeError):
            receiving.result()


def test_a_sender_that_leaves_is_noticed(members: list[SharedGroup]) -> None:
    sender, receiver, _ = members
    threading.Timer(0.3, sender.close).start()
    with pytest.raises(RuntimeError):
        list(receiver.receive(BUCKETS, CPU))


def test_another_process_maps_the_buffer() -> None:
    buffer, address = share_buffer(6, CPU)
    buffer.copy_(torch.arange(6, dtype=torch.uint8))
    command = [sys.executable, "-c", READER, json.dumps(address)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5]"


def test_a_file_of_another_machine_is_not_taken_for_the_trainers() -> None:
    _, address = share_buffer(6, CPU)
    for other in ({"name": "weights-of-elsewhere"}, {"path": "/proc/0/fd/3"}):
        with pytest.raises(RuntimeError, match="on the trainer's machine"):
            open_buffer({**address, **other})
