"""The ssl block: unknown keys, wrong types, round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import pytest

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.recipe import parse, ssl_block, to_block
from nnunet_ssl.objectives.vox2vec import Recipe


@dataclass(frozen=True)
class Example:
    number: int = 1
    temperature: float = 0.1
    width: Literal["native"] | int = "native"
    span: tuple[float, float] = (0.0, 1.0)
    hidden: Sequence[int] | None = None
    probe: dict | None = None
    flag: bool = False

    def validate(self) -> None:
        if self.number < 1:
            raise ValueError("number is 0, expected at least 1")


def test_defaults_and_values() -> None:
    assert parse({}, Example) == Example()
    block = {"number": 3, "temperature": 1, "width": 32, "span": [0, 2], "hidden": [8, 8], "probe": {"every": 2}}
    example = parse(block, Example)
    assert example.temperature == 1.0 and isinstance(example.temperature, float)
    assert example.span == (0.0, 2.0) and example.hidden == (8, 8) and example.width == 32


@pytest.mark.parametrize("block, words", [
    ({"temprature": 0.1}, 'Did you mean "temperature"'),
    ({"zzz": 0.1}, "Known keys"),
    ({"number": 1.5}, "a whole number"),
    ({"number": True}, "a whole number"),
    ({"flag": 1}, "true or false"),
    ({"temperature": "hot"}, "a number"),
    ({"width": "wide"}, '"native" or a whole number'),
    ({"span": [1]}, "2 values"),
    ({"hidden": ["a"]}, "or null"),
    ({"probe": []}, "an object"),
    ({"number": 0}, "expected at least 1"),
])
def test_refused(block: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse(block, Example)


def test_round_trip_of_the_recipe() -> None:
    recipe = parse({"temperature": 0.07, "pairs_per_batch": None, "projector_hidden": [16]}, Recipe)
    assert recipe.temperature == 0.07
    assert parse(to_block(recipe), Recipe) == recipe


def test_block_of_a_configuration() -> None:
    assert ssl_block(SimpleNamespace(configuration={})) == {}
    configuration = {"ssl": {"seed": 1}}
    block = ssl_block(SimpleNamespace(configuration=configuration))
    block["seed"] = 2
    assert configuration["ssl"]["seed"] == 1
    with pytest.raises(UserError, match="ssl"):
        ssl_block(SimpleNamespace(configuration={"ssl": [1]}))
