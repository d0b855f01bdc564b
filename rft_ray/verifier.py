"""Verdicts by worker processes that can be killed: nothing that a completion does can hold us up.

Every worker grades a batch item by item and keeps the number of the item in hand in memory that
the parent shares, so the parent knows what is being graded and since when. An item past its
deadline costs its worker's life and gets `timeout`; the items around it go to the next worker, and
while one is slow a stand-in takes its worker's place. An item whose worker dies by itself gets one
more chance, because the machine's out-of-memory killer may have picked that worker for what a
neighbour did; then its verdict is `error`. Identical pairs are graded once.
"""

import hashlib
import json
import selectors
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

from rft_ray.config import VerifierConfig
from rft_ray.judgement import PLAIN, Judgement
from rft_ray.rewards import keep_best
from rft_ray.types import Group, Rollout, Verdict
from rft_ray.verifier_process import WorkerProcess
from rft_ray.voting import elect_answers

BATCH_SECONDS = 0.1
FIRST_BATCH, LARGEST_BATCH = 16, 512
BATCH_CHARS = 200_000
POLL_SECONDS = 0.05
# From when on an item's neighbours do not wait for it, and how many such items at most.
SLOW_SECONDS = 0.2
STAND_INS = 4
# The machine may be out of memory for a moment; what fails every time is the environment's fault.
KILLED_STARTS = 3
CACHE_ITEMS = 500_000

Pair = tuple[str, str]


