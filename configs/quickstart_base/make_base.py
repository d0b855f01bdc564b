"""Make the two tiny Llama base models and the tokenizer that the quickstart starts from.

    nice -n 10 python configs/quickstart_base/make_base.py tied     # or: untied

A base has read about the domain but never a solved problem, like a language model before
fine-tuning: single calculations, one-step statements, and questions without answers. All text is of
the split "pretraining", so no number combination of the train, validation and heldout problems
occurs in it. Everything is seeded; the same machine writes the same weights. About ten minutes a
model on one core. The shape and the number of steps were chosen with SFT on the validation split.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rft_ray.types import Problem
from rft_ray.word_problems import NAMES, THINGS, generate_word_problems, solution_paths

HERE = Path(__file__).parent
EOS = "<|endoftext|>"
PAD = "<|pad|>"
VOCABULARY_SIZE = 704
CONTEXT = 128
SEQUENCES_PER_STEP = 32
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 50
PROBLEMS = 8_000
DOCUMENTS = 90_000
FACTS_PER_DOCUMENT = 3
SIGN_SHARES = {"+": 0.45, "-": 0.25, "*": 0.22, "/": 0.08}

SHAPES = {
    "tied": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "untied": {
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    },
}

STATEMENTS = {
    "+": (
        ("{name} has {x} {things} and gets {y} more.", "{things}"),
        ("{name} has {x} red and {y} blue {things}.", "{things}"),
        ("{name} has {x} {things} and {friend} has {y}.", "{things}"),
    ),
    "-": (
        ("{name} has {x} {things} and loses {y}.", "{things}"),
        ("Of {x} {things} {name} gives {y} to {friend}.", "{things}"),
        ("{name} has {x} dollars and spends {y}.", "dollars"),
    ),
    "*": (
        ("{name} has {x} bags of {y} {things}.", "{things}"),
        ("{name} works {x} days and earns {y} dollars a day.", "dollars"),
        ("Each of {x} shelves has {y} {things}.", "{things}"),
    ),
    "/": (("{name} shares {x} {things} among {y} friends.", "{things}"),),
}


def draw_equations(problems: list[Problem], count: int, rng: random.Random) -> list[str]:
    """Single calculations that occur in some solution of the problems, in fixed shares by sign."""
    by_sign: dict[str, set[str]] = {sign: set() for sign in SIGN_SHARES}
    for problem in problems:
        for equation in re.findall(r"<<(.*?)>>", "".join(solution_paths(problem))):
            by_sign[re.findall(r"[-+*/]", equation)[0]].add(equation)
    pools = {sign: sorted(equations) for sign, equations in by_sign.items()}
    signs = rng.choices(list(SIGN_SHARES), list(SIGN_SHARES.values()), k=count)
    return [rng.choice(pools[sign]) for sign in signs]


def write_fact(equation: str, unit: str) -> str:
    """("3+4=7", "pens") -> "<<3+4=7>>7 pens."."""
    return f"<<{equation}>>{equation.split('=')[1]} {unit}."


def write_facts(equations: Iterable[str], rng: random.Random) -> str:
    return "\n".join(write_fact(equation, rng.choice(THINGS)) for equation in equations)


def write_statement(equation: str, rng: random.Random) -> str:
    """One sentence and the one calculation that follows from it."""
    x, op, y, _ = re.findall(r"\d+|[-+*/]", equation)
    name, friend = rng.sample(NAMES, 2)
    words = {"name": name, "friend": friend, "things": rng.choice(THINGS), "x": x, "y": y}
    sentence, unit = rng.choice(STATEMENTS[op])
    return f"{sentence.format(**words)} {write_fact(equation, unit.format(**words))}"


def write_documents(count: int, seed: int) -> list[str]:
    """Facts (half), one-step statements (a third) and unanswered questions (the rest)."""
    rng = random.Random(seed)
    problems = generate_word_problems(PROBLEMS, seed=seed, split="pretraining")
    equations = iter(draw_equations(problems, FACTS_PER_DOCUMENT * count, rng))
    documents = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.50:
            documents.append(write_facts(islice(equations, FACTS_PER_DOCUMENT), rng))
        elif kind < 0.84:
            documents.append(write_statement(next(equations), rng))
        else:
            documents.append(f"Question: {rng.choice(problems).prompt}\n")
    return documents


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text comes back unchanged; every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    solved = "Answer:\nSo\nThen\nThat is <<3+4=7>>7 pens.\n#### 7"
    tokenizer.train_from_iterator([*documents, *[solved] * 1000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2 * CONTEXT,
    )


def make_config(kind: str, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        **SHAPES[kind],
        vocab_size=len(tokenizer),
        head_dim=32,
        max_position_embeddings=2 * CONTEXT,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def batch_tokens(
    documents: list[str], tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[torch.Tensor]:
    """(SEQUENCES_PER_STEP, CONTEXT) windows of the shuffled documents, again and again."""
    encoded = tokenizer(documents, return_attention_mask=False)["input_ids"]
    rng = random.Random(seed)
    while True:
        rng.shuffle(encoded)
        stream = torch.tensor([t for ids in encoded for t in [*ids, tokenizer.eos_token_id]])
        windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
        yield from windows.split(SEQUENCES_PER_STEP)


def pretrain(model: LlamaForCausalLM, batches: Iterator[torch.Tensor], steps: int) -> None:
    """AdamW with warm-up and linear decay to zero."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(steps):
        scale = min((step + 1) / WARMUP_STEPS, (steps - step) / (steps - WARMUP_STEPS))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * scale
        tokens = next(batches)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    started = time.monotonic()
    documents = write_documents(DOCUMENTS, arguments.seed)
    tokenizer = train_tokenizer(documents)
    model = LlamaForCausalLM(make_config(arguments.kind, tokenizer))
    pretrain(model, batch_tokens(documents, tokenizer, arguments.seed), arguments.steps)
    save(model, tokenizer, arguments.out or HERE / arguments.kind)
    summary = {
        "kind": arguments.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "steps": arguments.steps,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
