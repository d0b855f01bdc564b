"""Problems and completions as token ids: what a policy is asked, and what the target learns from.

The prompt is tokenised on its own, here for training and for sampling alike, and the completion's
ids are put behind it: so the ids a policy was conditioned on are the ids the target is trained on,
whatever the tokeniser would merge across the border. Chat templates are left out: the template is
text with `{prompt}` in it. Also reads and writes examples as Parquet.
"""

import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.packing import ExampleColumns
from rft_ray.types import Example, Group, Problem

EXAMPLE_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
        ("weight", pa.float32()),
    ]
)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokeniser that is used here; spares the import of transformers."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def render_prompt(problem: Problem, template: str) -> str:
    """The text a policy is asked to continue; braces other than `{prompt}` are plain text."""
    return template.replace("{prompt}", problem.prompt)


def encode_prompt(problem: Problem, tokenizer: Tokenizer, template: str) -> list[int]:
    """Token ids of the rendered prompt, with the tokeniser's own special tokens (Llama's BOS)."""
    ids = tokenizer.encode(render_prompt(problem, template), add_special_tokens=True)
    # Some tokenisers (T5, some BERT-like ones) also close a text with EOS: a prompt goes on.
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def make_example(problem: Problem, completion: str, tokenizer: Tokenizer, template: str) -> Example:
    """Prompt, completion and EOS, with loss on the completion and the EOS only.

    The completion gets no special tokens. Raises ValueError where the tokeniser has no EOS: a
    model never shown where to stop would sample to the token limit.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, so no example can end")
    prompt_ids = encode_prompt(problem, tokenizer, template)
    learned_ids = tokenizer.encode(completion, add_special_tokens=False)
    learned_ids = [*learned_ids, tokenizer.eos_token_id]
    return Example(
        input_ids=prompt_ids + learned_ids,
        loss_mask=[0] * len(prompt_ids) + [1] * len(learned_ids),
    )


def gold_examples(
    problems: Iterable[Problem], tokenizer: Tokenizer, template: str, max_length: int
) -> tuple[list[Example], int]:
    """Examples of the gold solutions, and how many were dropped as longer than max_length."""
    groups = (Group(problem) for problem in problems)
    return group_examples(groups, tokenizer, template, max_length)


def group_examples(
    groups: Iterable[Group], tokenizer: Tokenizer, template: str, max_length: int
) -> tuple[list[Example], int]:
    """Per group the gold solution, where there is one, then the selected rollouts, in order.

    The second value counts the examples dropped as longer than max_length.
    """
    examples = [
        make_example(group.problem, completion, tokenizer, template)
        for group in groups
        for completion in _completions_to_learn(group)
    ]
    kept = [example for example in examples if len(example.input_ids) <= max_length]
    return kept, len(examples) - len(kept)


def _completions_to_learn(group: Group) -> list[str]:
    gold = [] if group.problem.solution is None else [group.problem.solution]
    return gold + [rollout.completion for rollout in group.selected]


def write_examples(path: str, examples: list[Example]) -> None:
    """One Parquet file, complete or not there at all."""
    columns = {
        "input_ids": [example.input_ids for example in examples],
        "loss_mask": [example.loss_mask for example in examples],
        "weight": [example.weight for example in examples],
    }
    partial = f"{path}.partial"
    pq.write_table(pa.Table.from_pydict(columns, schema=EXAMPLE_SCHEMA), partial)
    os.replace(partial, path)


def read_examples(path: str) -> list[Example]:
    """The examples of a file of `write_examples`, in order."""
    rows = pq.read_table(path, schema=EXAMPLE_SCHEMA).to_pylist()
    return [Example(row["input_ids"], row["loss_mask"], row["weight"]) for row in rows]


def read_example_columns(path: str) -> ExampleColumns:
    """The same as flat arrays: what a trainer rank holds, a few bytes a token."""
    table = pq.read_table(path, schema=EXAMPLE_SCHEMA).combine_chunks()
    ids = pa.concat_arrays(table["input_ids"].chunks or [pa.array([], EXAMPLE_SCHEMA.types[0])])
    mask = pa.concat_arrays(table["loss_mask"].chunks or [pa.array([], EXAMPLE_SCHEMA.types[1])])
    return ExampleColumns.build(
        token_ids=ids.flatten().to_numpy(),
        loss_mask=mask.flatten().to_numpy(),
        lengths=ids.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64),
        weights=table["weight"].to_numpy().astype(np.float64),
    )
