"""What the jobs of a grid will take: time by those that are done, disk by what those left, or by the checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.results import folders_of, key_of, latest, read_results
from nnunet_ssl.bench.tables import duration
from nnunet_ssl.nnunet.datasets import environment_folder

Row = Mapping[str, Any]
CHECKPOINTS = 2  # that a training leaves: the final one and the best


def estimate(grid: Grid, jobs: Sequence[Job]) -> list[str]:
    """What a dry run says: every job, then time and disk of every dataset's, and of all together."""
    rows = {key: row for key, row in latest(read_results(grid.results)).items() if row["status"] == "done"}
    finished = [(job, rows[key_of(job)]) for job in grid.jobs() if key_of(job) in rows]
    lines = [f"{job}: {job.steps:,} steps" for job in jobs]
    seconds, size = 0.0, 0
    for dataset in grid.datasets:
        own = [job for job in jobs if job.dataset.id == dataset.id]
        if own:
            time_known, disk = _seconds(own, finished), _bytes(own, finished)
            seconds, size = seconds + (time_known or 0.0), size + disk
            by = "the time shows after the first" if time_known is None else f"about {duration(time_known)}"
            steps = sum(job.steps for job in own)
            lines.append(f"dataset {dataset.id}: {len(own)} jobs, {steps:,} steps, {by}, about {_gigabytes(disk)}")
    return [*lines, _total(jobs, len(finished), seconds, size)]


def _total(jobs: Sequence[Job], finished: int, seconds: float, size: int) -> str:
    steps = f"{len(jobs)} jobs to run, {sum(job.steps for job in jobs):,} steps in all"
    if not jobs:
        return steps
    free = shutil.disk_usage(_existing(environment_folder("nnUNet_results"))).free
    room = f"about {_gigabytes(size)} of disk, {_gigabytes(free)} free" + ("" if size < free else ": NOT ENOUGH")
    by = f"about {duration(seconds)} one after the other, by {finished} that are done" if finished else "no time known"
    return f"{steps}; {by}; {room}"


def _seconds(jobs: Sequence[Job], finished: Sequence[tuple[Job, Row]]) -> float | None:
    """Of several jobs, each at the pace of those done that are most like it; None where nothing is done."""
    return sum(_pace(job, finished) * job.steps for job in jobs) if finished else None


def _pace(job: Job, finished: Sequence[tuple[Job, Row]]) -> float:
    """Seconds a step, prediction included: of the same dataset and protocol, else the same dataset, else of all."""
    same_dataset = [(other, row) for other, row in finished if other.dataset.id == job.dataset.id]
    alike = [row for other, row in same_dataset if other.protocol.title == job.protocol.title]
    chosen = alike or [row for _, row in same_dataset] or [row for _, row in finished]
    return sum(row["seconds"] for row in chosen) / max(sum(row["steps"] for row in chosen), 1)


def _bytes(jobs: Sequence[Job], finished: Sequence[tuple[Job, Row]]) -> int:
    """What the jobs will leave: as those of the dataset have left, or two checkpoints and the predictions of each."""
    left = [found for other, _ in finished if other.dataset.id == jobs[0].dataset.id and (found := _left_by(other))]
    if left:
        return len(jobs) * sum(left) // len(left)
    return sum(CHECKPOINTS * _size(Path(job.pretraining.path)) + _predictions(job) for job in jobs)


def _left_by(job: Job) -> int:
    folders = folders_of(job)
    return _size(folders.fold) + _size(folders.predicted)


def _predictions(job: Job) -> int:
    """About as much as the reference segmentations of the scored cases."""
    raw = folders_of(job).raw
    return _size(raw / "labelsTs") if job.dataset.cases == "test" else _size(raw / "labelsTr") // 5


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 where there is none."""
    if path.is_file():
        return path.stat().st_size
    return sum((Path(where) / name).stat().st_size for where, _, names in os.walk(path) for name in names)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
