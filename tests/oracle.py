"""Offline RFT by brute force on one page: what every faster path of `rft_ray` must agree with.

Plain torch and transformers; no Ray, Serve, DeepSpeed, vLLM, packing or sharding, and no import
of the package but its records. SFT each policy, sample k solutions a training problem from every
policy, grade, select with Algorithm 1 of Yuan et al. 2023 taken literally, train the target's base
on gold + selected, evaluate greedily. Each function is a reference of its own for tests.
"""

import ast
import functools
import math
import operator
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerBase

from rft_ray.types import Example, Group, Problem, Rollout, Verdict

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def oracle_verdict(problem: Problem, completion: str) -> Verdict:
    """The first `#### n` decides, then every `<<lhs=rhs>>` must hold to 1e-3 (rft.md 1.1)."""
    text = completion.split("\0")[0]
    match = re.search(r"#### (\-?[0-9\.\,]+)", text)
    try:
        predicted = float(match[1].replace(",", "")) if match else math.nan
    except ValueError:
        predicted = math.nan
    if math.isnan(predicted):
        return "unparsable"
    if predicted != float(problem.answer.replace(",", "")):
        return "wrong"
    equations = re.findall(r"<<([^>]*)>>", text)
    return "correct" if all(map(equation_holds, equations)) else "miscalculated"


def equation_holds(equation: str) -> bool:
    """What follows a second "=" is ignored; whatever Python would not evaluate does not hold."""
    try:
        left, right = equation.split("=")[:2]
        value = calculate(ast.parse(left.strip(), mode="eval").body)
        return abs(float(value) - float(right)) < 1e-3
    except (ValueError, SyntaxError, TypeError, ZeroDivisionError, OverflowError, KeyError):
        return False


def calculate(node: ast.expr) -> float:
    """Numbers, + - * / and signs only: powers and names are refused, not evaluated."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](calculate(node.left), calculate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = calculate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    raise ValueError(f"not arithmetic: {ast.dump(node)}")


def oracle_select(completions: list[str]) -> list[int]:
    """Algorithm 1: positions of the kept completions, in the order their keys first appeared."""
    kept: list[int] = []
    keys: list[str] = []
    for position, text in enumerate(completions):
        key = "|".join(re.findall(r"<<([^>]*)>>", text)).replace(" ", "")
        if key not in keys:
            kept.append(position)
            keys.append(key)
            continue
        incumbent = completions[kept[keys.index(key)]]
        others = [completions[other] for other in kept if completions[other] != incumbent]
        challenge = sum(levenshtein(text, other) for other in others)
        if challenge > sum(levenshtein(incumbent, other) for other in others):
            kept[keys.index(key)] = position
    return kept


@functools.cache
def levenshtein(first: str, second: str) -> int:
    """Character edit distance; ("abc", "axcd") -> 2."""
    row = list(range(len(second) + 1))
    for i, x in enumerate(first, 1):
        above, row = row, [i]
        for j, y in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[int]:
    return tokenizer.encode(f"Question: {problem.prompt}\nAnswer:\n", add_special_tokens=False)


def encode_example(
    tokenizer: PreTrainedTokenizerBase, problem: Problem, completion: str
) -> Example:
    """Prompt and completion are tokenised apart; the loss counts on the completion and the EOS."""
    prompt = encode_prompt(tokenizer, problem)
    answer = [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]
    return Example(prompt + answer, [0] * len(prompt) + [1] * len(answer))


def oracle_loss(
    model: LlamaForCausalLM, examples: list[Example], kind: Literal["token_mean", "sequence_mean"]
) -> torch.Tensor:
    """One example at a time in float64; weights scale the terms and never the count divided by.

    token_mean: sum of w * nll over all counted tokens / their number. sequence_mean: the mean over
    examples of w * (mean nll of the example's counted tokens).
    """
    if model.dtype != torch.float64:
        raise ValueError(f"the oracle's loss is for float64 models, this one is {model.dtype}")
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for example in examples:
        ids = torch.tensor(example.input_ids)
        counted = torch.tensor(example.loss_mask)[1:].bool()
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        nll = cross_entropy(logits, ids[1:], reduction="none")[counted]
        total = total + example.weight * (nll.sum() if kind == "token_mean" else nll.mean())
        tokens += len(nll)
    return total / (tokens if kind == "token_mean" else len(examples))


def padded_loss(model: LlamaForCausalLM, examples: list[Example]) -> torch.Tensor:
    """The token mean of `oracle_loss` in one forward pass of right-padded rows."""
    width = max(len(example.input_ids) for example in examples)
    ids, weights = torch.zeros(2, len(examples), width)
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        weights[row, : len(example.loss_mask)] = torch.tensor(example.loss_mask) * example.weight
    counted = sum(sum(example.loss_mask[1:]) for example in examples)
    logits = model(input_ids=ids.long(), use_cache=False).logits[:, :-1]
    nll = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().long(), reduction="none")
    return (nll * weights[:, 1:].flatten()).sum() / counted


def oracle_train(
    model: LlamaForCausalLM,
    examples: list[Example],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW without decay, 3 % warm-up, cosine to zero, epochs shuffled and cut into batches."""
    rng, order = random.Random(seed), list[Example]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    warmup = max(1, round(0.03 * steps))
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
        optimizer.param_groups[0]["lr"] = learning_rate * min((step + 1) / warmup, cosine)
        while len(order) < batch_size:
            order += rng.sample(examples, len(examples))
        batch, order = order[:batch_size], order[batch_size:]
        padded_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step(step + 1)


@torch.inference_mode()
def oracle_sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    *,
    k: int,
    temperature: float,
    seed: int,
    policy: str = "policy",
    max_new_tokens: int = 96,
    batch_size: int = 512,
) -> list[Group]:
    """k rollouts a problem; temperature 0 is greedy. Each batch runs until its last row stops."""
    generator = torch.Generator().manual_seed(seed)
    rollouts: dict[str, list[Rollout]] = {problem.id: [] for problem in problems}
    requests = [problem for problem in problems for _ in range(k)]
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        prompts = [encode_prompt(tokenizer, problem) for problem in batch]
        rows = sample_rows(model, prompts, temperature, generator, max_new_tokens)
        for problem, ids in zip(batch, rows, strict=True):
            is_finished = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id) + 1] if is_finished else ids
            rollouts[problem.id].append(
                Rollout(
                    policy=policy,
                    completion=tokenizer.decode(ids, skip_special_tokens=True),
                    sample=len(rollouts[problem.id]),
                    token_ids=ids,
                    finish_reason="stop" if is_finished else "length",
                )
            )
    return [Group(problem, rollouts[problem.id]) for problem in problems]


