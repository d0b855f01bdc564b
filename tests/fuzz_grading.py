"""Coverage-guided fuzzing of everything that reads a model's text: never an exception, in no time.

    make fuzz        (libFuzzer's own options: -max_total_time=600 -timeout=5)

The hypothesis tests say the same with fewer texts; this finds the ones nobody thinks of. Not a
pytest file, since atheris lives in `.venv-bench`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["rft_ray"]):
    from rft_ray.grading import grade_as_paper, grade_gsm8k
    from rft_ray.leniencies import Leniencies
    from rft_ray.readability import FILTERS, first_objection
    from rft_ray.stated_answers import final_answer
    from rft_ray.types import VERDICTS

SEEDS = ("#### ", "\\boxed{", "the answer is ", "<<1+1=2>>", "3 + 4 = 7", "\\frac{1}{2}", "18")


def grade_one(data: bytes) -> None:
    """One text, some of whose bytes stand for the pieces that graders look for."""
    provider = atheris.FuzzedDataProvider(data)
    answer = provider.PickValueInList(["18", "1/2", "", provider.ConsumeUnicode(20)])
    is_lenient = provider.ConsumeBool()
    pieces = []
    while provider.remaining_bytes():
        kind = provider.ConsumeIntInRange(0, len(SEEDS))
        pieces.append(SEEDS[kind] if kind < len(SEEDS) else provider.ConsumeUnicode(12))
    text = "".join(pieces)
    leniencies = Leniencies(is_lenient, 0.1 * is_lenient, is_lenient)
    assert grade_gsm8k(text, answer, check_equations=True, leniencies=leniencies) in VERDICTS
    assert grade_as_paper(text, answer) in VERDICTS
    assert first_objection(text, FILTERS) in (None, *FILTERS)
    final_answer(text)


if __name__ == "__main__":
    atheris.Setup(sys.argv, grade_one)
    atheris.Fuzz()
