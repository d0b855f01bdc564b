"""All lanes at once give the distances that a textbook gives one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance.Levenshtein import distance

from rft_ray.edit_distance import LANES, MAX_ROWS, MAX_WORDS, WORD_BITS, KeptTexts
from tests.oracle import levenshtein

# Long runs of few characters, so that words carry into each other, and characters of every kind.
texts = st.text("ab", max_size=200) | st.text(max_size=70) | st.text("ab", max_size=5)
puts = st.lists(st.tuples(st.integers(0, 40), texts), min_size=1, max_size=50)


@settings(deadline=None)
@given(puts, texts)
def test_distances_are_those_of_the_texts_that_are_kept(
    placed: list[tuple[int, str]], text: str
) -> None:
    kept, expected = KeptTexts(), list[str]()
    for wanted, own in placed:
        slot = min(wanted, len(expected))
        kept.put(slot, own)
        expected[slot : slot + 1] = [own]
        assert kept.distances(text) == [distance(text, other) for other in expected]
    assert kept.distances(text)[0] == levenshtein(text, expected[0])


def test_texts_too_long_or_too_colourful_for_a_lane_are_computed_too() -> None:
    kept = KeptTexts()
    longest = "ab" * (MAX_WORDS * WORD_BITS // 2)
    colourful = "".join(map(chr, range(1_000, 1_000 + MAX_ROWS)))
    own = ["abc", longest, longest + "a", colourful, "\ud800", "abd", ""]
    for slot, text in enumerate(own):
        kept.put(slot, text)
    for text in [*own, "abd", "ab" * 3_000, colourful[7:]]:
        assert kept.distances(text) == [distance(text, other) for other in own]
    kept.put(2, "short")
    assert kept.distances("shirt")[2] == 1


def test_more_texts_than_lanes_each_have_their_own() -> None:
    kept, own = KeptTexts(), ["x" * number for number in range(3 * LANES)]
    for slot, text in enumerate(own):
        kept.put(slot, text)
    assert kept.distances("") == list(range(3 * LANES))
    kept.put(LANES, "y")
    assert kept.distances("y")[LANES] == 0
