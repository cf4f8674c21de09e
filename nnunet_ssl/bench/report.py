"""What a grid's results say, arm by arm, and the files that show it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.leakage import note_of
from nnunet_ssl.bench.results import key_of, latest, read_results
from nnunet_ssl.bench.statistics import Comparison, Scores, Summary, compare, holm, summarise
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import write_text

METRICS = ("dice", "nsd")
Table = tuple[Scores, list[int], list[str]]  # (R, S), its draws, its subjects
ArmKey = tuple[int, int | str, str, str]  # dataset, labelled cases, pretraining, protocol


@dataclass
class Arm:
    """What the grid asks of one arm, and what there is of it."""

    key: ArmKey
    jobs: list[Job]
    rows: list[Mapping[str, Any]]
    failed: int = 0
    tables: dict[str, Table] = field(default_factory=dict)  # by metric
    summaries: dict[str, Summary | None] = field(default_factory=dict)
    classes: dict[str, float | None] = field(default_factory=dict)
    comparison: Comparison | None = None
    p_holm: float | None = None
    note: str = ""

    @property
    def title(self) -> str:
        """Pretraining and protocol; scratch uses nothing of the pretraining but its plan."""
        return f"scratch ({self.key[2]}'s plan)" if self.jobs[0].protocol.name == "scratch" else " ".join(self.key[2:])

    @property
    def parameters(self) -> int | None:
        """Parameters that learn."""
        return sum(self.rows[0]["trainable_parameters"].values()) if self.rows else None


def arms_of(grid: Grid) -> list[Arm]:
    """Every arm of the grid with its finished rows, summaries and comparison with its scratch twin."""
    done = latest(read_results(grid.results))
    arms: dict[ArmKey, Arm] = {}
    for job in grid.jobs():
        key = (job.dataset.id, job.labelled, job.pretraining.name, job.protocol.title)
        arm = arms.setdefault(key, Arm(key, [], []))
        arm.jobs.append(job)
        row = done.get(key_of(job))
        if row is not None and row["status"] == "done":
            arm.rows.append(row)
        elif row is not None:
            arm.failed += 1
    for arm in arms.values():
        arm.tables = {metric: score_table(arm.rows, metric) for metric in METRICS}
        arm.summaries = {m: summarise(t[0]) if np.isfinite(t[0]).any() else None for m, t in arm.tables.items()}
        arm.classes = class_means(arm.rows)
        missing = ""
        if len(arm.rows) < len(arm.jobs):
            failed = f", {arm.failed} failed" if arm.failed else ""
            missing = f"{len(arm.rows)} of {len(arm.jobs)} jobs{failed}"
        arm.note = "; ".join(filter(None, [note_of(arm.rows), missing]))
    _compare(grid, arms)
    return list(arms.values())


def _compare(grid: Grid, arms: Mapping[ArmKey, Arm]) -> None:
    """Each arm with the scratch arm of its twin, on the draws and subjects that both have."""
    compared = []
    for key, arm in arms.items():
        if arm.jobs[0].protocol.name == "scratch":
            continue
        twin = _scratch_arm((*key[:2], grid.twin_of(key[2])), arms)
        if twin is None or not arm.rows or not twin.rows:
            continue
        (mine, draws, subjects), (theirs, their_draws, their_subjects) = arm.tables["dice"], twin.tables["dice"]
        shared = [d for d in draws if d in their_draws], [s for s in subjects if s in their_subjects]
        if not all(shared):
            continue
        picked = [
            t[np.ix_([d.index(x) for x in shared[0]], [s.index(x) for x in shared[1]])]
            for t, d, s in ((mine, draws, subjects), (theirs, their_draws, their_subjects))
        ]
        if not np.isfinite(picked[0] - picked[1]).any():
            continue
        arm.comparison = compare(picked[0], picked[1])
        compared.append(arm)
        if len(shared[0]) < max(len(draws), len(their_draws)):
            arm.note = "; ".join(filter(None, [arm.note, f"compared on {len(shared[0])} shared draws"]))
    for arm, p in zip(compared, holm([arm.comparison.p for arm in compared if arm.comparison]), strict=True):
        arm.p_holm = p


def _scratch_arm(where: tuple[int, int | str, str], arms: Mapping[ArmKey, Arm]) -> Arm | None:
    """The scratch arm of a dataset, a number of labelled cases and a pretraining."""
    found = (arm for key, arm in arms.items() if key[:3] == where and arm.jobs[0].protocol.name == "scratch")
    return next(found, None)


def score_table(rows: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """(R, S) scores, the draws and the subjects: a subject's mean over classes and over the folds that scored it."""
    found: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        for subject, classes in row["scores"].items():
            values = [scores[metric] for scores in classes.values() if scores.get(metric) is not None]
            if values:
                found.setdefault((row["job"]["draw"], subject), []).append(sum(values) / len(values))
    draws, subjects = sorted({d for d, _ in found}), sorted({s for _, s in found})
    places = {d: i for i, d in enumerate(draws)}, {s: i for i, s in enumerate(subjects)}
    table = np.full((max(len(draws), 1), max(len(subjects), 1)), np.nan)
    for (draw, subject), values in found.items():
        table[places[0][draw], places[1][subject]] = sum(values) / len(values)
    return table, draws, subjects


def class_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Class -> mean Dice over all subjects, draws and folds that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for classes in row["scores"].values():
            for name, scores in classes.items():
                values.setdefault(name, [])
                if scores["dice"] is not None:
                    values[name].append(scores["dice"])
    return {name: sum(v) / len(v) if v else None for name, v in values.items()}


def write_report(grid: Grid, output: str | Path | None = None) -> Path:
    """Write all tables and the page; the folder. Raises UserError where nothing is done yet."""
    from nnunet_ssl.bench.page import as_html
    from nnunet_ssl.bench.tables import as_csv, as_latex, as_markdown, subject_rows, table_rows

    arms = arms_of(grid)
    if not any(arm.rows for arm in arms):
        raise UserError(f"{grid.results} has no finished job. Run `nnunet_ssl bench run {grid.path}` first.")
    folder = Path(output) if output else grid.path.with_name(f"{grid.path.stem}_report")
    rows = table_rows(arms)
    write_text(folder / "arms.csv", as_csv(rows))
    write_text(folder / "subjects.csv", as_csv(subject_rows(arms)))
    write_text(folder / "table.md", as_markdown(rows))
    write_text(folder / "table.tex", as_latex(rows))
    write_text(folder / "arms.json", json.dumps(rows, indent=1) + "\n")
    write_text(folder / "index.html", as_html(grid, arms))
    return folder
