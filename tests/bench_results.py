"""Grids with made-up results: what the tests of reports and their benchmark read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_ssl.bench.grid import Grid, Job, read_grid

Value = Callable[[Job, int, str], float | None]


def grid_with_results(
    folder: Path,
    text: str,
    value: Value,
    classes: Mapping[int, Sequence[str]],
    subjects: int = 12,
    skip: Callable[[Job], bool] = lambda _: False,
    parameters: Mapping[str, int] | None = None,
) -> Grid:
    """Write grid.toml and its results: ``value(job, subject, class)`` is the Dice, also on a preset's own grid.

    classes: by dataset. skip: jobs that are missing. parameters: that learn, by protocol.
    """
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    grid = read_grid(path)
    lines = []
    for job in grid.jobs():
        if skip(job):
            continue
        names = classes[job.dataset.id]
        scores = {f"s{i:02d}": {name: {"dice": value(job, i, name), "nsd": 0.5} for name in names}
                  for i in range(subjects)}  # fmt: skip
        number = (parameters or {}).get(job.protocol.name, 100)
        row = {
            "job": job.key, "settings": dict(job.settings), "status": "done", "steps": 10, "seconds": 5400.0,
            "trainable_parameters": {"head": number, "backbone": 0}, "mirror_axes": None, "scores": scores,
        }  # fmt: skip
        if job.protocol.preset.grid:
            row["grids"] = {job.protocol.preset.grid: scores}
        lines.append(json.dumps(row))
    grid.results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return grid
