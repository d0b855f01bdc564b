"""Yuan et al. 2023, Algorithm 1: one text per path, the one furthest from the others kept.

Same choice as the published algorithm, less work: distances between kept texts are kept, so that
an incumbent's sum costs none; a text that lost is not tried again until the kept ones change; and
where there are many texts, one pass computes the distances to all kept ones (`edit_distance.py`).
The published code leaves the incumbent out of the sums by comparing texts; as a key is a function
of the text, kept texts all differ, and leaving out its slot is the same.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rapidfuzz.distance.Levenshtein import distance

from rft_ray.equations import path_key

if TYPE_CHECKING:
    from rft_ray.edit_distance import KeptTexts

# Below these, loading compiled code costs more than it saves: one pass has the price of some 5
# distances, and half a second comes before the first.
MANY_PATHS = 6
MANY_DISTANCES = 2_000

Key = Callable[[str], str]


class FewTexts:
    """Texts in numbered slots and their distances to any text, by a library call a distance."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def put(self, slot: int, text: str) -> None:
        """Place a text in a slot: an old one, or the next new one."""
        self._texts[slot : slot + 1] = [text]

    def distances(self, text: str) -> list[int]:
        """Levenshtein distance of a text to the text of every slot, in order of the slots."""
        return [distance(text, other) for other in self._texts]


def choose_by_paper(texts: list[str], key: Key = path_key) -> list[int]:
    """The positions of the texts that Algorithm 1 keeps, one per path, in order of the paths.

    A later text takes a path over when the sum of its distances (character Levenshtein, whole text)
    to the texts kept for the other paths is strictly larger. `key` names the path of a text.
    """
    path_of = {text: key(text) for text in dict.fromkeys(texts)}
    num_paths = len(set(path_of.values()))
    if num_paths < 2:
        return [0] if texts else []
    kept = open_kept(len(path_of), num_paths)
    return choose_with(texts, path_of, kept)


def open_kept(num_texts: int, num_paths: int) -> "FewTexts | KeptTexts":
    """The faster one for that many different texts on that many paths."""
    if num_paths < MANY_PATHS or num_texts * num_paths < MANY_DISTANCES:
        return FewTexts()
    from rft_ray.edit_distance import KeptTexts

    return KeptTexts()


def choose_with(
    texts: list[str], path_of: dict[str, str], kept: "FewTexts | KeptTexts"
) -> list[int]:
    """`choose_by_paper` where the path of every text is known; `kept` is empty at first."""
    chosen: list[int] = []
    slot_of: dict[str, int] = {}
    # between[i][j] is the distance of the texts kept for paths i and j
    between: list[list[int]] = []
    # How often the kept texts had changed when a text was found not to be further away.
    lost_at: dict[str, int] = {}
    changes = 0
    for position, text in enumerate(texts):
        slot = slot_of.setdefault(path_of[text], len(chosen))
        is_new = slot == len(chosen)
        if not is_new and (lost_at.get(text) == changes or texts[chosen[slot]] == text):
            continue
        distances = kept.distances(text)
        if is_new:
            chosen.append(position)
            for row, value in zip(between, distances, strict=True):
                row.append(value)
            between.append([*distances, 0])
        elif sum(distances) - distances[slot] > sum(between[slot]):
            chosen[slot] = position
            distances[slot] = 0
            between[slot] = distances
            for row, value in zip(between, distances, strict=True):
                row[slot] = value
        else:
            lost_at[text] = changes
            continue
        kept.put(slot, text)
        changes += 1
    return chosen
