"""The tables of a grid's TOML file: what one may write in each, and what it means."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from nnunet_ssl.bench.presets import DEFAULT, Preset, load_preset
from nnunet_ssl.bench.task import load_task
from nnunet_ssl.errors import UserError, did_you_mean
from nnunet_ssl.nnunet.settings import SPACINGS

TRAINERS = {
    "linear": "SSLLinearProbeTrainer",
    "nonlinear": "SSLNonlinearProbeTrainer",
    "frozen": "SSLFrozenTrainer",
    "finetune": "SSLFineTuneTrainer",
    "scratch": "SSLScratchTrainer",
}
NAME = re.compile(r"[A-Za-z0-9-]+")
T = TypeVar("T")


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset. id: its number; labelled: numbers of training cases, or "all"; cases: "test" scores
    imagesTs against labelsTs, "validation" the fold's validation cases; tolerance_mm: of the surface Dice; ``adapt``:
    settings of ``nnunet_ssl adapt`` for it (``patch_size=[64,64,64]``), ``spacing``: its ``--spacing``; step_size: of
    the sliding window; task: its name in ``bench tasks``, which heads its tables and puts published
    figures beside them.
    """

    id: int
    labelled: Sequence[int | str] = ("all",)
    draws: int = 1
    folds: Sequence[int | str] = (0,)
    cases: str = "test"
    tolerance_mm: float = 1.0
    adapt: Sequence[str] = ()
    spacing: str = "auto"
    step_size: float = 0.5
    task: str | None = None

    def check(self) -> None:
        """Raise UserError for values that cannot be used."""
        good = all(n == "all" or (type(n) is int and n >= 1) for n in self.labelled)
        require(bool(self.labelled) and good, "datasets.labelled", self.labelled, 'a list of whole numbers and "all"')
        require(type(self.draws) is int and self.draws >= 1, "datasets.draws", self.draws, "a whole number from 1 up")
        require(self.cases in ("test", "validation"), "datasets.cases", self.cases, '"test" or "validation"')
        require(self.tolerance_mm > 0, "datasets.tolerance_mm", self.tolerance_mm, "a number above 0")
        require(0 < self.step_size <= 1, "datasets.step_size", self.step_size, "a number above 0, at most 1")
        good = all(isinstance(given, str) and re.match(r"[A-Za-z]\w*(\.\w+)*=", given) for given in self.adapt)
        require(good, "datasets.adapt", self.adapt, 'a list of KEY=VALUE, e.g. ["patch_size=[64,64,64]"]')
        require(self.spacing in SPACINGS, "datasets.spacing", self.spacing, f"one of {', '.join(SPACINGS)}")
        if self.task is not None:
            load_task(self.task)
        require(bool(self.folds), "datasets.folds", self.folds, 'a list of folds, e.g. [0] or ["all"]')


@dataclass(frozen=True)
class Pretraining:
    """A checkpoint (``~`` and ``$nnUNet_results`` are filled in) and what the tables call it. twin: the pretraining
    whose scratch arm is this one's comparison (same network, patch and data); default its own. settings: by a
    protocol's title, fields of the ``ssl`` block over that protocol's (``{finetune = {initial_lr = 0.3}}``).
    """

    name: str
    checkpoint: str
    twin: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UserError for values that cannot be used."""
        require(bool(NAME.fullmatch(self.name)), "pretrainings.name", self.name, "letters, digits and -")
        good = all(isinstance(table, Mapping) for table in self.settings.values())
        require(good, "pretrainings.settings", self.settings, "tables by protocol: {finetune = {initial_lr = 0.3}}")

    @property
    def path(self) -> str:
        """Of the checkpoint, filled in."""
        return os.path.expandvars(os.path.expanduser(self.checkpoint))


@dataclass(frozen=True)
class Protocol:
    """A trainer, and fields of its ``ssl`` block. name: linear, nonlinear, frozen, finetune or scratch; label: what the
    tables call it, for two of the same trainer; protocol: the protocol of evaluation (``bench/protocols``), by default
    the grid's; plan: fields of the configuration around the ``ssl`` block (``{batch_size = 7}``).
    """

    name: str
    label: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UserError for values that cannot be used."""
        require(self.name in TRAINERS, "protocols.name", self.name, "one of " + ", ".join(TRAINERS))
        require(bool(NAME.fullmatch(self.title)), "protocols.label", self.label, "letters, digits and -")
        allowed = self.preset.trainers
        require(self.name in allowed, f"protocols.name with protocol {self.preset.name}", self.name,
                "one of " + ", ".join(allowed))

    @property
    def preset(self) -> Preset:
        """The protocol of evaluation. UserError for an unknown one."""
        return load_preset(self.protocol or DEFAULT)

    @property
    def title(self) -> str:
        """Its label, or its name, with the protocol of evaluation where that is not nnU-Net's."""
        return self.label or (self.name if self.preset.name == DEFAULT else f"{self.name}-{self.preset.name}")


def made(cls: type[T], row: Any, where: str, defaults: Mapping[str, Any]) -> T:
    """One table of the file as its dataclass; ``defaults``: what the file says for all of its kind."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is {json.dumps(row)}; expected tables, [[...]] in TOML.")
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    check_keys(row, names, where)
    try:
        spec = cls(**{**defaults, **row})
        spec.check()  # type: ignore[attr-defined]
    except TypeError as error:
        missing = [name for name in ("id", "name", "checkpoint") if name in names and name not in row]
        raise UserError(f"{where} lacks {', '.join(missing)}." if missing else f"{where}: {error}.") from None
    return spec


def check_keys(row: Mapping[str, Any], known: Any, where: str) -> None:
    """UserError for a key that is not known, with the nearest one."""
    for key in row:
        if key not in known:
            hint = did_you_mean(key, known)
            raise UserError(f'Unknown key "{key}" in {where}.{hint} Known: {", ".join(sorted(known))}.')


def require(good: bool, name: str, found: Any, expected: str) -> None:
    """UserError where not ``good``."""
    if not good:
        raise UserError(f"{name} is {json.dumps(found)}; expected {expected}.")
