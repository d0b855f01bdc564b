"""Make the two tiny Llama base models and the tokenizer that the quickstart starts from.

    nice -n 10 python configs/quickstart_base/make_base.py tied     # or: untied

A base has read about the domain but never a solved problem, like a language model before
fine-tuning: single calculations, running stories with one calculation a sentence, and questions
without answers. The questions are of the split "pretraining", so none of the train, validation and
heldout problems occurs. Everything is seeded. 2,000 steps of 2,048 tokens took about 20 minutes a
model on a busy 2-core machine (19 for untied), one thread each. Single calculations come out right
in about 98 % (tied) and 93 % (untied) of + - *, and in about half of the divisions.
"""

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Iterator
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
VOCABULARY_SIZE = 576
CONTEXT = 128
SEQUENCES_PER_STEP = 16
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
PROBLEMS = 8_000
DOCUMENTS = 200_000
FACT_SHARE = 0.60
STORY_SHARE = 0.28
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
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
}

OPENINGS = {
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
CONTINUATIONS = {
    "+": ("{name} gets {y} more.", "{friend} adds {y}."),
    "-": ("{name} loses {y}.", "{friend} takes {y}."),
    "*": ("{friend} has {y} times as many.",),
    "/": ("{name} shares them among {y} friends.",),
}

Document = list[tuple[str, bool]]  # pieces of text, and whether the loss counts there


def collect_equations(problems: list[Problem]) -> dict[str, list[str]]:
    """By sign, the single calculations that occur in some solution of the problems."""
    found: dict[str, set[str]] = {sign: set() for sign in SIGN_SHARES}
    for problem in problems:
        for equation in re.findall(r"<<(.*?)>>", "".join(solution_paths(problem))):
            found[split_equation(equation)[1]].add(equation)
    return {sign: sorted(equations) for sign, equations in found.items()}


def split_equation(equation: str) -> list[str]:
    """ "3+4=7" -> ["3", "+", "4", "7"]."""
    return re.findall(r"\d+|[-+*/]", equation)


def write_fact(equation: str, unit: str) -> Document:
    """The operands are drawn at random, so only what follows them can be learned."""
    left, right = equation.split("=")
    return [(f"<<{left}=", False), (f"{right}>>{right} {unit}.", True)]


def write_story(
    equations: dict[str, list[str]], following: dict[str, list[str]], rng: random.Random
) -> Document:
    """One to three sentences, each followed by the calculation that it asks for."""
    name, friend = rng.sample(NAMES, 2)
    words = {"name": name, "friend": friend, "things": rng.choice(THINGS)}
    equation = draw_equation(equations, rng)
    x, sign, y, value = split_equation(equation)
    x, y = (y, x) if sign in "+*" and rng.random() < 0.5 else (x, y)
    sentence, unit = rng.choice(OPENINGS[sign])
    unit = unit.format(**words)
    pieces = [(sentence.format(**words, x=x, y=y), False)]
    pieces.append((f" <<{equation}>>{value} {unit}.", True))
    for _ in range(rng.choice((0, 1, 2))):
        equation = rng.choice(following.get(value, [equation]))
        x, sign, y, value = split_equation(equation)
        pieces.append((f"\n{rng.choice(CONTINUATIONS[sign])}".format(**words, y=y), False))
        pieces.append((f" <<{equation}>>{value} {unit}.", True))
    return pieces


def draw_equation(equations: dict[str, list[str]], rng: random.Random) -> str:
    (sign,) = rng.choices(list(SIGN_SHARES), list(SIGN_SHARES.values()))
    return rng.choice(equations[sign])


def write_documents(count: int, seed: int) -> list[Document]:
    """Facts, stories and unanswered questions, all of the split "pretraining"."""
    rng = random.Random(seed)
    problems = generate_word_problems(PROBLEMS, seed=seed, split="pretraining")
    equations = collect_equations(problems)
    following: dict[str, list[str]] = {}
    for equation in sorted(itertools.chain(*equations.values())):
        following.setdefault(split_equation(equation)[0], []).append(equation)
    documents: list[Document] = []
    for _ in range(count):
        kind = rng.random()
        if kind < FACT_SHARE:
            documents.append(write_fact(draw_equation(equations, rng), rng.choice(THINGS)))
        elif kind < FACT_SHARE + STORY_SHARE:
            documents.append(write_story(equations, following, rng))
        else:
            documents.append([(f"Question: {rng.choice(problems).prompt}\n", True)])
    return documents


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
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
    tokenizer.train_from_iterator([*texts, *[solved] * 1000], trainer)
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


def encode_documents(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast
) -> list[list[tuple[int, bool]]]:
    """Each document's (token, whether the loss counts) with EOS at its end."""
    texts = sorted({text for document in documents for text, _ in document})
    ids = dict(zip(texts, tokenizer(texts)["input_ids"], strict=True))
    end = (tokenizer.eos_token_id, True)
    return [[*((t, c) for text, c in pieces for t in ids[text]), end] for pieces in documents]


def batch_tokens(
    encoded: list[list[tuple[int, bool]]], seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(SEQUENCES_PER_STEP, CONTEXT) tokens and loss masks, over the shuffled documents for ever."""
    rng = random.Random(seed)
    while True:
        rng.shuffle(encoded)
        stream = torch.tensor(list(itertools.chain(*encoded)))
        windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT, 2)
        for batch in windows.split(SEQUENCES_PER_STEP):
            yield batch[..., 0], batch[..., 1].bool()


def pretrain(
    model: LlamaForCausalLM, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int
) -> None:
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
        tokens, counts = next(batches)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits[counts[:, 1:]], tokens[:, 1:][counts[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
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
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    started = time.monotonic()
    documents = write_documents(DOCUMENTS, arguments.seed)
    tokenizer = train_tokenizer(["".join(text for text, _ in pieces) for pieces in documents])
    model = LlamaForCausalLM(make_config(arguments.kind, tokenizer))
    batches = batch_tokens(encode_documents(documents, tokenizer), arguments.seed)
    pretrain(model, batches, arguments.steps)
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
