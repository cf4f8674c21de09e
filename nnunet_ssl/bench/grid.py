"""A grid of trainings, read from a TOML file: dataset x pretraining x protocol x labelled cases x draw x fold."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from nnunet_ssl.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    settings of ``nnunet_ssl adapt`` for it (``patch_size=[64,64,64]``); step_size: of the sliding window.
    """

    id: int
    labelled: Sequence[int | str] = ("all",)
    draws: int = 1
    folds: Sequence[int | str] = (0,)
    cases: str = "test"
    tolerance_mm: float = 1.0
    adapt: Sequence[str] = ()
    step_size: float = 0.5

    def check(self) -> None:
        """Raise UserError for values that cannot be used."""
        good = all(n == "all" or (type(n) is int and n >= 1) for n in self.labelled)
        _require(bool(self.labelled) and good, "datasets.labelled", self.labelled, 'a list of whole numbers and "all"')
        _require(type(self.draws) is int and self.draws >= 1, "datasets.draws", self.draws, "a whole number from 1 up")
        _require(self.cases in ("test", "validation"), "datasets.cases", self.cases, '"test" or "validation"')
        _require(self.tolerance_mm > 0, "datasets.tolerance_mm", self.tolerance_mm, "a number above 0")
        _require(0 < self.step_size <= 1, "datasets.step_size", self.step_size, "a number above 0, at most 1")
        _require(bool(self.folds), "datasets.folds", self.folds, 'a list of folds, e.g. [0] or ["all"]')


@dataclass(frozen=True)
class Pretraining:
    """A checkpoint (``~`` and ``$nnUNet_results`` are filled in) and what the tables call it. twin: the pretraining
    whose scratch arm is this one's comparison (same network, patch and data); default its own.
    """

    name: str
    checkpoint: str
    twin: str | None = None

    def check(self) -> None:
        """Raise UserError for values that cannot be used."""
        _require(bool(NAME.fullmatch(self.name)), "pretrainings.name", self.name, "letters, digits and -")

    @property
    def path(self) -> str:
        """Of the checkpoint, filled in."""
        return os.path.expandvars(os.path.expanduser(self.checkpoint))


