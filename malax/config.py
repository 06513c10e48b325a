"""YAML to configuration models: strict, with the key that was probably meant."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from malax.errors import FileError, InputError, MalaxError
from malax.schema import models_in as _models_in

Model = TypeVar("Model", bound=BaseModel)

_VARIABLE = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``1e-3`` is a number, ``no`` is not a boolean, and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] in ("null", "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        "-+.0123456789",
    ),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def load(path: str | os.PathLike[str], model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into ``model``.

    Relative paths count from the file's folder; ``$NAME`` and ``${NAME}`` are environment variables
    (``$$`` is a dollar). ``overrides`` are ``a.b=value`` as of ``--set``, their values YAML.

    Raises
    ------
    FileError
        the file is missing or is not YAML (with its line).
    InputError
        an unknown key (with the one that was probably meant), a missing one, a wrong value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise FileError(f"cannot read the configuration {path}: {reason}") from error
    tree = _parse(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a configuration is a list of 'key: value' lines, got {_kind(tree)}")
    for override in overrides:
        _set(tree, override)
    return validate(tree, model, folder=path.parent, where=str(path))


def validate(
    tree: dict[str, Any], model: type[Model], folder: str | os.PathLike[str] = ".", where: str = ""
) -> Model:
    """A nested dict as ``model``; errors as of `load`, naming ``where``."""
    prefix = f"{where}: " if where else ""
    prepared = getattr(model, "prepared", None)
    if prepared is not None:  # a model that fills blanks from a file that the configuration names
        try:
            tree = prepared(tree, Path(folder))
        except MalaxError as error:
            raise InputError(f"{prefix}{error}") from error
    try:
        # through JSON, so that a list may stand for a tuple but "10" not for 10
        text = json.dumps(_substituted(tree, prefix, ""))
        return model.model_validate_json(text, strict=True, context={"folder": Path(folder)})
    except ValidationError as error:
        raise InputError(prefix + _describe(error, model)) from error


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        hint = " (quote text that holds * ! & [ ] { } : or #)" if mark and _special(text, mark.line) else ""
        raise FileError(f"{where}{line}: {error.problem or error.context}{hint}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise FileError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def _special(text: str, line: int) -> bool:
    """Whether a line has a character that means something to YAML."""
    lines = text.splitlines()
    return line < len(lines) and any(c in lines[line] for c in "*!&[{@`%")


def _set(tree: dict[str, Any], override: str) -> None:
    """Put the value of ``a.b=value`` into the tree."""
    keys, equals, text = override.partition("=")
    names = keys.strip().split(".")
    if not equals or not all(names):
        raise InputError(f"--set needs key=value such as network.activation=gelu, got {override!r}")
    node = tree
    for i, name in enumerate(names[:-1]):
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise InputError(f"--set {override}: {'.'.join(names[: i + 1])} is a value, it has no keys")
    node[names[-1]] = _parse(text, f"--set {override}")


def _substituted(value: Any, where: str, key: str) -> Any:
    """The tree with environment variables put in; keys become strings."""
    if isinstance(value, dict):
        return {str(k): _substituted(v, where, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_substituted(v, where, key) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        if name not in os.environ:
            raise InputError(
                f"{where}{key}: the environment variable {name} is not set (write $$ for a dollar)"
            )
        return os.environ[name]

    return _VARIABLE.sub(replace, value)


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first problem that pydantic found, an unknown key before all others."""
    problems = error.errors(include_url=False)
    # a misspelt required key is reported twice, as unknown and as missing: the first says more
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    names = [str(part) for part in problem["loc"]]
    key = ".".join(name for name in names if not name.startswith("function-"))
    if problem["type"] == "extra_forbidden":
        line = f"{key}: {_suggestion(names[-1], _keys_at(model, problem['loc'][:-1]))}"
    elif problem["type"] == "missing":
        line = f"{key} is missing{_documentation(model, problem['loc'])}"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        got = problem["input"]
        shown = "" if problem["type"] == "value_error" or isinstance(got, dict) else f", got {got!r}"
        line = f"{key}: {message[:1].lower()}{message[1:]}{shown}" if key else message
    more = len({p["loc"] for p in problems}) - 1
    others = f" (and {more} more)" if more and problem["type"] != "extra_forbidden" else ""
    return " ".join(line.split()) + others


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.55)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known: {', '.join(known)}"


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys of the model that stands at ``loc`` inside ``model``."""
    found = _model_at(model, loc)
    return list(found.model_fields) if found else []


def _documentation(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    found = _model_at(model, loc[:-1])
    field = found.model_fields.get(str(loc[-1])) if found else None
    return f" ({field.description.splitlines()[0].rstrip('.')})" if field and field.description else ""


def _model_at(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel] | None:
    """Follow ``loc`` through nested models, lists, dicts and unions."""
    candidates: list[type[BaseModel]] = [model]
    for part in loc:
        inner: list[type[BaseModel]] = []
        for candidate in candidates:
            field = candidate.model_fields.get(str(part))
            # a list's index or a union's branch is not a field: the model stays
            inner += _models_in(field.annotation) if field else [candidate]
        candidates = inner
    named = [c for c in candidates if loc and c.__name__ == loc[-1]]
    return (named or candidates or [None])[0]  # type: ignore[list-item]


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {str(value)[:40]!r}"
