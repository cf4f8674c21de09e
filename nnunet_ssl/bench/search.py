"""Learning rates of a grid's arms, chosen on training cases: each arm at several, scored on a fold's validation cases.

An arm is compared fairly only at a rate that was looked for as carefully as the others'. Rates lie on a ladder of half
powers of ten about the arm's own; an arm whose best is its least or greatest gets a further one beyond.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from nnunet_ssl.bench.grid import Dataset, Grid, Job
from nnunet_ssl.bench.results import key_of, latest, read_results
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.downstream.settings import resolve
from nnunet_ssl.nnunet.recipe import parse

FIRST = (-1, 0, 1)  # rungs that every arm is tried at; 0 is its own rate
SUFFIX = "-search"  # of the plans' names: the grid's own trainings keep theirs
PROTOCOLS = {"linear": "linear_probe", "nonlinear": "nonlinear_probe", "frozen": "frozen", "finetune": "fine_tune",
             "scratch": "scratch"}  # fmt: skip


class Arm(NamedTuple):
    """What has a rate of its own."""

    dataset: int
    pretraining: str
    protocol: str  # its title


@dataclass(frozen=True)
class Search(Grid):
    """A grid whose jobs are those of ``rates``: arm -> its learning rates."""

    rates: Mapping[Arm, Sequence[float]] = field(default_factory=dict)

    def jobs(self) -> Iterator[Job]:
        """Every job of the grid at every rate of its arm."""
        for job in super().jobs():
            for rate in self.rates.get(arm_of(job), ()):
                title = f"{job.protocol.title}-lr{rate:g}".replace(".", "p")  # a name of folders
                yield replace(
                    job, protocol=replace(job.protocol, label=title), settings={**job.settings, "initial_lr": rate}
                )


@dataclass(frozen=True)
class Found:
    """Of one arm: mean Dice by rate, None where a training failed."""

    arm: Arm
    dice: Mapping[float, float | None]
    own: float  # the rate of the grid

    @property
    def best(self) -> float | None:
        """The rate of the highest Dice; None where every training failed."""
        done = {rate: dice for rate, dice in self.dice.items() if dice is not None}
        return max(done, key=lambda rate: done[rate]) if done else None

    @property
    def beyond(self) -> int:
        """-1 or 1 where the best is the least or greatest rate that was tried, else 0."""
        return 0 if self.best is None else (self.best == max(self.dice)) - (self.best == min(self.dice))


def arm_of(job: Job) -> Arm:
    """The arm of a job of a grid, not of a Search."""
    return Arm(job.dataset.id, job.pretraining.name, job.protocol.title)


def own_rate(job: Job) -> float:
    """The learning rate that a job has."""
    module = importlib.import_module(f"nnunet_ssl.nnunet.downstream.protocols.{PROTOCOLS[job.protocol.name]}")
    return resolve(parse(job.settings, DownstreamRecipe), module.PROTOCOL).initial_lr


def rung(own: float, step: int) -> float:
    """The rate `step` half powers of ten above (below) `own`, with one digit; `own` itself for 0."""
    return own if step == 0 else float(f"{own * 10 ** (step / 2):.0e}")


def search_of(grid: Grid, labelled: int | str | None = None, draws: int = 1, fold: int | str = 0) -> Search:
    """The grid with one number of labelled cases (default: the middle one of each dataset's), scored on the
    validation cases of `fold`. UserError where the grid itself scores these: that would be choosing on what is scored.
    """
    for dataset in grid.datasets:
        if dataset.cases == "validation" and str(fold) in map(str, dataset.folds):
            raise UserError(
                f"The grid scores the validation cases of dataset {dataset.id}'s fold {fold}: a rate chosen on them "
                "would be chosen on what is scored. Give --fold a fold that is not among the grid's."
            )

    def searched(dataset: Dataset) -> Dataset:
        number = dataset.labelled[len(dataset.labelled) // 2] if labelled is None else labelled
        return replace(dataset, cases="validation", folds=(fold,), labelled=(number,), draws=draws)

    same = {f.name: getattr(grid, f.name) for f in fields(Grid)}
    same["path"] = grid.beside("_search.toml")
    same["datasets"] = [searched(dataset) for dataset in grid.datasets]
    for dataset in same["datasets"]:
        dataset.check()
    same["pretrainings"] = [
        replace(p, name=p.name + SUFFIX, twin=None if p.twin is None else p.twin + SUFFIX) for p in grid.pretrainings
    ]
    plain = Grid(**same)
    own = {arm_of(job): own_rate(job) for job in plain.jobs()}
    return Search(**same, rates={arm: [rung(rate, step) for step in FIRST] for arm, rate in own.items()})


def run_search(search: Search, run: Callable[[Search], Any], more: int) -> list[Found]:
    """Run the search, and for arms whose best rate lies at an end up to `more` further rates; what was found.

    :param run: runs what a Search still lacks and leaves its rows in ``search.results``
    """
    own = {arm: rates[FIRST.index(0)] for arm, rates in search.rates.items()}
    steps = {arm: list(FIRST) for arm in own}
    new: Mapping[Arm, Sequence[float]] = search.rates
    while new:
        run(replace(search, rates=new))  # what failed before is not tried again
        tried = replace(search, rates={arm: [rung(own[arm], step) for step in steps[arm]] for arm in own})
        rows = latest(read_results(search.results))
        found = [_found(tried, arm, own[arm], rows) for arm in own]
        wider = [one for one in found if one.beyond and len(steps[one.arm]) < len(FIRST) + more]
        for one in wider:
            ends = {-1: min(steps[one.arm]) - 1, 1: max(steps[one.arm]) + 1}
            steps[one.arm].append(ends[one.beyond])
        new = {one.arm: [rung(own[one.arm], steps[one.arm][-1])] for one in wider}
    return found


def _found(search: Search, arm: Arm, own: float, rows: Mapping[str, Mapping[str, Any]]) -> Found:
    dice: dict[float, list[float | None]] = {}
    for job in replace(search, rates={arm: search.rates[arm]}).jobs():
        row = rows.get(key_of(job), {"status": "missing"})
        dice.setdefault(job.settings["initial_lr"], []).append(_mean(row) if row["status"] == "done" else None)
    # a rate at which one of the draws fails is no rate to choose
    means = {rate: None if None in values else float(np.mean(values)) for rate, values in sorted(dice.items())}
    return Found(arm, means, own)


def _mean(row: Mapping[str, Any]) -> float | None:
    values = [m["dice"] for classes in row["scores"].values() for m in classes.values() if m["dice"] is not None]
    return float(np.mean(values)) if values else None


def lines_of(search: Search, found: Sequence[Found]) -> list[str]:
    """What was found, a line an arm, and what to write in the grid."""
    lines = []
    for dataset in search.datasets:
        lines.append(f"dataset {dataset.id}: {dataset.labelled[0]} labelled cases, draws: {dataset.draws}, Dice on the "
                     f"validation cases of fold {dataset.folds[0]}")  # fmt: skip
        for one in (one for one in found if one.arm.dataset == dataset.id):
            of = f"{one.arm.pretraining.removesuffix(SUFFIX)}, {one.arm.protocol}"
            tried = "  ".join(f"{rate:g}: {'failed' if d is None else f'{d:.3f}'}" for rate, d in one.dice.items())
            lines.append(f"  {of}:  {tried}  -> {_advice(one)}")
    return lines


def _advice(one: Found) -> str:
    if one.best is None:
        return "every training failed"
    advice = f"initial_lr = {one.best:g}"
    if one.beyond:
        return f"{advice}, at an end of what was tried (--more)"
    return advice + (", as it is" if one.best == one.own else "")
