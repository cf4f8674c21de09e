"""What a grid's results say, arm by arm, and the files that show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.bench.cubes import METRICS, ORIGINAL, Cube, cube_of, scores_of
from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.marks import note_of
from nnunet_ssl.bench.results import key_of, latest, read_results
from nnunet_ssl.bench.statistics import Comparison, Scores, Summary, compare, holm, summarise
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import write_text

ArmKey = tuple[int, int | str, str, str, str]  # dataset, labelled cases, pretraining, protocol, grid of the scores


@dataclass
class Target:
    """One class of an arm."""

    name: str
    summaries: dict[str, Summary | None]  # by metric
    comparison: Comparison | None = None
    p_holm: float | None = None


@dataclass
class Arm:
    """What the grid asks of one arm, and what there is of it, on one grid of voxels."""

    key: ArmKey
    jobs: list[Job]
    rows: list[Mapping[str, Any]]
    failed: int = 0
    cube: Cube | None = None
    summaries: dict[str, Summary | None] = field(default_factory=dict)  # by metric, of the mean over classes
    targets: list[Target] = field(default_factory=list)
    twin: Arm | None = None
    comparison: Comparison | None = None
    p_holm: float | None = None
    note: str = ""

    @property
    def scratch(self) -> bool:
        """Whether it starts from random weights."""
        return self.jobs[0].protocol.name == "scratch"

    @property
    def title(self) -> str:
        """Pretraining and protocol; scratch uses nothing of the pretraining but its plan."""
        pretraining, protocol = self.key[2:4]
        return f"{protocol} ({pretraining}'s plan)" if self.scratch else f"{pretraining} {protocol}"

    @property
    def parameters(self) -> int | None:
        """Parameters that learn."""
        return sum(self.rows[0]["trainable_parameters"].values()) if self.rows else None

    @property
    def seconds(self) -> float | None:
        """Wall time of all its jobs: training, prediction and scoring."""
        return sum(row["seconds"] for row in self.rows) if self.rows else None

    def say(self, words: str) -> None:
        """Add to the note."""
        self.note = "; ".join(filter(None, [self.note, words]))


def arms_of(grid: Grid) -> list[Arm]:
    """Every arm of the grid with its finished rows, summaries and comparison with its scratch twin."""
    done = latest(read_results(grid.results))
    arms: dict[ArmKey, Arm] = {}
    for job in grid.jobs():
        row = done.get(key_of(job))
        further = job.protocol.preset.grid
        for of_grid in (ORIGINAL, further) if further else (ORIGINAL,):
            key = (job.dataset.id, job.labelled, job.pretraining.name, job.protocol.title, of_grid)
            arm = arms.setdefault(key, Arm(key, [], []))
            arm.jobs.append(job)
            if row is not None and row["status"] == "done" and scores_of(row, of_grid):
                arm.rows.append(row)
            elif row is not None and row["status"] == "failed":
                arm.failed += 1
    for arm in arms.values():
        _summarise(arm)
    _compare(grid, arms)
    return list(arms.values())


def _summarise(arm: Arm) -> None:
    arm.say(note_of(arm.rows))
    if len(arm.rows) < len(arm.jobs):
        failed = f", {arm.failed} failed" if arm.failed else ""
        arm.say(f"{len(arm.rows)} of {len(arm.jobs)} jobs{failed}")
    if arm.rows:
        arm.cube = cube_of(arm.rows, arm.key[4])
        arm.summaries = {metric: _summary(arm.cube.table(metric)) for metric in METRICS}
        for name in arm.cube.classes:
            arm.targets.append(Target(name, {m: _summary(arm.cube.table(m, name)) for m in METRICS}))


def _summary(table: Scores) -> Summary | None:
    return summarise(table) if np.isfinite(table).any() else None


def _compare(grid: Grid, arms: Mapping[ArmKey, Arm]) -> None:
    """Each arm with the scratch arm of its twin, on the draws and subjects that both have.

    Holm's families: all arms on one grid of voxels, and all their classes.
    """
    for key, arm in arms.items():
        arm.twin = None if arm.scratch else _scratch_arm(arm, grid.twin_of(key[2]), arms)
        if arm.twin is None or arm.cube is None or arm.twin.cube is None:
            continue
        own, theirs, left_out = arm.cube.shared(arm.twin.cube)
        arm.comparison = _comparison(own, theirs)
        if arm.comparison is not None and left_out:
            arm.say(f"compared on {left_out}")
        for target in arm.targets:
            if target.name in theirs.classes:
                target.comparison = _comparison(own, theirs, target.name)
    for of_grid in dict.fromkeys(key[4] for key in arms):
        family = [arm for key, arm in arms.items() if key[4] == of_grid]
        for members in (family, [target for arm in family for target in arm.targets]):
            for member, p in zip(members, holm([m.comparison and m.comparison.p for m in members]), strict=True):
                member.p_holm = p


def _comparison(own: Cube, theirs: Cube, target: str | None = None) -> Comparison | None:
    tables = own.table("dice", target), theirs.table("dice", target)
    return compare(*tables) if np.isfinite(tables[0] - tables[1]).any() else None


def _scratch_arm(arm: Arm, twin: str, arms: Mapping[ArmKey, Arm]) -> Arm | None:
    """The first scratch arm of the same dataset, labelled cases, protocol of evaluation, grid and steps, or none."""
    wanted = (*arm.key[:2], twin, arm.key[4])
    found = [other for key, other in arms.items() if other.scratch and (*key[:3], key[4]) == wanted
             and other.jobs[0].protocol.preset == arm.jobs[0].protocol.preset]  # fmt: skip
    matched = [other for other in found if other.jobs[0].steps == arm.jobs[0].steps]
    if found and not matched:
        arm.say(f"not compared: no scratch arm of {arm.jobs[0].steps:,} steps")
    if len(matched) > 1:
        arm.say(f"compared with {matched[0].title}, the grid's first of {len(matched)} scratch arms")
    return matched[0] if matched else None


def write_report(grid: Grid, output: str | Path | None = None) -> Path:
    """Write all tables, figures and the page; the folder. Raises UserError where nothing is done yet."""
    from nnunet_ssl.bench.means import means_of
    from nnunet_ssl.bench.page import as_html, figures_of
    from nnunet_ssl.bench.published_rows import as_markdown as published_markdown
    from nnunet_ssl.bench.published_rows import published_for
    from nnunet_ssl.bench.tables import as_csv, as_latex, as_markdown, draw_rows, subjects_csv, table_rows, target_rows

    arms = arms_of(grid)
    if not any(arm.rows for arm in arms):
        raise UserError(f"{grid.results} has no finished job. Run `nnunet_ssl bench run {grid.path}` first.")
    folder = Path(output) if output else grid.beside("_report")
    means = means_of(arms)
    rows, targets, published = [*table_rows(arms), *means], target_rows(arms), published_for(grid)
    write_text(folder / "arms.csv", as_csv(rows))
    write_text(folder / "targets.csv", as_csv(targets))
    write_text(folder / "draws.csv", as_csv(draw_rows(arms)))
    write_text(folder / "subjects.csv", subjects_csv(arms))
    write_text(folder / "table.md", as_markdown(rows) + published_markdown(published))
    write_text(folder / "table.tex", as_latex(rows))
    write_text(folder / "arms.json", json.dumps(rows, indent=1) + "\n")
    figures = figures_of(grid, arms, means)
    for name, figure in figures.items():
        write_text(folder / "figures" / f"{name}.svg", figure.text)
    write_text(folder / "index.html", as_html(grid, arms, means, figures, published))
    return folder
