"""Claims about the word problems that other tests and the quickstart rely on."""

import os
import re
import subprocess
import sys

import pytest

from rft_ray.types import Problem
from rft_ray.word_problems import (
    NAMES,
    TEMPLATES,
    THINGS,
    Split,
    assign_split,
    generate_word_problems,
    parse_prompt,
    solution_paths,
)

SPLITS: tuple[Split, ...] = ("train", "validation", "heldout", "pretraining")
LINE = re.compile(r"(?:So|Then|That is) <<(\d+)([-+*/])(\d+)=(\d+)>>(\d+) [a-z]+\.")


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return generate_word_problems(400, seed=3, split="train")


def calculate(x: int, sign: str, y: int) -> int:
    """The whole, positive result of one calculation; anything else is an error."""
    quotient, remainder = divmod(x, y) if sign == "/" else (0, 0)
    assert remainder == 0
    value = {"+": x + y, "-": x - y, "*": x * y, "/": quotient}[sign]
    assert value > 0
    return value


def check_solution(problem: Problem, solution: str) -> tuple[str, ...]:
    """The equations, after checking each one, its repetition and the final line."""
    *steps, last = solution.split("\n")
    equations, value = [], None
    for step in steps:
        match = LINE.fullmatch(step)
        assert match, step
        x, sign, y, result, repeated = match.groups()
        value = calculate(int(x), sign, int(y))
        assert result == repeated == str(value)
        equations.append(f"{x}{sign}{y}={result}")
    assert last == f"#### {problem.answer}" == f"#### {value}"
    return tuple(equations)


def shape_of(problem: Problem) -> tuple[str, tuple[tuple[str, int], ...]]:
    template, numbers, _ = parse_prompt(problem.prompt)
    return template.name, tuple(sorted(numbers.items()))


def test_gold_solutions_calculate_correctly_in_two_to_four_steps(problems: list[Problem]) -> None:
    steps = {len(check_solution(problem, problem.solution or "")) for problem in problems}
    assert steps == {2, 3, 4}


def test_every_path_is_correct_and_no_two_have_the_same_equation_list(
    problems: list[Problem],
) -> None:
    for problem in problems:
        lists = [check_solution(problem, path) for path in solution_paths(problem)]
        assert len(set(lists)) == len(lists) >= 6


def test_the_gold_solution_is_one_of_the_paths(problems: list[Problem]) -> None:
    for problem in problems:
        paths = {check_solution(problem, path) for path in solution_paths(problem)}
        assert check_solution(problem, problem.solution or "") in paths


def test_paths_reorder_operands_groups_and_steps_and_distribute() -> None:
    prompt = "A box holds 3 red and 5 blue pens. Ann buys 2 boxes. How many pens?"
    paths = {
        "|".join(re.findall(r"<<(.*?)>>", path))
        for path in solution_paths(Problem("p", prompt, "16"))
    }
    assert {"3+5=8|8*2=16", "5+3=8|2*8=16", "3*2=6|5*2=10|6+10=16"} <= paths
    assert {"5*2=10|3*2=6|6+10=16", "2*5=10|3*2=6|10+6=16"} <= paths
    assert len(paths) == 4 + 16


def test_limit_bounds_the_paths(problems: list[Problem]) -> None:
    assert len(solution_paths(problems[0], limit=3)) == 3


def test_same_seed_same_problems_in_another_process() -> None:
    program = (
        "from rft_ray.word_problems import generate_word_problems as g;"
        "print(*(p.prompt + p.solution for p in g(50, seed=7, split='heldout')))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    here = generate_word_problems(50, seed=7, split="heldout")
    assert runs == {" ".join(f"{p.prompt}{p.solution}" for p in here) + "\n"}


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    longer = generate_word_problems(60, seed=1, split="train")
    assert longer[:20] == generate_word_problems(20, seed=1, split="train")


def test_seeds_differ() -> None:
    first, second = (generate_word_problems(50, seed=s, split="train") for s in (0, 1))
    assert {p.prompt for p in first} != {p.prompt for p in second}


def test_no_two_splits_share_a_template_with_the_same_numbers() -> None:
    shapes = [
        {shape_of(p) for seed in (0, 1) for p in generate_word_problems(600, seed=seed, split=s)}
        for s in SPLITS
    ]
    assert len(set.union(*shapes)) == sum(map(len, shapes))


def test_every_problem_belongs_to_its_split_by_content() -> None:
    for split in SPLITS:
        for problem in generate_word_problems(200, seed=5, split=split):
            template, numbers, _ = parse_prompt(problem.prompt)
            assert assign_split(template, numbers) == split
            assert problem.source == f"word_problems/{split}"


def test_prompts_and_ids_are_unique_and_ascii(problems: list[Problem]) -> None:
    assert len({problem.prompt for problem in problems}) == len(problems) == 400
    assert [problem.id for problem in problems] == [f"word-train-3-{i}" for i in range(400)]
    assert all(f"{problem.prompt}{problem.solution}".isascii() for problem in problems)


def test_every_template_is_used(problems: list[Problem]) -> None:
    used = {parse_prompt(problem.prompt)[0].name for problem in problems}
    assert used == {template.name for template in TEMPLATES}
    assert len(used) >= 8


def test_every_split_has_room_for_two_hundred_thousand_problems() -> None:
    """Counted from below: number combinations seen in a sample, times one name and one thing."""
    for split in SPLITS:
        seen = {shape_of(p) for p in generate_word_problems(800, seed=0, split=split)}
        named = [shape for shape in seen if shape[0] != "shelves"]
        assert len(named) * len(NAMES) * len(THINGS) > 200_000


def test_asking_for_more_than_can_be_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rft_ray.word_problems.LARGEST_ANSWER", 0)
    with pytest.raises(ValueError, match="asked for 5 problems of split train, found 0"):
        generate_word_problems(5, seed=0, split="train")


def test_a_foreign_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="not a prompt of any template"):
        parse_prompt("What is 2 + 2?")
