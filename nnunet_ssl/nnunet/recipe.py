"""The ``ssl`` block of a plan's configuration <-> a Recipe (any dataclass of JSON-able fields)."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from nnunet_ssl.errors import UserError, did_you_mean

T = TypeVar("T")
_UNIONS = (typing.Union, types.UnionType)
_LISTS = (list, tuple, collections.abc.Sequence)


def ssl_block(configuration_manager: Any) -> dict[str, Any]:
    """The ``ssl`` block of an nnU-Net configuration (a copy), empty where the plan has none."""
    block = configuration_manager.configuration.get("ssl", {})
    if not isinstance(block, dict):
        raise UserError(f'The plan\'s "ssl" block is {json.dumps(block)}, expected an object such as {{"seed": 0}}.')
    return json.loads(json.dumps(block))


def parse(block: Mapping[str, Any], cls: type[T]) -> T:
    """Make ``cls`` (a dataclass) from ``block``; absent fields keep their defaults.

    Raises UserError for an unknown key (the nearest known one is named), a value of the wrong type, and whatever
    ``cls.validate()`` refuses.
    """
    hints = typing.get_type_hints(cls)
    check_names(block, cls)
    values = {}
    for key, value in block.items():
        try:
            values[key] = _convert(value, hints[key])
        except TypeError:
            raise UserError(f"ssl.{key} is {json.dumps(value)}, expected {_describe(hints[key])}.") from None
    try:
        recipe = cls(**values)
        if hasattr(recipe, "validate"):
            recipe.validate()
    except ValueError as error:
        raise UserError(f"The plan's ssl block cannot be used: {error}") from None
    return recipe


def check_names(block: Mapping[str, Any], cls: type[Any]) -> None:
    """UserError for a key of ``block`` that is no field of ``cls``."""
    names = [field.name for field in dataclasses.fields(cls)]
    for key in block:
        if key not in names:
            raise UserError(_unknown(key, names))


def to_block(recipe: Any) -> dict[str, Any]:
    """All fields of a recipe as plain JSON values: ``parse(to_block(r), type(r)) == r``."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _unknown(key: str, names: list[str]) -> str:
    hint = did_you_mean(key, names)
    return f'Unknown key "{key}" in the plan\'s ssl block.{hint} Known keys: {", ".join(sorted(names))}.'


def _convert(value: Any, hint: Any) -> Any:
    """``value`` (from JSON) as the type ``hint``: lists become tuples, whole numbers floats. TypeError otherwise."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in _UNIONS:
        return _convert_union(value, arguments)
    if origin is typing.Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            raise TypeError
        return value
    if hint in _LISTS or origin in _LISTS:
        return _convert_list(value, origin or hint, arguments)
    if hint in (dict, Mapping) or origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise TypeError
        return dict(value)
    if hint in (None, type(None)):
        if value is not None:
            raise TypeError
        return None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    return value


def _convert_union(value: Any, alternatives: tuple[Any, ...]) -> Any:
    # A whole number stays whole where both int and float are allowed.
    if int in alternatives and isinstance(value, int) and not isinstance(value, bool):
        return value
    for alternative in alternatives:
        try:
            return _convert(value, alternative)
        except TypeError:
            continue
    raise TypeError


def _convert_list(value: Any, container: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise TypeError
        return tuple(_convert(v, hint) for v, hint in zip(value, arguments, strict=True))
    items = [_convert(v, arguments[0]) if arguments else v for v in value]
    return items if container is list else tuple(items)


def _describe(hint: Any) -> str:
    """A type in words that fit a JSON file."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is typing.Literal:
        return " or ".join(json.dumps(argument) for argument in arguments)
    if hint in _LISTS or origin in _LISTS:
        items = [argument for argument in arguments if argument is not Ellipsis]
        if not items:
            return "a list"
        count = f"{len(items)} values" if arguments[-1] is not Ellipsis and len(items) > 1 else "values"
        return f"a list of {count} ({_describe(items[0])} each)"
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "an object"}
    return "null" if hint in (None, type(None)) else words.get(hint, words.get(origin, str(hint)))
