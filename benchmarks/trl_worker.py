"""TRL's SFTTrainer on given examples, timed; runs in `.venv-bench` and imports nothing of ours.

    .venv-bench/bin/python benchmarks/trl_worker.py SPEC.json SETTING

SETTING is `default` (what SFTConfig() does, but in the spec's precision), `grouped` (padded, like
lengths together) or `packed` (best-fit packing without padding). A last line of JSON has the
seconds, the peak of memory and whether a sample is blind to its neighbours.
"""

import json
import resource
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

PER_DEVICE = 4


class Stopwatch(TrainerCallback):
    """From the first step to the end of the last."""

    def on_train_begin(self, *_, **__):
        self.started = time.perf_counter()

    def on_train_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.started


def main() -> None:
    """One short training to warm up, then the one that is timed."""
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    torch.set_num_threads(spec["threads"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        train(spec, sys.argv[2], model, tokenizer, folder, spec["examples"][:2])
        watch, trainer = train(spec, sys.argv[2], model, tokenizer, folder, spec["examples"])
    print(
        json.dumps(
            {
                "seconds": watch.seconds,
                "steps": trainer.state.global_step,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "is_isolated": sys.argv[2] != "packed" or is_isolated(model),
                "first_loss": trainer.state.log_history[0]["loss"],
            }
        )
    )


def train(spec, setting, model, tokenizer, folder, examples):
    """All examples once, with the spec's number of them an optimiser step."""
    rows = [
        {"input_ids": e["input_ids"], "completion_mask": e["loss_mask"]} for e in examples
    ]
    watch = Stopwatch()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            num_train_epochs=1,
            learning_rate=spec["learning_rate"],
            lr_scheduler_type="constant",
            completion_only_loss=True,
            **settings(spec, setting),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.train()
    return watch, trainer


def settings(spec, setting):
    """What differs between the settings."""
    size = spec["batch_size"]
    if setting == "default":
        each = SFTConfig.per_device_train_batch_size
        return {"gradient_accumulation_steps": max(1, size // each), "max_length": None}
    if setting == "grouped":
        return {
            "per_device_train_batch_size": PER_DEVICE,
            "gradient_accumulation_steps": max(1, size // PER_DEVICE),
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
            "max_length": None,
        }
    # One packed row a micro-batch: as many of them a step as hold the step's tokens.
    return {
        "packing": True,
        "max_length": spec["row_tokens"],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": spec["rows_per_step"],
        "gradient_checkpointing": False,
    }


@torch.no_grad()
def is_isolated(model) -> bool:
    """Whether a packed sample's logits stay the same when the sample before it changes."""
    positions = torch.tensor([[*range(5), *range(7)]])
    first = torch.arange(1, 13)[None]
    second = first.clone()
    second[:, :5] += 20
    model.eval()
    one, other = (model(input_ids=ids, position_ids=positions).logits for ids in (first, second))
    return bool((one[0, 5:] - other[0, 5:]).abs().max() < 1e-4)


if __name__ == "__main__":
    main()
