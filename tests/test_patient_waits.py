"""Two processes that take turns through vLLM's queues, asleep while they wait."""

import multiprocessing
import time
from multiprocessing.connection import Connection

import pytest

from rft_ray.patient_waits import wait_patiently

TURNS, WORK_SECONDS = 30, 0.05


def answer(pipe: Connection) -> None:
    """The other process: takes its time over each question."""
    wait_patiently()
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    questions, answers = MessageQueue.create_from_handle(pipe.recv(), 0), MessageQueue(1, 1)
    pipe.send(answers.export_handle())
    questions.wait_until_ready()
    answers.wait_until_ready()
    for _ in range(TURNS):
        question = questions.dequeue()
        time.sleep(WORK_SECONDS)
        answers.enqueue(2 * question)


@pytest.mark.engine
@pytest.mark.local
def test_turns_are_taken_without_burning_the_time_in_between() -> None:
    wait_patiently()
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    spawning = multiprocessing.get_context("spawn")
    pipe, theirs = spawning.Pipe()
    other = spawning.Process(target=answer, args=(theirs,), daemon=True)
    other.start()
    questions = MessageQueue(1, 1)
    pipe.send(questions.export_handle())
    answers = MessageQueue.create_from_handle(pipe.recv(), 0)
    questions.wait_until_ready()
    answers.wait_until_ready()
    started, got = time.process_time(), []
    for number in range(TURNS):
        questions.enqueue(number)
        got.append(answers.dequeue(timeout=60))
    assert got == [2 * number for number in range(TURNS)]
    # processor time: vLLM's own wait takes all of the other's
    assert time.process_time() - started < 0.5 * TURNS * WORK_SECONDS
    other.join(60)
