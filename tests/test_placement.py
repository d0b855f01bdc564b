"""Copies find a node each, or they do not: checked against trying every way to place them."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.parts import Part
from rft_ray.placement import Room, find_order, fits

NAMES = ("sampler a", "sampler b", "trainer")


def part(name: str, copies: int, gpus: float, cpus: float = 1, **labels: str) -> Part:
    return Part(name, copies, gpus, cpus, size=None, device_gb=None, labels=labels)


def some_way_exists(parts: list[Part], rooms: list[Room]) -> bool:
    """By trying all of them."""
    copies = [own for own in parts for _ in range(own.copies)]
    for choice in product(range(len(rooms)), repeat=len(copies)):
        here = [[own for own, at in zip(copies, choice, strict=True) if at == n]
                for n in range(len(rooms))]  # fmt: skip
        if all(
            sum(own.gpus for own in held) <= room.gpus
            and sum(own.cpus for own in held) <= room.cpus
            and all(room.is_wanted_by(own) for own in held)
            for held, room in zip(here, rooms, strict=True)
        ):
            return True
    return False


SIZES = st.tuples(st.integers(1, 2), st.sampled_from([0, 1, 2, 4]), st.integers(1, 2))
ROOMS = st.lists(st.builds(Room, cpus=st.integers(0, 4), gpus=st.integers(0, 4)), max_size=3)


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=3), ROOMS)
def test_what_is_said_to_fit_does(sizes: list[tuple[int, int, int]], rooms: list[Room]) -> None:
    parts = [part(name, *size) for name, size in zip(NAMES, sizes, strict=False)]
    if fits(parts, rooms):
        assert some_way_exists(parts, rooms)


@settings(deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), ROOMS)
def test_copies_of_one_size_are_placed_wherever_they_can_be(
    copies: int, gpus: int, rooms: list[Room]
) -> None:
    parts = [part("trainer", copies, gpus)]
    assert fits(parts, rooms) == some_way_exists(parts, rooms)


def test_labels_keep_parts_on_their_nodes() -> None:
    fast, slow = Room(8, 4, {"kind": "fast", "zone": "a"}), Room(8, 4, {"kind": "slow"})
    assert fits([part("sampler a", 4, 1, kind="slow"), part("trainer", 4, 1)], [fast, slow])
    # who is particular chooses first
    assert fits([part("trainer", 4, 1), part("sampler a", 4, 1, kind="fast")], [fast, slow])
    assert not fits([part("sampler a", 5, 1, kind="slow")], [fast, slow])
    assert not fits([part("sampler a", 1, 1, kind="slow", zone="a")], [fast, slow])


def test_one_set_of_gpus_serves_both_phases_offline_only() -> None:
    parts = [part("sampler a", 4, 1), part("sampler b", 1, 4), part("trainer", 8, 1)]
    big, small = [Room(32, 8), Room(32, 8)], [Room(32, 8)]
    assert find_order(parts, big, is_online=False) == "together"
    assert find_order(parts, small, is_online=False) == "in turns"
    assert find_order(parts, big, is_online=True) == "together"
    assert find_order(parts, small, is_online=True) is None
    assert find_order(parts, [Room(32, 7)], is_online=False) is None
    # eight GPUs, but no replica over four of them has a node to itself
    assert find_order(parts, [Room(32, 3), Room(32, 3), Room(32, 2)], is_online=False) is None
