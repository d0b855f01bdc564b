"""Reading a config: a YAML file and overrides in, a checked `RunConfig` or one clear line out.

A config file holds only what differs from the defaults; `section.field=value` overrides come on
top, items of lists addressed by number. Every message names the file and line, or the override,
and the key, and an unknown key comes with the nearest valid name.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rft_ray.config import RunConfig
from rft_ray.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML without two of its traps: a key given twice, and 1e-8, which YAML 1.1 reads as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would take for a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The config in a YAML file with `section.field=value` overrides applied.

    Raises InputError with one line that names the file, the line or override, and the field.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot read the config: {reason}") from error
    try:
        tree = yaml.compose(text)
        raw = yaml.load(text, _Loader)
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: not valid YAML: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a config is a mapping of sections, found {type(raw).__name__}")
    for override in overrides or []:
        _apply_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(_explain(error, path, tree, overrides or [])) from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of the raw config in place; list items are addressed by number."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: expected section.field=value")
    try:
        parsed = yaml.load(value, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"override {override!r}: value is not valid YAML") from error
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_list_index(node, part, override)]
        elif isinstance(node, dict):
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
    if isinstance(node, list):
        node[_list_index(node, last, override)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise InputError(f"override {override!r}: {'.'.join(parents)} is not a section")


def _list_index(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        valid = f"one of 0..{len(items) - 1}" if items else "in an empty list"
        raise InputError(f"override {override!r}: {part!r} is not {valid}")
    return int(part)


def _explain(error: ValidationError, path: Path, tree: yaml.Node, overrides: list[str]) -> str:
    """One line for the first thing that is wrong: where it stands, what it is, what is valid."""
    override_keys = [override.partition("=")[0] for override in overrides]

    def find_override(error: Any) -> str | None:
        """The last override that set the wrong field or a section around it."""
        dotted = _dotted(error) + "."
        return next((k for k in reversed(override_keys) if dotted.startswith(k + ".")), None)

    # A bad shared section fails once itself and once in every policy it was merged into: the
    # error to show is the one at a place that the user wrote.
    first = min(
        error.errors(),
        key=lambda e: (find_override(e) is None, _line_of(tree, _location(e))[1] > 0),
    )
    location, key = _location(first), _dotted(first)
    override = find_override(first)
    where = f"override {override}" if override is not None else None
    line, _ = _line_of(tree, location)
    where = where or (f"{path}:{line}" if line else str(path))
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(RunConfig, location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(known)}"
        return f"{where}: unknown key {key!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
    return f"{where}: {key + ': ' if key else ''}{message}{got}"


def _location(error: Any) -> list[int | str]:
    """The key path; where a key is wrong itself, pydantic says so in a part of its own."""
    return [part for part in error["loc"] if part != "[key]"]


def _dotted(error: Any) -> str:
    return ".".join(map(str, _location(error)))


def _line_of(tree: yaml.Node, location: list[int | str]) -> tuple[int | None, int]:
    """The line of the deepest part of a key path in the file; how many parts the file lacks."""
    line, node = None, tree
    for depth, part in enumerate(location):
        if isinstance(node, yaml.MappingNode):
            match = [(key, value) for key, value in node.value if key.value == part]
            if not match:
                return line, len(location) - depth
            line, node = match[0][0].start_mark.line + 1, match[0][1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line, len(location) - depth
    return line, 0


def _fields_at(model: type[BaseModel], location: list[int | str]) -> dict[str, Any]:
    """The field names that are valid at a key path."""
    for part in location:
        if part not in model.model_fields:
            continue  # the index of a list's item, or a name the user gave
        annotation = model.model_fields[str(part)].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        model = next(t for t in inner if isinstance(t, type) and issubclass(t, BaseModel))
    return dict(model.model_fields)


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML: every field, defaults included."""
    raw = config.model_dump(mode="json")
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
