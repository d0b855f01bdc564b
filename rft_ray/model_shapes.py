"""How large a model is and what it is made of, without any of its weights in memory.

Read from the headers of its weights, from its Hugging Face config, from facts of the Llama models
kept here, or from its name, in this order. Nothing is downloaded. Left out: the shapes of models
that are not Llama-like (mixtures of experts, GPT-2), which are planned as a plain decoder of their
size where that is known.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from rft_ray.errors import InputError
from rft_ray.models import read_header

NAMED_SIZE = re.compile(r"(?<![^-_/ ])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The number of a model's parameters, and how it is known."""

    parameters: int
    source: str

    def __str__(self) -> str:
        unit, name = (1e9, "B") if self.parameters >= 1e9 else (1e6, "M")
        return f"{self.parameters / unit:.3g}{name} parameters {self.source}"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-like decoder: its matrices, and what its activations and cache are made of."""

    layers: int
    width: int
    """Of the residual stream."""
    feed_forward: int
    """Width of the feed-forward layers."""
    heads: int
    kv_heads: int
    head: int
    """Width of an attention head."""
    vocabulary: int
    is_tied: bool = False
    """Whether the first and the last layer are one matrix."""

    @property
    def layer_parameters(self) -> int:
        """Attention, feed-forward, and the gains of two norms."""
        attention = 2 * self.width * self.head * (self.heads + self.kv_heads)
        return attention + 3 * self.width * self.feed_forward + 2 * self.width

    @property
    def embedding_parameters(self) -> int:
        """Of one of the matrices between tokens and the residual stream."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All; a tied matrix once."""
        embeddings = self.embedding_parameters * (1 if self.is_tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.width

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest module that has any of its own: one matrix."""
        return max(self.embedding_parameters, self.width * self.feed_forward)

    def cache_bytes(self, value_bytes: int = 2) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head * value_bytes


LLAMAS = {
    "llama-7b": ModelShape(32, 4096, 11008, 32, 32, 128, 32000),
    "llama-13b": ModelShape(40, 5120, 13824, 40, 40, 128, 32000),
    "llama-30b": ModelShape(60, 6656, 17920, 52, 52, 128, 32000),
    "llama-65b": ModelShape(80, 8192, 22016, 64, 64, 128, 32000),
    "llama-2-7b": ModelShape(32, 4096, 11008, 32, 32, 128, 32000),
    "llama-2-13b": ModelShape(40, 5120, 13824, 40, 40, 128, 32000),
    "llama-2-70b": ModelShape(80, 8192, 28672, 64, 8, 128, 32000),
}
"""By the end of the hub's name, without -hf: the published configs of LLaMA and Llama 2."""


def model_size(model: str) -> ModelSize | None:
    """The size of a folder's model or, from its name, of one not here; None: not known.

    "meta-llama/Llama-2-70b-hf" -> 69B parameters, as published
    """
    folder = Path(model).expanduser()
    if weights := sorted(folder.glob("*.safetensors")):
        return ModelSize(sum(map(_count_in_file, weights)), "in its weights")
    if (folder / "config.json").is_file():
        shape = _read_shape(folder / "config.json")
        return ModelSize(shape.parameters, "from config.json") if shape else None
    if shape := _published_shape(model):
        return ModelSize(shape.parameters, "as published")
    if sizes := NAMED_SIZE.findall(Path(model).name):
        number, unit = sizes[-1]
        return ModelSize(int(float(number) * {"b": 1e9, "m": 1e6}[unit.lower()]), "from the name")
    return None


def model_shape(model: str) -> ModelShape | None:
    """The shape of a folder's model or of a hub's; None where not even the size is known.

    That of a model which is not Llama-like, or not here, is a plain decoder's of its size.
    """
    config = Path(model).expanduser() / "config.json"
    shape = _read_shape(config) if config.is_file() else _published_shape(model)
    size = model_size(model)
    return shape or (plain_shape(size.parameters) if size else None)


def plain_shape(parameters: int) -> ModelShape:
    """A Llama of about that many parameters: 12 width^2 a layer, and a layer for 128 of width.

    Its number of parameters is only near the one asked for.
    """
    heads = max(1, round((parameters * 128 / 12) ** (1 / 3) / 128))
    width = 128 * heads
    return ModelShape(heads, width, round(8 / 3 * width), heads, heads, 128, 32000)


def _published_shape(model: str) -> ModelShape | None:
    name = Path(model).name.lower().removesuffix("-hf").removesuffix("-chat")
    return LLAMAS.get(name)


def _count_in_file(path: Path) -> int:
    """The parameters of a safetensors file, by its header."""
    header, _ = read_header(path)
    return sum(_product(entry["shape"]) for entry in header.values())


def _product(shape: list[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _read_shape(path: Path) -> ModelShape | None:
    """From the config of a dense Llama-like model; None for another kind."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        shape = ModelShape(
            layers=config["num_hidden_layers"],
            width=hidden,
            feed_forward=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            is_tied=bool(config.get("tie_word_embeddings")),
        )
        return None if any("expert" in key for key in config) else shape
    except ValueError:
        raise InputError(f"{path}: not valid JSON") from None
    except (KeyError, TypeError):
        return None
