"""Prompts as token ids, and what a training example consists of."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rft_ray.config import PromptConfig
from rft_ray.errors import InputError
from rft_ray.packing import ExampleColumns
from rft_ray.prompts import (
    ROW_GROUP_EXAMPLES,
    Prompt,
    group_examples,
    make_example,
    make_prompt,
    read_example_columns,
    read_examples,
    write_examples,
)
from rft_ray.types import Example, Group, Problem, Rollout

PROMPT = Prompt("Q: {prompt} {x} A: ")
PROBLEM = Problem("p1", "two plus two", "4", solution="four")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens, BOS before every text as Llama's does it."""
    symbols = ["<unk>", "<s>", "</s>", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def rollout(text: str, selected: bool) -> Rollout:
    return Rollout("a", text, selected=selected, verdict="correct", finish_reason="stop")


def test_only_the_prompt_placeholder_is_replaced() -> None:
    problem = Problem("p", "a {x} and {prompt}", "1")
    assert PROMPT.render(problem) == "Q: a {x} and {prompt} {x} A: "


def test_the_prompt_has_the_special_tokens_of_a_beginning_and_no_end(tokenizer) -> None:
    ids = PROMPT.encode(PROBLEM, tokenizer)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]).replace(" ", "") == "Q:twoplustwo{x}A:"


def test_an_eos_that_the_tokenizer_puts_after_every_text_does_not_end_a_prompt(tokenizer) -> None:
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    closing = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert closing.encode("x")[-1] == closing.eos_token_id
    without_bos = PROMPT.encode(PROBLEM, tokenizer)[1:]
    assert PROMPT.encode(PROBLEM, closing) == without_bos


def test_an_example_is_the_prompt_then_the_completion_then_eos(tokenizer) -> None:
    example = make_example(PROBLEM, "four", tokenizer, PROMPT)
    prompt = PROMPT.encode(PROBLEM, tokenizer)
    learned = tokenizer.encode("four", add_special_tokens=False)
    assert example.input_ids == [*prompt, *learned, tokenizer.eos_token_id]
    assert example.loss_mask == [0] * len(prompt) + [1] * (len(learned) + 1)


def test_a_tokenizer_without_eos_is_refused(tokenizer) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no EOS"):
        make_example(PROBLEM, "four", endless, PROMPT)


def test_gold_goes_first_and_the_order_of_rollouts_is_kept(tokenizer) -> None:
    groups = [
        Group(PROBLEM, [rollout("b", True), rollout("no", False), rollout("a", True)]),
        Group(Problem("p2", "q", "1"), [rollout("c", True)]),
    ]
    examples, dropped = group_examples(groups, tokenizer, PROMPT, max_length=100)
    tails = ["four", "b", "a", "c"]
    assert [e.input_ids[-len(t) - 1 : -1] for e, t in zip(examples, tails, strict=True)] == [
        tokenizer.encode(t, add_special_tokens=False) for t in tails
    ]
    assert dropped == 0


def test_an_example_has_the_weight_of_its_source(tokenizer) -> None:
    other = Rollout("b", "two", selected=True, verdict="correct", finish_reason="stop")
    group = Group(PROBLEM, [rollout("one", True), other])
    for weights, expected in (({}, [1, 1, 1]), ({"gold": 0.5, "b": 2.0}, [0.5, 1, 2])):
        examples, _ = group_examples([group], tokenizer, PROMPT, 100, weights)
        assert [example.weight for example in examples] == expected


def test_longer_examples_are_dropped_and_counted(tokenizer) -> None:
    length = len(make_example(PROBLEM, "four", tokenizer, PROMPT).input_ids)
    gold = [Group(PROBLEM)]
    assert group_examples(gold, tokenizer, PROMPT, length)[1] == 0
    assert group_examples(gold, tokenizer, PROMPT, length - 1) == ([], 1)
    assert group_examples([Group(Problem("p", "q", "1"))], tokenizer, PROMPT, 100) == ([], 0)


def test_examples_survive_the_file_and_leave_nothing_else(tmp_path: Path) -> None:
    examples = [Example([5, 6, 7], [0, 1, 1], 1.0), Example([8, 9], [0, 1], 0.5)]
    path = tmp_path / "examples.parquet"
    write_examples(str(path), examples)
    assert read_examples(str(path)) == examples
    assert list(tmp_path.iterdir()) == [path]
    columns, expected = read_example_columns(str(path)), ExampleColumns.of(examples)
    for name in ExampleColumns.__slots__:
        assert getattr(columns, name).tolist() == getattr(expected, name).tolist()


