"""Levenshtein distances of one text to all kept ones at once: what selection spends its time on.

Myers' bit-parallel algorithm in Hyyro's form for long patterns (Hyyro 2003), 64 rows of the matrix
in a word, with one kept text a lane of a SIMD register: the lanes go through the characters of the
other text in step, so one row of the match table serves them all. Kept texts stay in the table
until they are replaced. Left out: bands and cutoffs, since the exact sums are what decides. For few
distances rapidfuzz is the better tool: this module compiles itself when it is first imported on a
machine (seconds), and numba alone takes half a second to import.
"""

from collections.abc import Callable

import numpy as np
from numba import njit
from rapidfuzz.distance.Levenshtein import distance

WORD_BITS = 64
LANES = 16
# Kept texts beyond these bounds are left to rapidfuzz, so that the table stays small: 2 MiB for
# every 16 kept texts at most, 100 to 200 KiB for texts of the usual length.
MAX_WORDS = 32
MAX_ROWS = 512
NO_ROW = 0

ONE = np.uint64(1)
NONE = np.uint64(0)
ALL = ~NONE
TOP = np.uint64(WORD_BITS - 1)


class KeptTexts:
    """Texts in numbered slots, and the distances of any text to all of them."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._in_lanes: list[bool] = []
        # The row of the table of every code point; row 0 is of characters that no kept text has.
        self._row_of = np.zeros(0x110000, np.uint16)
        self._num_rows = 1
        self._lengths = np.zeros(LANES, np.int64)
        self._table = np.zeros((1, 128, 8, LANES), np.uint64)

    def put(self, slot: int, text: str) -> None:
        """Place a text in a slot: an old one, or the next new one."""
        if slot == len(self._texts):
            self._texts.append(text)
            self._in_lanes.append(False)
        self._texts[slot] = text
        codes = code_points(text)
        num_rows = add_rows(codes, self._row_of, self._num_rows, MAX_ROWS)
        words = -(-len(codes) // WORD_BITS)
        self._in_lanes[slot] = num_rows >= 0 and words <= MAX_WORDS
        if slot % LANES == 0 and slot >= len(self._lengths):
            self._lengths = np.append(self._lengths, np.zeros(LANES, np.int64))
        self._num_rows = max(self._num_rows, num_rows)
        self._reserve(slot // LANES + 1, self._num_rows, words if self._in_lanes[slot] else 0)
        self._lengths[slot] = len(codes) if self._in_lanes[slot] else 0
        lane = codes if self._in_lanes[slot] else codes[:0]
        fill_lane(self._table[slot // LANES], self._row_of, lane, slot % LANES)

    def distances(self, text: str) -> list[int]:
        """Levenshtein distance of a text to the text of every slot, in order of the slots."""
        out = np.empty(len(self._lengths), np.int64)
        lane_distances(code_points(text), self._row_of, self._table, self._lengths, out)
        found = out.tolist()[: len(self._texts)]
        if not all(self._in_lanes):
            for slot, other in enumerate(self._texts):
                if not self._in_lanes[slot]:
                    found[slot] = distance(text, other)
        return found

    def _reserve(self, *needed: int) -> None:
        shape = self._table.shape
        if any(need > have for need, have in zip(needed, shape, strict=False)):
            grown = [
                have if need <= have else max(need, 2 * have)
                for need, have in zip(needed, shape, strict=False)
            ]
            table = np.zeros((*grown, LANES), np.uint64)
            table[: shape[0], : shape[1], : shape[2]] = self._table
            self._table = table


def code_points(text: str) -> np.ndarray:
    """The code points of a text, surrogates included: uint32 of its length."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def compiled(function: Callable) -> Callable:
    """The function as machine code, kept on disk where numba finds a place that can be written."""
    try:
        return njit(cache=True, error_model="numpy")(function)
    except RuntimeError:
        return njit(error_model="numpy")(function)


@compiled
def add_rows(codes, row_of, num_rows, max_rows):
    """Give every new code point a row; the new number of rows, or -1 where there are too many."""
    added = 0
    for code in codes:
        if row_of[code] == NO_ROW:
            if num_rows + added == max_rows:
                for taken in codes:
                    if row_of[taken] >= num_rows:
                        row_of[taken] = NO_ROW
                return -1
            row_of[code] = num_rows + added
            added += 1
    return num_rows + added


@compiled
def fill_lane(table, row_of, codes, lane):
    """Make `lane` of a block's table (rows, words, lanes) that of a text."""
    for row in range(table.shape[0]):
        for word in range(table.shape[1]):
            table[row, word, lane] = NONE
    for place, code in enumerate(codes):
        table[row_of[code], place // WORD_BITS, lane] |= ONE << np.uint64(place % WORD_BITS)


@compiled
def lane_distances(codes, row_of, table, lengths, out):
    """Fill `out` with the distances to every lane: table (blocks, rows, words, lanes).

    There are as many blocks as `lengths` has; the table may have room for more.

    Of each row of the matrix `vp` and `vn` say whether the entry is one more or one less than the
    row above (vertical deltas), `hp` and `hn` than the column to its left.
    """
    vp = np.empty((table.shape[2], LANES), np.uint64)
    vn = np.empty((table.shape[2], LANES), np.uint64)
    carry_p = np.empty(LANES, np.uint64)
    carry_n = np.empty(LANES, np.uint64)
    for block in range(len(lengths) // LANES):
        own = lengths[block * LANES : (block + 1) * LANES]
        words = 0
        for length in own:
            words = max(words, (length + WORD_BITS - 1) // WORD_BITS)
        for word in range(words):
            for lane in range(LANES):
                vp[word, lane] = ALL
                vn[word, lane] = NONE
        for code in codes:
            matches = table[block, row_of[code]]
            # The top row of the matrix grows by one a column.
            for lane in range(LANES):
                carry_p[lane] = ONE
                carry_n[lane] = NONE
            for word in range(words):
                for lane in range(LANES):
                    p, n = vp[word, lane], vn[word, lane]
                    low_p, low_n = carry_p[lane], carry_n[lane]
                    x = matches[word, lane] | low_n
                    diagonal = (((x & p) + p) ^ p) | x | n
                    hp = n | ~(diagonal | p)
                    hn = diagonal & p
                    carry_p[lane] = hp >> TOP
                    carry_n[lane] = hn >> TOP
                    hp = (hp << ONE) | low_p
                    hn = (hn << ONE) | low_n
                    vp[word, lane] = hn | ~(diagonal | hp)
                    vn[word, lane] = hp & diagonal
        for lane in range(LANES):
            out[block * LANES + lane] = len(codes) + sum_deltas(vp, vn, lane, own[lane])


@compiled
def sum_deltas(vp, vn, lane, length):
    """What the last column of a lane's matrix gains from its top to row `length`."""
    total = 0
    for word in range((length + WORD_BITS - 1) // WORD_BITS):
        rest = length - word * WORD_BITS
        mask = ALL if rest >= WORD_BITS else (ONE << np.uint64(rest)) - ONE
        total += count_bits(vp[word, lane] & mask) - count_bits(vn[word, lane] & mask)
    return total


@compiled
def count_bits(word):
    """Bits set in a 64-bit word."""
    total = 0
    while word:
        word &= word - ONE
        total += 1
    return total
