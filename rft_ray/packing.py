"""Examples -> optimiser steps -> packed rows: a pure function of data, recipe and ranks.

The order of the data is an endless concatenation of seeded shuffles, one an epoch, of which step n
takes the n-th `batch_size` examples: nothing is dropped at an epoch's end, and any step's plan is
computed without the ones before it, which makes a resumed run repeat the uninterrupted one. Inside
a step, examples share rows; which row, micro-batch or rank an example lands on changes nothing but
speed, because its weight in the loss is computed from the whole step (`loss.py`).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rft_ray.config import RecipeConfig
from rft_ray.types import Example

Row = list[int]
"""Indices of the examples that share a row; none: the row only keeps the ranks in step."""

WIDTH_MULTIPLE = 8
"""A micro-batch is as wide as its fullest row, rounded up to this."""


@dataclass(frozen=True, slots=True)
class ExampleColumns:
    """A set of examples as flat arrays; example i is `offsets[i]:offsets[i + 1]`.

    The loss mask is 0 on every first token, which nothing predicts; `loss_tokens` counts the rest.
    `logprobs` (the sampler's, of each token) is empty where no example has them, and otherwise NaN
    on the tokens of the examples without.
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray
    loss_tokens: np.ndarray
    weights: np.ndarray
    logprobs: np.ndarray

    @classmethod
    def build(
        cls,
        token_ids: np.ndarray,
        loss_mask: np.ndarray,
        lengths: np.ndarray,
        weights: np.ndarray,
        logprobs: np.ndarray | None = None,
    ) -> "ExampleColumns":
        """From concatenated ids and masks and one length and weight an example.

        `logprobs` has a place for every token, NaN for none; left out: no example has any.
        """
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if len(lengths) and lengths.min() < 1:
            raise ValueError("an example has no tokens")
        if not offsets[-1] == len(token_ids) == len(loss_mask):
            raise ValueError("input_ids and loss_mask differ in length")
        known = np.zeros(0) if logprobs is None else logprobs.astype(np.float64)
        if logprobs is not None and len(known) != len(token_ids):
            raise ValueError("input_ids and logprobs differ in length")
        mask = loss_mask.astype(bool)
        mask[offsets[:-1]] = False
        counts = np.concatenate([[0], np.cumsum(mask)])
        loss_tokens = counts[offsets[1:]] - counts[offsets[:-1]]
        return cls(token_ids.astype(np.int64), mask, offsets, loss_tokens, weights, known)

    @classmethod
    def of(cls, examples: list[Example]) -> "ExampleColumns":
        """The same from records."""
        return cls.build(
            token_ids=np.array([i for e in examples for i in e.input_ids], dtype=np.int64),
            loss_mask=np.array([m for e in examples for m in e.loss_mask], dtype=bool),
            lengths=np.array([len(e.input_ids) for e in examples], dtype=np.int64),
            weights=np.array([e.weight for e in examples], dtype=np.float64),
            logprobs=_concatenate_logprobs(examples),
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.offsets)

    def example(self, number: int) -> Example:
        """One of them as a record again."""
        own = slice(self.offsets[number], self.offsets[number + 1])
        logprobs = self.logprobs[own]
        return Example(
            input_ids=self.token_ids[own].tolist(),
            loss_mask=self.loss_mask[own].astype(int).tolist(),
            weight=float(self.weights[number]),
            logprobs=logprobs.tolist() if len(logprobs) and not np.isnan(logprobs[0]) else None,
        )


def _concatenate_logprobs(examples: list[Example]) -> np.ndarray | None:
    if all(example.logprobs is None for example in examples):
        return None
    parts = [
        np.full(len(e.input_ids), np.nan) if e.logprobs is None else np.array(e.logprobs)
        for e in examples
    ]
    if any(len(part) != len(e.input_ids) for part, e in zip(parts, examples, strict=True)):
        raise ValueError("input_ids and logprobs differ in length")
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimiser step: its examples, and for each rank its micro-batches of rows.

    Invariant: every rank has the same number of micro-batches, at least one, and every micro-batch
    the same number of rows; each example of the step is in exactly one row.
    """

    example_ids: list[int]
    micro_batches: list[list[list[Row]]]
    fill: float
    """Share of the token positions computed over all ranks that hold a token."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """All steps of a run; step numbers start at 1, as the version of the weights they make."""

    lengths: np.ndarray
    recipe: RecipeConfig
    num_ranks: int
    row_tokens: int
    rows_per_micro_batch: int

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        return planned_steps(self.recipe, len(self.lengths))

    def step(self, number: int) -> StepPlan:
        """The plan of one step, the same on every rank and in every run."""
        size = self.recipe.batch_size
        positions = range((number - 1) * size, number * size)
        count = len(self.lengths)
        ids = [int(_epoch_order(count, self.recipe.seed, p // count)[p % count]) for p in positions]
        return plan_step(
            ids, self.lengths, self.num_ranks, self.row_tokens, self.rows_per_micro_batch
        )


def plan_steps(
    lengths: np.ndarray,
    recipe: RecipeConfig,
    num_ranks: int,
    row_tokens: int,
    rows_per_micro_batch: int = 1,
) -> TrainingPlan:
    """The plan of a run over examples of these lengths. Raises ValueError when nothing fits."""
    _check_lengths(lengths, row_tokens)
    return TrainingPlan(lengths, recipe, num_ranks, row_tokens, rows_per_micro_batch)


def plan_step(
    ids: list[int],
    lengths: np.ndarray,
    num_ranks: int,
    row_tokens: int,
    rows_per_micro_batch: int = 1,
) -> StepPlan:
    """One step over the examples `ids`, each in one row. Raises ValueError when nothing fits."""
    _check_lengths(lengths[ids], row_tokens)
    rows = pack_rows(ids, lengths, row_tokens, num_ranks * rows_per_micro_batch)
    return _deal(ids, rows, lengths, num_ranks, rows_per_micro_batch)


def _check_lengths(lengths: np.ndarray, row_tokens: int) -> None:
    if len(lengths) == 0:
        raise ValueError("there are no examples to train on")
    if lengths.max() > row_tokens:
        raise ValueError(f"an example of {lengths.max()} tokens exceeds rows of {row_tokens}")


def planned_steps(recipe: RecipeConfig, num_examples: int) -> int:
    """`recipe.steps`, or as many whole batches as cover `recipe.epochs`."""
    if recipe.steps is not None:
        return recipe.steps
    return math.ceil(recipe.epochs * num_examples / recipe.batch_size)


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def pack_rows(ids: list[int], lengths: np.ndarray, row_tokens: int, quantum: int) -> list[Row]:
    """Rows of at most row_tokens that hold each of `ids` once; their number is a multiple of
    `quantum`, and the smallest that best-fit decreasing reaches.

    Lengths 5, 4, 3 in rows of 8, quantum 2 -> [[5], [4, 3]] (by length).
    """
    longest_first = sorted(ids, key=lambda i: (-lengths[i], i))
    best_fit: list[Row] = []
    free: list[int] = []
    for i in longest_first:
        fitting = [(space, row) for row, space in enumerate(free) if space >= lengths[i]]
        if fitting:
            _, row = min(fitting)
        else:
            row = len(free)
            best_fit.append([])
            free.append(row_tokens)
        best_fit[row].append(i)
        free[row] -= int(lengths[i])
    count = math.ceil(len(best_fit) / quantum) * quantum
    # Rows that must be there anyway share the load; where that spread overflows one, pad instead.
    spread = _spread_evenly(longest_first, lengths, row_tokens, count)
    return spread or best_fit + [[] for _ in range(count - len(best_fit))]


def _spread_evenly(
    longest_first: list[int], lengths: np.ndarray, row_tokens: int, count: int
) -> list[Row] | None:
    """`count` rows of nearly equal fill, or None where a row would overflow."""
    rows: list[Row] = [[] for _ in range(count)]
    used = [0] * count
    for i in longest_first:
        row = used.index(min(used))
        rows[row].append(i)
        used[row] += int(lengths[i])
        if used[row] > row_tokens:
            return None
    return rows


def _deal(
    ids: list[int], rows: list[Row], lengths: np.ndarray, num_ranks: int, rows_each: int
) -> StepPlan:
    """Rows of like fill go side by side: ranks wait for the widest micro-batch among them."""

    def used(row: Row) -> int:
        return int(lengths[row].sum())

    rows = sorted(rows, key=used, reverse=True)
    batches = [rows[start : start + rows_each] for start in range(0, len(rows), rows_each)]
    computed = sum(rows_each * row_width(max(used(row) for row in batch)) for batch in batches)
    return StepPlan(
        example_ids=ids,
        micro_batches=[batches[rank::num_ranks] for rank in range(num_ranks)],
        fill=int(lengths[ids].sum()) / computed,
    )


def row_width(used: int) -> int:
    """Token positions computed for a row that holds `used` tokens."""
    return max(1, math.ceil(used / WIDTH_MULTIPLE)) * WIDTH_MULTIPLE


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch as arrays of (rows, width).

    `segment_ids` count the examples of a row from 1 and are 0 on padding; `position_ids` restart
    at 0 with each example and are 0 on padding; `weights` are those of `token_ids` as labels, and
    so are `logprobs` (NaN: none), which are None where no example of the set has any.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    segment_ids: np.ndarray
    weights: np.ndarray
    logprobs: np.ndarray | None = None
    piece: tuple[int, int] = (0, 1)
    """Which, counted from 0, of how many equal pieces of the width this rank computes."""

    @property
    def columns(self) -> slice:
        """Those of the piece."""
        number, count = self.piece
        width = self.token_ids.shape[1] // count
        return slice(number * width, (number + 1) * width)


def pack_batch(
    rows: list[Row], columns: ExampleColumns, token_weights: dict[int, float]
) -> PackedBatch:
    """The arrays of a micro-batch; `token_weights` is the weight of each loss token by example."""
    width = row_width(max(int(columns.lengths[row].sum()) for row in rows))
    shape = (len(rows), width)
    token_ids, position_ids, segment_ids = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    weights = np.zeros(shape, dtype=np.float64)
    logprobs = np.full(shape, np.nan) if len(columns.logprobs) else None
    for r, row in enumerate(rows):
        start = 0
        for segment, i in enumerate(row, start=1):
            source = slice(columns.offsets[i], columns.offsets[i + 1])
            place = slice(start, start + source.stop - source.start)
            token_ids[r, place] = columns.token_ids[source]
            position_ids[r, place] = np.arange(source.stop - source.start)
            segment_ids[r, place] = segment
            weights[r, place] = columns.loss_mask[source] * token_weights[i]
            if logprobs is not None:
                logprobs[r, place] = columns.logprobs[source]
            start = place.stop
    return PackedBatch(token_ids, position_ids, segment_ids, weights, logprobs)
