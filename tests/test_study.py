"""What is checked before a run starts, and what its models share.

Run: pytest tests/test_study.py
"""

import json
import shutil
from pathlib import Path

import pytest

from rft_ray.config import RunConfig
from rft_ray.errors import InputError
from rft_ray.run_dir import RunDir
from rft_ray.scoring import rft_stage
from rft_ray.study import Study, icl_prompt, model_prompts, open_study, shared_with_training
from rft_ray.types import Problem

BASES = Path(__file__).parents[1] / "configs/quickstart_base"


def make_config(path: Path, **changes: object) -> RunConfig:
    """A small config of one policy that has the target's base."""
    problems = {"format": "word_problems", "count": 3}
    return RunConfig.model_validate(
        {
            "run_dir": str(path),
            "problems": {"train": problems, "heldout": {**problems, "split": "heldout"}},
            "policies": [{"name": "a", "model": str(BASES / "tied")}],
            "target": {"model": str(BASES / "tied")},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"model": "/nowhere"}}, "model /nowhere: no such folder"),
        ({"evaluation": {"icl_shots": 4}}, "evaluation.icl_shots is 4, but only 3"),
        ({"prompt": {"shots": 4}}, "prompt.shots is 4, but only 3"),
        ({"verifier": {"function": "no_such_module:grade"}}, "no_such_module"),
    ],
)
def test_wrong_input_is_found_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = make_config(tmp_path / "run", **changes)
    with pytest.raises(InputError, match=message), open_study(config):
        pass
    assert not (tmp_path / "run").exists()


def copy_base(folder: Path, changes: dict[str, object], text: str | None = None) -> Path:
    """The tied base with another tokenizer_config.json, or with this text in tokenizer.json."""
    shutil.copytree(BASES / "tied", folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    if text is not None:
        (folder / "tokenizer.json").write_text(text)
    return folder


REFUSING = "{{ raise_exception('System role not supported') }}"


@pytest.mark.parametrize(
    ("changes", "text", "prompt", "message"),
    [
        ({}, None, {"template": "chat"}, "is chat, but its tokenizer has no chat template"),
        ({"chat_template": REFUSING}, None, {"template": "chat", "system": "x"},
         "its chat template refuses the prompt: System role not supported"),
        ({"eos_token": None}, None, {}, "has no EOS token, so no example can end"),
        ({}, "{", {}, "cannot read its tokenizer: "),
    ],
)  # fmt: skip
def test_a_tokenizer_that_will_not_do_is_found_before_anything_is_written(
    tmp_path: Path,
    changes: dict[str, object],
    text: str | None,
    prompt: dict[str, str],
    message: str,
) -> None:
    base = copy_base(tmp_path / "base", changes, text)
    target = {"model": str(base), "prompt": prompt}
    config = make_config(tmp_path / "run", target=target)
    with pytest.raises(InputError, match=message) as caught, open_study(config):
        pass
    assert str(caught.value).startswith(f"model {base}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_prompted_base_is_asked_as_the_target_is(tmp_path: Path) -> None:
    changes = {"prompt": {"template": "chat", "system": "Brief."}, "evaluation": {"icl_shots": 1}}
    config = make_config(tmp_path, **changes)
    solved = [Problem(str(i), f"{i}+2?", "4", solution="#### 4") for i in range(2)]
    prompt = icl_prompt(config, solved)
    assert prompt is not None and prompt.shots == (("0+2?", "#### 4"),)
    own = model_prompts(config, solved)["target"]
    assert (own.template, own.system, own.shots) == (prompt.template, prompt.system, ())
    assert icl_prompt(make_config(tmp_path), solved) is None


def test_problems_that_are_trained_on_and_scored_are_counted() -> None:
    train, other = Problem("1", "2+2?", "4"), Problem("9", "3+3?", "6")
    twin = Problem("x", "2+2?", "4")
    problems = {"train": [train], "heldout": [twin, other], "validation": [other]}
    assert shared_with_training(problems) == {"heldout": 1}


def test_rollouts_are_the_targets_own_only_where_its_base_wrote_them(tmp_path: Path) -> None:
    other = {"name": "b", "model": str(BASES / "untied")}
    own = {"name": "a", "model": str(BASES / "tied")}
    for policies, stage in (
        ([own], "rft_own"),
        ([other], "rft_pooled"),
        ([own, other], "rft_pooled"),
    ):
        config = make_config(tmp_path, policies=policies)
        study = Study(config, RunDir(tmp_path), problems={}, models={})
        assert rft_stage(study, 0).stage == stage