def test_log_probabilities_survive_the_file_beside_examples_without(tmp_path: Path) -> None:
    examples = [
        Example([5, 6, 7], [0, 1, 1], 1.0, [0.0, -0.5, -1.25]),
        Example([8, 9], [0, 1], 0.5),
        Example([4], [1], 1.0, [-2.0]),
    ]
    path = str(tmp_path / "examples.parquet")
    write_examples(path, examples)
    assert read_examples(path) == examples
    columns = read_example_columns(path)
    np.testing.assert_array_equal(columns.logprobs, ExampleColumns.of(examples).logprobs)
    np.testing.assert_array_equal(columns.logprobs, [0, -0.5, -1.25, np.nan, np.nan, -2])


def test_a_file_from_before_log_probabilities_can_be_read(tmp_path: Path) -> None:
    path = str(tmp_path / "examples.parquet")
    write_examples(path, [Example([8, 9], [0, 1], 0.5)])
    pq.write_table(pq.read_table(path).drop_columns(["logprobs"]), path)
    assert read_examples(path) == [Example([8, 9], [0, 1], 0.5)]
    assert len(read_example_columns(path).logprobs) == 0


def test_many_examples_are_written_in_pieces_as_they_come(tmp_path: Path) -> None:
    path = str(tmp_path / "examples.parquet")
    count = 2 * ROW_GROUP_EXAMPLES + 1
    assert write_examples(path, (Example([i, 7], [0, 1]) for i in range(count))) == count
    assert [example.input_ids[0] for example in read_examples(path)] == list(range(count))
    columns = read_example_columns(path)
    assert columns.token_ids.tolist()[-2:] == [count - 1, 7]
    assert columns.offsets.tolist() == list(range(0, 2 * count + 1, 2))


class CountingTokenizer(PreTrainedTokenizerFast):
    """Keeps the texts it encoded."""

    def encode(self, text: str, **options: object) -> list[int]:
        self.encoded = [*getattr(self, "encoded", []), text]
        return super().encode(text, **options)


def test_a_problems_prompt_is_encoded_once_for_all_its_completions(tokenizer) -> None:
    counting = CountingTokenizer(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    texts = ["iv", "2+2", "four!"]
    group = Group(PROBLEM, [rollout(text, selected=True) for text in texts])
    unlearned = Group(Problem("u", "u?", "1"), [rollout("x", selected=False)])
    examples, dropped = group_examples([group, unlearned], counting, PROMPT, max_length=99)
    assert counting.encoded == [PROMPT.render(PROBLEM), "four", *texts]
    alone = [make_example(PROBLEM, text, tokenizer, PROMPT) for text in ["four", *texts]]
    assert (examples, dropped) == (alone, 0)
    # examples own their ids
    examples[0].input_ids.append(0)
    assert examples[1:] == alone[1:]


def test_an_empty_file_can_be_written_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "none.parquet")
    write_examples(path, [])
    assert read_examples(path) == []
    assert len(read_example_columns(path).lengths) == 0


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same characters with a chat template that writes EOS after each turn."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    own.chat_template = CHAT
    return own


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def test_the_alpaca_prompt_is_the_papers() -> None:
    assert Prompt("alpaca").render(Problem("p", "Why?", "1")) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nWhy?\n\n### Response:"
    )


def test_a_chat_is_the_models_own_template_with_nothing_added(chatty) -> None:
    prompt = Prompt("chat", system="Be brief.", shots=(("one plus one", "two"),))
    expected = (
        "<system>Be brief.</s><user>one plus one</s><assistant>two</s>"
        "<user>two plus two</s><assistant>"
    )
    assert decode(chatty, prompt.encode(PROBLEM, chatty)) == expected
    example = make_example(PROBLEM, "four", chatty, prompt)
    assert decode(chatty, example.input_ids) == expected + "four</s>"
    assert prompt.stop == ()


def test_a_model_without_a_chat_template_is_refused_in_one_line(tokenizer) -> None:
    with pytest.raises(InputError, match="no chat template"):
        Prompt("chat").encode(PROBLEM, tokenizer)


def test_solved_problems_come_first_and_never_the_problem_itself() -> None:
    solved = [Problem(str(i), f"{i}+{i}?", str(2 * i), solution=f"{2 * i}") for i in range(4)]
    unsolved = Problem("u", "u?", "1")
    prompt = make_prompt(PromptConfig(template="Q {prompt} A ", shots=2), [unsolved, *solved])
    assert prompt.render(Problem("p", "x?", "1")) == "Q 0+0? A 0\n\nQ 1+1? A 2\n\nQ x? A "
    assert prompt.render(solved[1]) == "Q 0+0? A 0\n\nQ 1+1? A "
    assert prompt.stop == ("\n\nQ",)
    assert make_prompt(PromptConfig(), solved).stop == ()
    with pytest.raises(InputError, match="shots is 5, but only 4 training problems"):
        make_prompt(PromptConfig(shots=5), solved)
