"""The results file of a grid, and where the files of a job lie."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from nnunet_ssl.bench.grid import Job
from nnunet_ssl.nnunet.datasets import dataset_name, environment_folder


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; a line that a kill cut off is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line, one process after the other; after one that a kill cut off it begins anew.

    The lock is POSIX's, which network file systems pass on; Windows has none, and one process writes there.
    """
    with path.open("a+b") as stream:
        if fcntl is not None:
            fcntl.lockf(stream, fcntl.LOCK_EX)  # until the file is closed
        if stream.seek(0, os.SEEK_END) > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(json.dumps(row).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def latest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last row of every job, by the JSON of its key."""
    return {key_of_row(row): row for row in rows}


def key_of_row(row: Mapping[str, Any]) -> str:
    """What tells the row's job apart, as text."""
    return json.dumps(row["job"], sort_keys=True)


def key_of(job: Job) -> str:
    """The same of a job that may have no row yet."""
    return key_of_row({"job": job.key})


@dataclass
class Folders:
    """Where a job's files lie."""

    raw: Path
    fold: Path  # of its training
    predicted: Path
    log: Path


def folders_of(job: Job) -> Folders:
    """Raises UserError for an unknown dataset and for missing environment variables."""
    name = dataset_name(job.dataset.id)
    training = environment_folder("nnUNet_results") / name / f"{job.trainer}__{job.plans}__{job.configuration}"
    fold = training / f"fold_{job.fold}"
    log = environment_folder("nnUNet_results") / name / f"{job.plans}__{job.configuration}__fold_{job.fold}.log"
    return Folders(environment_folder("nnUNet_raw") / name, fold, training / f"test_fold_{job.fold}", log)
