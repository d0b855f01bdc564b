"""Problems and completions as token ids: what a policy is asked, and what the target learns from.

The prompt is tokenised on its own, here for training and for sampling alike, and the completion's
ids are put behind it: so the ids a policy was conditioned on are the ids the target is trained on,
whatever the tokeniser would merge across the border. A `Prompt` is a template with its solved
examples filled in; it is a plain record that travels to the stream's actors. Also reads and writes
examples as Parquet.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rft_ray.config import PromptConfig
from rft_ray.errors import InputError
from rft_ray.packing import ExampleColumns
from rft_ray.types import Example, Group, Problem

EXAMPLE_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
        ("weight", pa.float32()),
        ("logprobs", pa.list_(pa.float32())),
    ]
)
ROW_GROUP_EXAMPLES = 4096
# Yuan et al. 2023 train and sample with the instruction prompt of Taori et al. 2023, no input.
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{prompt}\n\n### Response:"
)
BETWEEN_SHOTS = "\n\n"
GOLD = "gold"
"""Source of the examples made from gold solutions; no policy has this name."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokeniser that is used here; spares the import of transformers."""

    eos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """How a model is asked about a problem: a template, a system message and solved examples."""

    template: str
    system: str | None = None
    shots: tuple[tuple[str, str], ...] = ()
    """(prompt, solution) of the problems that are shown solved, in order."""

    @property
    def text_template(self) -> str:
        """The template as text with `{prompt}` in it; not of use for a chat."""
        return ALPACA if self.template == "alpaca" else self.template

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends a few-shot completion: the beginning of a further question.

        A base model that was shown solved examples goes on to make up more of them.
        """
        opening = self.text_template.partition("{prompt}")[0].rstrip()
        if not self.shots or self.template == "chat" or not opening:
            return ()
        return (BETWEEN_SHOTS + opening,)

    def render(self, problem: Problem) -> str:
        """The text a model is asked to continue; braces other than `{prompt}` are plain text."""
        template = self.text_template
        solved = [template.replace("{prompt}", q) + a for q, a in self._shots_for(problem)]
        return BETWEEN_SHOTS.join([*solved, template.replace("{prompt}", problem.prompt)])

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The same as a chat, the solved examples as earlier turns."""
        chat = [] if self.system is None else [{"role": "system", "content": self.system}]
        for question, solution in self._shots_for(problem):
            chat.append({"role": "user", "content": question})
            chat.append({"role": "assistant", "content": solution})
        return [*chat, {"role": "user", "content": problem.prompt}]

    def _shots_for(self, problem: Problem) -> list[tuple[str, str]]:
        """The examples without the problem itself, which is one of them while it is trained on."""
        return [shot for shot in self.shots if shot[0] != problem.prompt]

    def encode(self, problem: Problem, tokenizer: Tokenizer) -> list[int]:
        """Token ids of the prompt, with the tokeniser's own special tokens (Llama's BOS)."""
        if self.template == "chat":
            return _encode_chat(self.messages(problem), tokenizer)
        ids = tokenizer.encode(self.render(problem), add_special_tokens=True)
        # Some tokenisers (T5, some BERT-like ones) also close a text with EOS: a prompt goes on.
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _encode_chat(messages: list[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
    if not tokenizer.chat_template:
        raise InputError("prompt.template is chat, but the model's tokenizer has no chat template")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The template writes the special tokens itself.
    return tokenizer.encode(text, add_special_tokens=False)


def make_prompt(
    config: PromptConfig, solved: Iterable[Problem], field: str = "prompt.shots"
) -> Prompt:
    """The prompt of a config, its examples taken from the front of `solved`.

    Raises InputError, naming `field`, where fewer problems than `shots` have a gold solution.
    """
    pairs = [(p.prompt, p.solution) for p in solved if p.solution is not None][: config.shots]
    if len(pairs) < config.shots:
        raise InputError(
            f"{field} is {config.shots}, but only {len(pairs)} training problems have a "
            "gold solution"
        )
    return Prompt(config.template, config.system, tuple(pairs))


def make_example(
    problem: Problem, completion: str, tokenizer: Tokenizer, prompt: Prompt, weight: float = 1.0
) -> Example:
    """Prompt, completion and EOS, with loss on the completion and the EOS only.

    The completion gets no special tokens. Raises ValueError where the tokeniser has no EOS: a
    model never shown where to stop would sample to the token limit.
    """
    return _example(prompt.encode(problem, tokenizer), completion, tokenizer, weight)


def _example(
    prompt_ids: list[int], completion: str, tokenizer: Tokenizer, weight: float
) -> Example:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, so no example can end")
    learned_ids = tokenizer.encode(completion, add_special_tokens=False)
    learned_ids = [*learned_ids, tokenizer.eos_token_id]
    return Example(
        input_ids=prompt_ids + learned_ids,
        loss_mask=[0] * len(prompt_ids) + [1] * len(learned_ids),
        weight=weight,
    )


def group_examples(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_length: int,
    source_weights: Mapping[str, float] = MappingProxyType({}),
) -> tuple[list[Example], int]:
    """Per group the gold solution, where there is one, then the selected rollouts, in order.

    An example has the weight of its source, 1 where none is given. The second value counts the
    examples dropped as longer than max_length.
    """
    examples = []
    for group in groups:
        if completions := completions_to_learn(group):
            # of all completions of a problem, which may be hundreds, and few-shot prompts are long
            prompt_ids = prompt.encode(group.problem, tokenizer)
            examples += [
                _example(prompt_ids, text, tokenizer, source_weights.get(source, 1.0))
                for source, text in completions
            ]
    kept = [example for example in examples if len(example.input_ids) <= max_length]
    return kept, len(examples) - len(kept)


def completions_to_learn(group: Group) -> list[tuple[str, str]]:
    """What a model is trained to say to a problem, each with its source: `gold` or a policy.

    The gold solution goes first, then the selected rollouts.
    """
    gold = [] if group.problem.solution is None else [(GOLD, group.problem.solution)]
    return gold + [(rollout.policy, rollout.completion) for rollout in group.selected]


def write_examples(path: str, examples: Iterable[Example]) -> int:
    """One Parquet file, complete or not there at all, written as the examples come; their number.

    As Python lists, millions of examples would not fit into the driver's memory.
    """
    partial, examples, count = f"{path}.partial", iter(examples), 0
    with pq.ParquetWriter(partial, EXAMPLE_SCHEMA) as writer:
        while piece := list(islice(examples, ROW_GROUP_EXAMPLES)):
            columns = {
                name: [getattr(example, name) for example in piece] for name in EXAMPLE_SCHEMA.names
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=EXAMPLE_SCHEMA))
            count += len(piece)
    os.replace(partial, path)
    return count


def read_examples(path: str) -> list[Example]:
    """The examples of a file of `write_examples`, in order."""
    rows = pq.read_table(path, schema=EXAMPLE_SCHEMA).to_pylist()
    return [Example(**row) for row in rows]


def read_example_columns(path: str) -> ExampleColumns:
    """The same as flat arrays: what a trainer rank holds, a few bytes a token."""
    table = pq.read_table(path, schema=EXAMPLE_SCHEMA).combine_chunks()
    ids, mask, logprobs = (_one_array(table, n) for n in ("input_ids", "loss_mask", "logprobs"))
    lengths = ids.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return ExampleColumns.build(
        token_ids=ids.flatten().to_numpy(),
        loss_mask=mask.flatten().to_numpy(),
        lengths=lengths,
        weights=table["weight"].to_numpy().astype(np.float64),
        logprobs=_spread_logprobs(logprobs, lengths),
    )


def _one_array(table: pa.Table, name: str) -> pa.ListArray:
    return pa.concat_arrays(table[name].chunks or [pa.array([], EXAMPLE_SCHEMA.field(name).type)])


def _spread_logprobs(logprobs: pa.ListArray, lengths: np.ndarray) -> np.ndarray | None:
    """A value for every token, NaN in the examples without; None where all are without."""
    if logprobs.null_count == len(logprobs):
        return None
    is_known = np.repeat(logprobs.is_valid().to_numpy(zero_copy_only=False), lengths)
    spread = np.full(len(is_known), np.nan)
    spread[is_known] = logprobs.flatten().to_numpy()
    return spread
