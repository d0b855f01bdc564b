"""The card of a trained target: what it was made of and how it scored, beside its weights.

Everything comes from the run directory: config, versions, counts and the result table, so the card
says nothing that was not computed. Left out: a license, which is that of the base model and its
data, and for the user to state.
"""

import json
from pathlib import Path
from typing import Any

from rft_ray import __version__
from rft_ray.config import RecipeConfig, RunConfig
from rft_ray.dataset_card import code_span, markdown_table, model_name
from rft_ray.run_dir import RunDir, write_atomically
from rft_ray.score_rows import read_rows

FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- rft
- rejection-sampling-fine-tuning
---
"""
STAGES = {
    "icl": "base model, prompted with solved problems",
    "base": "base model",
    "sft": "fine-tuned on the gold solutions",
    "rft_own": "rejection-sampling fine-tuned on its own base's rollouts",
    "rft_pooled": "rejection-sampling fine-tuned on the rollouts of all policies",
    "rft_random": "control: as many accepted rollouts, drawn at random",
    "rft_no_dedup": "control: every accepted rollout",
}
RECIPE_KEYS = (
    "start_from", "steps", "epochs", "batch_size", "learning_rate", "schedule", "warmup_fraction",
    "weight_decay", "max_grad_norm", "loss", "max_length",
)  # fmt: skip
COUNTS = ("rollouts", "correct", "distinct_paths", "selected")


def write_model_cards(run: RunDir, config: RunConfig, selections: list[dict[str, Any]]) -> None:
    """README.md in the checkpoint of every round that is evaluated.

    `selections` are the lines of kind `select` of the run's metrics.
    """
    for number in range(config.num_rounds):
        place = run.round(number)
        if place.checkpoint.is_dir() and place.evaluation.is_file():
            lines = [line for line in selections if line["round"] <= number]
            rows = read_rows(run.round(0).evaluation)
            rows += read_rows(place.evaluation) if number else []
            versions = json.loads((run.path / "versions.json").read_text(encoding="utf-8"))
            card = model_card(config, number, lines, rows, versions)
            write_atomically(Path(place.checkpoint) / "README.md", card)


def model_card(
    config: RunConfig,
    number: int,
    selections: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    versions: dict[str, str],
) -> str:
    """The text of the card of round `number`: data, recipe, results, versions."""
    base = model_name(config.target.model)
    start = config.round(number).target_start_from or config.target.rft.start_from
    recipe = config.target.rft.model_copy(update={"start_from": start})
    headers = ("model", "stage", "metric", "value", "95% interval", "problems")
    return "\n".join(
        [
            FRONT_MATTER,
            f"# {code_span(base)} after round {number} of rejection-sampling fine-tuning\n",
            "Trained on gold solutions and on sampled solutions that a verifier found right and a "
            "diverse subset was selected of.\n",
            "## Data\n",
            _policies(config),
            _counts(selections),
            "## Recipe\n",
            _recipe(recipe),
            "## Results\n",
            markdown_table(headers, [_result(row) for row in rows]),
            "pass@1 is greedy; only the final answer counts.\n",
            "## Versions\n",
            markdown_table(
                ("package", "version"), [tuple(map(code_span, pair)) for pair in versions.items()]
            ),
            f"Written by rft_ray {__version__}.\n",
        ]
    )


def _policies(config: RunConfig) -> str:
    rows = [
        (
            code_span(policy.name),
            code_span(model_name(policy.model)),
            policy.sampling.k,
            policy.sampling.temperature,
            policy.sampling.top_p,
            policy.sampling.max_tokens,
        )
        for policy in config.policies
    ]
    headers = ("policy", "model", "k", "temperature", "top_p", "max_tokens")
    selection = config.selection
    options = {"rule": selection.rule, **selection.model_dump(exclude_defaults=True)}
    words = ", ".join(f"{name} {value}" for name, value in options.items())
    return markdown_table(headers, rows) + f"\nSelection: {words}.\n"


def _counts(selections: list[dict[str, Any]]) -> str:
    rows = [
        (line["round"], code_span(line["policy"]), *(f"{line.get(key, 0):,}" for key in COUNTS))
        for line in selections
    ]
    headers = ("round", "policy", "rollouts", "correct", "distinct paths", "selected")
    return markdown_table(headers, rows)


def _recipe(recipe: RecipeConfig) -> str:
    values = recipe.model_dump()
    rows = [(key, code_span(values[key])) for key in RECIPE_KEYS if values[key] is not None]
    return markdown_table(("setting", "value"), rows)


def _result(row: dict[str, Any]) -> tuple[Any, ...]:
    interval = f"{row['low']:.1%} to {row['high']:.1%}"
    stage = STAGES.get(row["stage"], row["stage"])
    return (code_span(row["model"]), stage, row["metric"], f"{row['value']:.1%}", interval,
            row["n"])  # fmt: skip
