"""The verifier as a library and as a command says the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rft_ray
from rft_ray.cli import main
from rft_ray.errors import InputError
from rft_ray.records import read_groups
from rft_ray.types import Group, Problem, Rollout

TEXTS = ["#### 4", "#### 4 eggs", "<<2+2=5>> #### 4", "4", "2 + 2 = 5\n#### 4"]


def test_one_pair_many_pairs_and_groups_agree() -> None:
    options = {"leniencies": {"units": True}, "check_equations": True}
    expected = ["correct", "correct", "miscalculated", "unparsable", "miscalculated"]
    assert rft_ray.verify_answers([(text, "4") for text in TEXTS], **options) == expected
    assert rft_ray.verify_answer(TEXTS[1], "4", **options) == "correct"
    group = Group(Problem("p", "2+2?", "4"), [Rollout("a", text) for text in TEXTS])
    (graded,) = rft_ray.verify_groups([group], **options)
    assert [rollout.verdict for rollout in graded.rollouts] == expected


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(InputError, match="verifier: styl: Extra inputs"):
        rft_ray.verify_answer("#### 4", "4", styl="math")
    with pytest.raises(InputError, match="best_of and accept_at need rewards"):
        rft_ray.verify_answer("#### 4", "4", best_of=1)
    with pytest.raises(AttributeError, match="no attribute 'verify'"):
        _ = rft_ray.verify


def test_the_package_is_light_until_it_is_used() -> None:
    code = "import rft_ray, sys; print([m for m in ('pydantic', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    rollouts = [
        {"policy": "a", "completion": text, "reward": 0.1 * index}
        for index, text in enumerate(TEXTS)
    ]
    answers = {"p": "4", "q": ""}
    problems = [{"id": name, "prompt": "?", "answer": answers[name]} for name in answers]
    lines = [json.dumps({"problem": problem, "rollouts": rollouts}) for problem in problems]
    path = tmp_path / "groups.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("options", "verdicts", "notes"),
    [
        ([], ["correct", "unparsable", "miscalculated", "unparsable", "correct"], []),
        (
            ["--units", "--equations", "--no-calculations"],
            ["correct", "correct", "correct", "unparsable", "miscalculated"],
            ["1  correct only by a leniency"],
        ),
        (
            ["--compat", "paper"],
            ["correct", "correct", "miscalculated", "unparsable", "correct"],
            [],
        ),
        (["--style", "reward", "--best-of", "1"], [*["wrong"] * 4, "correct"], []),
        (
            ["--function", "hostile_graders:score", "--accept-at", "4"],
            ["error", "error", "error", "correct", "error"],
            [],
        ),
    ],
)
def test_the_command_has_every_reward(
    groups: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    verdicts: list[str],
    notes: list[str],
) -> None:
    out = groups.with_name("out.jsonl")
    assert main(["verify", str(groups), "-o", str(out), "--workers", "1", *options]) == 0
    printed = capsys.readouterr().out
    assert [r.verdict for r in next(read_groups(out)).rollouts] == verdicts
    lines = [line.strip() for line in printed.splitlines()]
    assert [line for line in lines if " by a " in line or "refused" in line] == notes


def test_a_vote_is_held_where_the_answer_is_blank(groups: Path) -> None:
    out = groups.with_name("out.jsonl")
    assert main(["verify", str(groups), "-o", str(out), "--majority", "0.5"]) == 0
    voted = list(read_groups(out))[1]
    assert [r.verdict for r in voted.rollouts][:1] == ["correct"]
    assert voted.problem.answer == ""


def test_options_that_do_not_fit_end_in_one_line(
    groups: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = groups.with_name("out.jsonl")
    assert main(["verify", str(groups), "-o", str(out), "--best-of", "2"]) == 2
    assert capsys.readouterr().err.startswith("rft-ray: error: best_of and accept_at need rewards")
    assert not out.exists()
