"""What a configuration file may hold: every key with its type, default and documentation, as text."""

from __future__ import annotations

import json
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 100
_OR_NULL = " or null"
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def describe(model: type[BaseModel]) -> str:
    """The schema of a configuration as readable text: ``key: type (default)``, documentation below.

    Keys of a section stand under it, two spaces further in, those of a list's entries behind a dash.
    """
    return "\n".join([*_comment(model.__doc__, ""), "", *_section(model, "")])


def _section(model: type[BaseModel], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        yield f"{indent}{name}: {type_name(field.annotation, field.metadata)} ({_default(field, inner)})"
        yield from _comment(documentation(field), indent + "    ")
        for one in inner:
            if documentation(field) != one.__doc__:
                yield from _comment(one.__doc__, indent + "    ")
            yield from _section(one, indent + "  ")


def documentation(field: FieldInfo) -> str | None:
    """The docstring below a field; of a section without one that of its model."""
    if field.description:
        return field.description
    return next((one.__doc__ for one in models_in(field.annotation)), None)


def _comment(text: str | None, indent: str) -> Iterator[str]:
    if text:
        for paragraph in text.strip().split("\n\n"):
            mark = f"{indent}# "
            flat = " ".join(paragraph.split())
            yield from textwrap.wrap(flat, _WIDTH, initial_indent=mark, subsequent_indent=mark)


def _default(field: FieldInfo, inner: list[type[BaseModel]]) -> str:
    if field.is_required():
        return "required" if not inner else "a section; some of its keys are required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "a section; the defaults of its keys"
    plain = list(value) if isinstance(value, tuple) else value
    return f"default: {json.dumps(plain, default=str)}"


def type_name(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """A type annotation in words, with its limits."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0], [*arguments[1:], *metadata])
    name = _bare_name(annotation, origin, arguments)
    name, null = (name.removesuffix(_OR_NULL), _OR_NULL) if name.endswith(_OR_NULL) else (name, "")
    limits = " and ".join(text for one in metadata for text in _limits(one))
    return (f"{name} {limits}" if limits else name) + null


def _bare_name(annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    if annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(one) for one in arguments)
    if origin in (tuple, list):
        if arguments[0] is Path:
            return "list of files or patterns"
        if len(arguments) > 1 and arguments[1] is not Ellipsis:
            return f"[{', '.join(type_name(one) for one in arguments)}]"
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"mapping from {type_name(arguments[0])} to {type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(one: Any) -> Iterator[str]:
    inner = getattr(one, "metadata", None)  # a FieldInfo inside Annotated
    if inner is not None:
        for limit in inner:
            yield from _limits(limit)
        return
    for kind, sign, name in ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"), (Lt, "<", "lt")):
        if isinstance(one, kind):
            yield f"{sign} {getattr(one, name):g}"
    if isinstance(one, MinLen):
        yield f"of {one.min_length} or more"


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configuration models that occur in a type annotation."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in typing.get_args(annotation) for found in models_in(argument)]