class Verifier:
    """Grades completions in `config.workers` processes; a context manager, used by one thread.

    `notes` counts, over all calls, right completions that a readability filter refused, by the
    filter's name, and those that are right only by a leniency (`lenient`).
    """

    def __init__(self, config: VerifierConfig) -> None:
        self.notes: Counter[str] = Counter()
        self._config = config
        self._settings = json.dumps({**config.model_dump(), "accept_at": config.accept_from})
        self._selector = selectors.DefaultSelector()
        self._cache: OrderedDict[bytes, Judgement] = OrderedDict()
        self._workers: list[WorkerProcess] = []
        self._seconds_per_item = BATCH_SECONDS / FIRST_BATCH
        self._killed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all worker processes; the next `grade` would start new ones."""
        while self._workers:
            self._discard(self._workers[0])

    def grade(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The verdict of every (completion, answer), in order; errors as in `judge`."""
        return [judgement.verdict for judgement in self.judge(pairs)]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Verdict, reward and note of every (completion, answer), in order.

        Raises InputError where the grader cannot be loaded, RuntimeError where no worker starts.
        """
        keys = [_digest(completion, answer) for completion, answer in pairs]
        fresh: dict[bytes, Pair] = {}
        found: dict[bytes, Judgement] = {}
        for key, pair in zip(keys, pairs, strict=True):
            if (judgement := self._known(key, pair)) is None:
                fresh[key] = pair
            else:
                found[key] = judgement
        graded = self._judge_all(list(fresh.values()))
        for key, judgement in zip(fresh, graded, strict=True):
            found[key] = judgement
            self._remember(key, judgement)
        judgements = [found[key] for key in keys]
        self.notes.update(judgement.note for judgement in judgements if judgement.note)
        return judgements

    def verify_groups(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with `verdict` and `reward` filled in; small ones together keep workers busy.

        A rollout that a readability filter refuses stays `correct` with a reward of 0, which is
        not accepted.
        """
        answers = self._answers(groups)
        pairs = [
            (rollout.completion, self._gold(rollout, answer))
            for group, answer in zip(groups, answers, strict=True)
            if answer is not None
            for rollout in group.rollouts
        ]
        judgements = iter(self.judge(pairs))
        graded = [
            _judged(group, None if answer is None else judgements)
            for group, answer in zip(groups, answers, strict=True)
        ]
        best_of = self._config.best_of
        return graded if best_of is None else [keep_best(group, best_of) for group in graded]

    def _answers(self, groups: Sequence[Group]) -> list[str | None]:
        """What each group is graded against; None where that is unknown."""
        if self._config.majority is None:
            return [group.problem.answer for group in groups]
        short = self._config.max_chars
        return elect_answers(groups, self.grade, self._config.majority, short)

    def _gold(self, rollout: Rollout, answer: str) -> str:
        if self._config.style != "reward" or self._config.function:
            return answer
        return "" if rollout.reward is None else repr(rollout.reward)

    def _known(self, key: bytes, pair: Pair) -> Judgement | None:
        if (judgement := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return judgement
        if len(pair[0]) > self._config.max_chars:
            return PLAIN["unparsable"]
        return PLAIN["error"] if len(pair[1]) > self._config.max_chars else None

    def _judge_all(self, pairs: list[Pair]) -> list[Judgement]:
        """Hand out batches and collect judgements until there is one for every pair."""
        waiting = deque(range(len(pairs)))
        found: dict[int, Judgement] = {}
        deaths: Counter[int] = Counter()
        self._killed_starts = 0
        # A call that was interrupted may have left workers that still owe replies.
        for worker in [worker for worker in self._workers if worker.is_busy]:
            self._discard(worker)
        poll = min(POLL_SECONDS, self._config.timeout_s / 4)
        while len(found) < len(pairs):
            self._hand_out(waiting, pairs)
            for key, _ in self._selector.select(poll):
                found.update(key.data.exchange())
                self._learn_speed(key.data)
            now = time.monotonic()
            for worker in [w for w in self._workers if w.is_dead or w.is_overdue(now)]:
                for index, judgement in self._replace(worker, waiting, deaths):
                    # a stand-in may have been quicker
                    found.setdefault(index, judgement)
        return [found[index] for index in range(len(pairs))]

    def _hand_out(self, waiting: deque[int], pairs: list[Pair]) -> None:
        """Keep `config.workers` workers at work beside those that are held up by a slow item."""
        now = time.monotonic()
        slow = [w for w in self._workers if w.is_ready and w.seconds_in_hand(now) > SLOW_SECONDS]
        for worker in slow:
            waiting.extendleft(reversed(worker.take_back()))
        workers = self._config.workers
        held_up = min(len(slow), max(STAND_INS, workers))
        while len(self._workers) < min(workers, len(waiting)) + held_up and waiting:
            self._workers.append(
                WorkerProcess(self._settings, self._config.timeout_s, self._selector)
            )
        busy = sum(worker.is_busy for worker in self._workers) - held_up
        for worker in self._workers:
            if worker.is_ready and not worker.is_busy and waiting and busy < workers:
                share = -(-len(waiting) // min(workers, len(self._workers)))
                count = int(BATCH_SECONDS / self._seconds_per_item)
                batch = _take_batch(waiting, pairs, max(1, min(share, count, LARGEST_BATCH)))
                worker.send(batch, [pairs[index] for index in batch])
                busy += 1

    def _learn_speed(self, worker: WorkerProcess) -> None:
        """Size batches by how long items take, so that a message costs little and binds little."""
        if worker.last_seconds_per_item:
            mean = (self._seconds_per_item + worker.last_seconds_per_item) / 2
            self._seconds_per_item = max(mean, BATCH_SECONDS / LARGEST_BATCH)

    def _replace(
        self, worker: WorkerProcess, waiting: deque[int], deaths: Counter[int]
    ) -> Iterator[tuple[int, Judgement]]:
        """Remove a dead or overdue worker: judge the item in its hand, let others wait again."""
        self._discard(worker)
        if not worker.is_ready:
            self._check_start(worker)
            return
        if not worker.is_busy:
            return
        guilty, others = worker.split_batch()
        if not worker.is_dead:
            yield guilty, PLAIN["timeout"]
        else:
            deaths[guilty] += 1
            if deaths[guilty] == 2:
                yield guilty, PLAIN["error"]
            else:
                others.insert(0, guilty)
        waiting.extendleft(reversed(others))

    def _check_start(self, worker: WorkerProcess) -> None:
        """A worker that was killed while it started gets a successor, a few times a call."""
        code = worker.process.returncode
        self._killed_starts += 1
        was_killed = worker.is_dead and code < 0
        if not was_killed or self._killed_starts > KILLED_STARTS:
            raise RuntimeError(f"a verifier worker did not start (exit {code})")

    def _discard(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        worker.kill()

    def _remember(self, key: bytes, judgement: Judgement) -> None:
        self._cache[key] = judgement
        if len(self._cache) > CACHE_ITEMS:
            self._cache.popitem(last=False)


def _take_batch(waiting: deque[int], pairs: list[Pair], count: int) -> list[int]:
    """The next items, at most `count` and about BATCH_CHARS, but at least one."""
    batch = [waiting.popleft()]
    chars = len(pairs[batch[0]][0])
    while waiting and len(batch) < count and chars < BATCH_CHARS:
        batch.append(waiting.popleft())
        chars += len(pairs[batch[-1]][0])
    return batch


def _judged(group: Group, judgements: Iterator[Judgement] | None) -> Group:
    """The group with its share of the judgements; without any, nothing is known (`error`)."""
    rollouts = []
    for rollout in group.rollouts:
        judgement = PLAIN["error"] if judgements is None else next(judgements)
        rollouts.append(replace(rollout, verdict=judgement.verdict, reward=judgement.reward))
    return Group(group.problem, rollouts)


def _digest(completion: str, answer: str) -> bytes:
    text = f"{len(answer)}:{answer}{completion}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
