"""``--set key=value`` and ``--overlay FILE``: changes to one configuration of a plan, checked against what it knows."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from nnunet_ssl import objectives
from nnunet_ssl.errors import UserError, did_you_mean
from nnunet_ssl.nnunet.datasets import load_json
from nnunet_ssl.nnunet.recipe import check_names, parse, to_block

SPACINGS = ("auto", "pretrained", "target")  # of adapt: whose spacing a labelled dataset gets
WORDS = {"None": None, "True": True, "False": False}  # Python's; "none" is a value of some fields
# a configuration with one of these of its own cannot share its parent's preprocessed data
DATA_KEYS = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)


def parse_setting(text: str) -> dict[str, Any]:
    """``ssl.temperature=0.07`` -> ``{"ssl": {"temperature": 0.07}}``; values are JSON, or else text."""
    key, separator, value = text.partition("=")
    names = key.strip().split(".")
    if not separator or not all(names):
        raise UserError(f"--set {text} is not of the form key=value, e.g. --set ssl.temperature=0.07.")
    try:
        content = json.loads(value)
    except ValueError:
        content = WORDS.get(value.strip(), value.strip())
    for name in reversed(names):
        content = {name: content}
    return content


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``change`` over it, objects merged key by key, everything else replaced. Neither is modified."""
    merged = deepcopy(dict(base))
    for key, value in change.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = merge(old, value) if both else deepcopy(value)  # type: ignore[arg-type]
    return merged


def collect(overlays: Iterable[str | Path], settings: Iterable[str]) -> dict[str, Any]:
    """All changes of one command as one object: overlays in order, then ``--set``, the later one wins."""
    changes: dict[str, Any] = {}
    for path in overlays:
        content = load_json(Path(path))
        content.pop("description", None)
        changes = merge(changes, content)
    for setting in settings:
        changes = merge(changes, parse_setting(setting))
    return changes


def check_keys(changes: Mapping[str, Any], configuration: Mapping[str, Any], where: str) -> None:
    """UserError for a key that the configuration does not have, with the nearest one."""
    known = sorted({*configuration, "ssl", *DATA_KEYS})
    for key in changes:
        if key in ("inherits_from", "data_identifier"):
            raise UserError(f"{key} of {where} is decided by nnunet_ssl and cannot be set.")
        if key not in known:
            of_ssl = key in configuration.get("ssl", {})
            hint = f' Did you mean "ssl.{key}"?' if of_ssl else did_you_mean(key, known)
            raise UserError(
                f'"{key}" is no setting of {where}.{hint} Known: {", ".join(known)}; settings of the pretraining start '
                "with ssl. (ssl.temperature)."
            )


def check_ssl_names(changes: Mapping[str, Any], cls: type[Any]) -> None:
    """UserError for a misspelt field of the ``ssl`` block, before anything is read of a dataset."""
    block = changes.get("ssl")
    if isinstance(block, Mapping):
        check_names(block, cls)


def recipe_class(block: Mapping[str, Any]) -> type[Any]:
    """The Recipe of the objective that an ``ssl`` block names: class ``Recipe`` of ``nnunet_ssl.objectives.<name>``."""
    name = block.get("objective", "vox2vec")
    if name not in objectives.names():
        raise UserError(f'ssl.objective is "{name}"; known objectives: {", ".join(objectives.names())}.')
    return importlib.import_module(f"nnunet_ssl.objectives.{name}").Recipe


def pretrain_trainer(objective: str) -> str | None:
    """The trainer of an objective: the file of ``nnunet_ssl.trainers`` that is called <objective>PretrainTrainer."""
    names = [path.name[:-3] for path in files("nnunet_ssl.trainers").iterdir() if path.name.endswith(".py")]
    return next((name for name in names if name.lower() == f"{objective}pretraintrainer"), None)


def complete(block: Mapping[str, Any], cls: type[Any] | None = None) -> dict[str, Any]:
    """Every field of the recipe, with the block's values: inheritance in plans is shallow, blocks are written whole."""
    return to_block(parse(block, cls or recipe_class(block)))