@dataclass(frozen=True)
class Protocol:
    """A trainer, and fields of its ``ssl`` block. name: linear, nonlinear, frozen, finetune or scratch; label: what the
    tables call it, for two of the same trainer.
    """

    name: str
    label: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UserError for values that cannot be used."""
        _require(self.name in TRAINERS, "protocols.name", self.name, "one of " + ", ".join(TRAINERS))
        _require(bool(NAME.fullmatch(self.title)), "protocols.label", self.label, "letters, digits and -")

    @property
    def title(self) -> str:
        """Its label, or its name."""
        return self.label or self.name


@dataclass(frozen=True)
class Job:
    """One training and its scores."""

    dataset: Dataset
    pretraining: Pretraining
    protocol: Protocol
    labelled: int | str
    draw: int
    fold: int | str
    settings: Mapping[str, Any]  # of the ssl block, complete

    @property
    def key(self) -> dict[str, Any]:
        """What tells jobs apart."""
        return {
            "dataset": self.dataset.id,
            "pretraining": self.pretraining.name,
            "protocol": self.protocol.title,
            "labelled": self.labelled,
            "draw": self.draw,
            "fold": self.fold,
        }

    @property
    def configuration(self) -> str:
        """The name of its configuration in the plan, and so of its results folder."""
        return f"bench_{self.protocol.title}_n{self.labelled}_d{self.draw}"

    @property
    def plans(self) -> str:
        """The name of its plan."""
        return f"bench_{self.pretraining.name}Plans"

    @property
    def trainer(self) -> str:
        """The name after ``-tr``."""
        return TRAINERS[self.protocol.name]

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.key.items())


@dataclass(frozen=True)
class Grid:
    """A whole file."""

    path: Path
    name: str
    datasets: Sequence[Dataset]
    pretrainings: Sequence[Pretraining]
    protocols: Sequence[Protocol]
    settings: Mapping[str, Any]

    @property
    def results(self) -> Path:
        """Where the results go: beside the file, one line a finished or failed job."""
        return self.path.with_name(f"{self.path.stem}.results.jsonl")

    def jobs(self) -> Iterator[Job]:
        """Every job, the cheap ones of each dataset first. A scratch arm that a twin has already is left out."""
        for dataset in self.datasets:
            for labelled in dataset.labelled:
                for draw in range(1 if labelled == "all" else dataset.draws):
                    for pretraining in self.pretrainings:
                        for protocol in self.protocols:
                            if protocol.name == "scratch" and pretraining.twin not in (None, pretraining.name):
                                continue
                            for fold in dataset.folds:
                                yield self._job(dataset, pretraining, protocol, labelled, draw, fold)

    def _job(self, dataset: Dataset, pretraining: Pretraining, protocol: Protocol, labelled: int | str, draw: int,
             fold: int | str) -> Job:  # fmt: skip
        chosen = {} if labelled == "all" else {"labelled": {"n": labelled, "draw": draw}}
        settings = {**self.settings, **protocol.settings, **chosen}
        return Job(dataset, pretraining, protocol, labelled, draw, fold, settings)

    def twin_of(self, pretraining: str) -> str:
        """The pretraining whose scratch arm belongs to this one."""
        return next((p.twin or p.name for p in self.pretrainings if p.name == pretraining), pretraining)


def read_grid(path: str | Path) -> Grid:
    """Read a grid. Raises UserError that names what cannot be used, and what can."""
    path = Path(path).absolute()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected the TOML file of a benchmark.") from None
    except ValueError as error:
        raise UserError(f"{path} is no TOML: {error}.") from None
    known = {"name", "settings", "datasets", "pretrainings", "protocols"}
    _check_keys(content, known, str(path))
    parts = {
        key: [_made(cls, row, f"{path}, {key}") for row in content.get(key, [])]
        for key, cls in (("datasets", Dataset), ("pretrainings", Pretraining), ("protocols", Protocol))
    }
    for key, rows in parts.items():
        if not rows:
            raise UserError(f"{path} has no [[{key}]]; expected at least one.")
    grid = Grid(path, content.get("name", path.stem), settings=content.get("settings", {}), **parts)  # type: ignore[arg-type]
    _check_names(grid)
    return grid


def _check_names(grid: Grid) -> None:
    for what, names in (
        ("pretraining", [p.name for p in grid.pretrainings]),
        ("protocol", [p.title for p in grid.protocols]),
        ("dataset", [d.id for d in grid.datasets]),
    ):
        twice = sorted({str(name) for name in names if names.count(name) > 1})  # type: ignore[arg-type]
        if twice:
            raise UserError(f"{grid.path} names the {what} {twice[0]} twice; give each its own name (or label).")
    names = [p.name for p in grid.pretrainings]
    for pretraining in grid.pretrainings:
        if pretraining.twin is not None and pretraining.twin not in names:
            raise UserError(f"The twin of {pretraining.name} is {pretraining.twin}; there are: {', '.join(names)}.")


def _made(cls: type[T], row: Any, where: str) -> T:
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is {json.dumps(row)}; expected tables, [[...]] in TOML.")
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    _check_keys(row, names, where)
    try:
        made = cls(**row)
        made.check()  # type: ignore[attr-defined]
    except TypeError as error:
        missing = [name for name in ("id", "name", "checkpoint") if name in names and name not in row]
        raise UserError(f"{where} lacks {', '.join(missing)}." if missing else f"{where}: {error}.") from None
    return made


def _check_keys(row: Mapping[str, Any], known: Any, where: str) -> None:
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise UserError(f'Unknown key "{key}" in {where}.{hint} Known: {", ".join(sorted(known))}.')


def _require(good: bool, name: str, found: Any, expected: str) -> None:
    if not good:
        raise UserError(f"{name} is {json.dumps(found)}; expected {expected}.")