def sample_rows(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    temperature: float,
    generator: torch.Generator,
    max_new_tokens: int,
) -> list[list[int]]:
    """New token ids of every left-padded row, whatever was drawn after its EOS included."""
    width = max(map(len, prompts))
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    cache, columns = DynamicCache(), list[torch.Tensor]()
    is_done = torch.zeros(len(prompts), dtype=torch.bool)
    while len(columns) < max_new_tokens and not is_done.all():
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).logits[:, -1]
        if temperature == 0:
            ids = logits.argmax(-1, keepdim=True)
        else:
            weights = (logits.float() / temperature).softmax(-1)
            ids = torch.multinomial(weights, 1, generator=generator)
        columns.append(ids)
        is_done |= ids[:, 0] == model.config.eos_token_id
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return torch.cat(columns, 1).tolist()


def grade(group: Group) -> Group:
    """The group with every rollout's verdict filled."""
    graded = [
        replace(rollout, verdict=oracle_verdict(group.problem, rollout.completion))
        for rollout in group.rollouts
    ]
    return Group(group.problem, graded)


def oracle_examples(
    tokenizer: PreTrainedTokenizerBase, groups: list[Group]
) -> tuple[list[Example], list[Example]]:
    """The training examples of SFT (gold) and of RFT (gold, then the selected, per problem)."""
    gold, pooled = [], []
    for group in groups:
        accepted = [rollout.completion for rollout in grade(group).accepted]
        kept = [accepted[position] for position in oracle_select(accepted)]
        first = encode_example(tokenizer, group.problem, group.problem.solution or "")
        gold.append(first)
        pooled += [first, *(encode_example(tokenizer, group.problem, text) for text in kept)]
    return gold, pooled


def oracle_evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: list[Problem]
) -> tuple[float, float, float]:
    """Greedy accuracy with its 95 % Wilson interval: (value, low, high)."""
    groups = oracle_sample(model, tokenizer, problems, k=1, temperature=0, seed=0)
    n, correct = len(groups), sum(len(grade(group).accepted) for group in groups)
    return wilson_interval(correct, n)


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float, float]:
    """(50, 100) -> (0.5, 0.404, 0.596)."""
    value = correct / n
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return value, centre - half, centre + half
