"""Rules for the values of a recipe's fields: a test and the words that say what is expected.

    RULES = {"clip": or_none(number(0.0, above=True)), "loss": choice("info_nce", "vicreg")}
    check(recipe, RULES)        # ValueError: clip is -1; expected null or a number > 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """Whether a value will do, and what would."""

    test: Callable[[Any], bool]
    expected: str


def check(recipe: object, rules: Mapping[str, Rule], where: str = "") -> None:
    """Raise ValueError naming (after `where`) the first field of `recipe` that breaks its rule, what it is and what it
    may be.
    """
    for name, rule in rules.items():
        value = getattr(recipe, name)
        if not rule.test(value):
            raise ValueError(f"{where}{name} is {value!r}; expected {rule.expected}")


def choice(*allowed: str) -> Rule:
    """One of these words."""
    return Rule(lambda value: value in allowed, " or ".join(map(repr, allowed)))


def whole(least: int, most: float = math.inf) -> Rule:
    """An int (no bool) from `least` to `most`, both included."""
    words = f"a whole number >= {least}" if most == math.inf else f"a whole number from {least} to {most:g}"
    return Rule(lambda value: type(value) is int and least <= value <= most, words)


def number(least: float = -math.inf, most: float = math.inf, above: bool = False) -> Rule:
    """A finite int or float (no bool) from `least` (`above`: not itself included) to `most`."""

    def test(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return bool(least <= value <= most and not (above and value == least))

    bounds = [f"{'>' if above else '>='} {least:g}"] if least > -math.inf else []
    bounds += [f"<= {most:g}"] if most < math.inf else []
    return Rule(test, " ".join(["a number", " and ".join(bounds)]).strip())


def flag() -> Rule:
    """A bool."""
    return Rule(lambda value: type(value) is bool, "true or false")


def text() -> Rule:
    """A str that is not empty."""
    return Rule(lambda value: isinstance(value, str) and value != "", "a name")


def list_of(rule: Rule, length: int | None = None, distinct: bool = False) -> Rule:
    """A list (or tuple) whose every member keeps `rule`."""

    def test(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(rule.test, value)):
            return False
        return (length is None or len(value) == length) and not (distinct and len(set(value)) < len(value))

    size = "" if length is None else f" of {length}"
    return Rule(test, f"a list{size}, each member {rule.expected}" + (", none twice" if distinct else ""))


def interval(least: float = -math.inf, most: float = math.inf, above: bool = False) -> Rule:
    """[least, greatest] of a draw: two numbers in order."""
    pair = list_of(number(least, most, above=above), length=2)
    return Rule(lambda value: pair.test(value) and value[0] <= value[1], f"[least, greatest]: {pair.expected}")


def mapping(*keys: str) -> Rule:
    """A dict that has these keys (and may have more)."""
    words = "an object with the key " + ", ".join(map(repr, keys))
    return Rule(lambda value: isinstance(value, dict) and all(key in value for key in keys), words)


def either(first: Rule, second: Rule) -> Rule:
    """One rule or the other."""
    return Rule(lambda value: first.test(value) or second.test(value), f"{first.expected} or {second.expected}")


def or_none(rule: Rule) -> Rule:
    """None (null in JSON) or what `rule` asks for."""
    return Rule(lambda value: value is None or rule.test(value), f"null or {rule.expected}")
