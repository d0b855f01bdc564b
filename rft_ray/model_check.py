"""Whether a model can be asked the run's prompt and learn where to stop, before anything starts.

What is wrong with a tokeniser (its files, no chat template, a template that refuses the prompt, no
EOS) would else show when the first training, or the first sampling, comes to it. Left out: weights,
which are read by those who need them.
"""

from typing import Any

from rft_ray.errors import InputError, first_words
from rft_ray.prompts import Prompt
from rft_ray.sampling import load_tokenizer
from rft_ray.types import Problem

MAX_REASON_CHARS = 200


def check_model_prompt(model: str, folder: str, prompt: Prompt, problem: Problem) -> None:
    """Raises InputError, naming the model, unless its tokeniser can take the problem's prompt."""
    tokenizer = _load(model, folder)
    if tokenizer.eos_token_id is None:
        raise InputError(f"model {model}: the tokenizer has no EOS token, so no example can end")
    if prompt.template == "chat" and not tokenizer.chat_template:
        raise InputError(
            f"model {model}: prompt.template is chat, but its tokenizer has no chat template"
        )
    _encode(model, tokenizer, prompt, problem)


def _load(model: str, folder: str) -> Any:
    try:
        return load_tokenizer(folder)
    except Exception as error:  # damaged files raise whatever the reader of their part does
        reason = first_words(str(error), MAX_REASON_CHARS)
        raise InputError(f"model {model}: cannot read its tokenizer: {reason}") from error


def _encode(model: str, tokenizer: Any, prompt: Prompt, problem: Problem) -> None:
    from jinja2.exceptions import TemplateError

    try:
        prompt.encode(problem, tokenizer)
    except TemplateError as error:  # such as a template that has no place for a system message
        reason = first_words(str(error), MAX_REASON_CHARS)
        raise InputError(f"model {model}: its chat template refuses the prompt: {reason}") from None
