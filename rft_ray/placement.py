"""Whether samplers and training ranks find room on the nodes of a cluster, each copy on one node.

The same arithmetic for machines that a config names and for those a cluster has. Ray places by
placement groups that it packs; here copies are placed one after another, the largest first, each on
the first node with room, which may miss a way to place copies of many different sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rft_ray.parts import Part

Order = Literal["together", "in turns"]


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has for replicas and ranks, and the labels that Ray knows it by."""

    cpus: float
    gpus: float
    labels: dict[str, str] = field(default_factory=dict)

    def is_wanted_by(self, part: "Part") -> bool:
        """Whether the node has every label that a part asks for."""
        return part.labels.items() <= self.labels.items()


def find_order(
    parts: Sequence["Part"], rooms: Sequence[Room], is_online: bool, shares_gpus: bool = False
) -> Order | None:
    """How a run can be placed: samplers beside the trainer, or else one after the other.

    None where neither fits. Online both work at the same time, or share the GPUs of one node, and
    what is trained before the online loop has them without samplers.
    """
    if shares_gpus:
        return "in turns" if any(fits(parts, [room]) for room in rooms) else None
    if fits(parts, rooms):
        return "together"
    trainer = [part for part in parts if part.is_trainer]
    samplers = [part for part in parts if not part.is_trainer]
    if not is_online and fits(samplers, rooms) and fits(trainer, rooms):
        return "in turns"
    return None


def fits(parts: Sequence["Part"], rooms: Sequence[Room]) -> bool:
    """Whether every copy of every part finds a node, all at the same time."""
    free = [[room.gpus, room.cpus] for room in rooms]
    # Copies that are particular about their node choose before those that are not.
    ordered = sorted(parts, key=lambda part: (bool(part.labels), part.gpus, part.cpus))
    for part in reversed(ordered):
        places = [own for own, room in zip(free, rooms, strict=True) if room.is_wanted_by(part)]
        for _ in range(part.copies):
            place = next((own for own in places if _has_room(own, part)), None)
            if place is None:
                return False
            place[0] -= part.gpus
            place[1] -= part.cpus
    return True


def _has_room(place: list[float], part: "Part") -> bool:
    # Fractions of a device add up to a whole one but for rounding.
    return place[0] >= part.gpus - 1e-9 and place[1] >= part.cpus - 1e-9
