"""A grid of trainings, read from a TOML file: dataset x pretraining x protocol x labelled cases x draw x fold."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.bench.specs import TRAINERS, Dataset, Pretraining, Protocol, check_keys, made, require
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["TRAINERS", "Dataset", "Grid", "Job", "Pretraining", "Protocol", "read_grid"]


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
    plan: Mapping[str, Any] = field(default_factory=dict)  # of the configuration around it

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

    @property
    def steps(self) -> int:
        """Training steps."""
        defaults = DownstreamRecipe()
        names = ("num_epochs", "num_iterations_per_epoch")
        return math.prod(int(self.settings.get(name, getattr(defaults, name))) for name in names)

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
    plan: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        """Where the results go: beside the file, one line a finished or failed job."""
        return self.beside(".results.jsonl")

    def beside(self, ending: str) -> Path:
        """A file or folder beside the grid's, with its name and another ending."""
        return self.path.with_name(f"{self.path.stem}{ending}")

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

    def _job(
        self,
        dataset: Dataset,
        pretraining: Pretraining,
        protocol: Protocol,
        labelled: int | str,
        draw: int,
        fold: int | str,
    ) -> Job:
        chosen = {} if labelled == "all" else {"labelled": {"n": labelled, "draw": draw}}
        preset = protocol.preset
        own = pretraining.settings.get(protocol.title, {})
        settings = {**preset.settings, **self.settings, **protocol.settings, **own, **chosen}
        plan = {**preset.plan, **self.plan, **protocol.plan}
        return Job(dataset, pretraining, protocol, labelled, draw, fold, settings, plan)

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
    known = {"name", "protocol", "settings", "plan", "slurm", "datasets", "pretrainings", "protocols"}
    check_keys(content, known, str(path))
    require(isinstance(content.get("protocol", ""), str), "protocol", content.get("protocol"),
            'the name of a protocol of evaluation, e.g. "vox2vec" (tables of trainers are [[protocols]])')
    of_all = {"protocols": {"protocol": content["protocol"]}} if "protocol" in content else {}
    parts = {
        key: [made(cls, row, f"{path}, {key}", of_all.get(key, {})) for row in content.get(key, [])]
        for key, cls in (("datasets", Dataset), ("pretrainings", Pretraining), ("protocols", Protocol))
    }
    for key, rows in parts.items():
        if not rows:
            raise UserError(f"{path} has no [[{key}]]; expected at least one.")
    tables = {key: content.get(key, {}) for key in ("settings", "plan", "slurm")}
    for key, table in tables.items():
        require(isinstance(table, Mapping), key, table, f"a table, [{key}]")
    grid = Grid(path, content.get("name", path.stem), **parts, **tables)  # type: ignore[arg-type]
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
        check_keys(pretraining.settings, [p.title for p in grid.protocols], f"the settings of {pretraining.name}")


