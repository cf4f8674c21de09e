"""What the jobs of a grid will take, by those that are done: time and disk."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.results import read_results
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe


def steps_of(job: Job) -> int:
    """Training steps."""
    defaults = DownstreamRecipe()
    names = ("num_epochs", "num_iterations_per_epoch")
    return math.prod(int(job.settings.get(name, getattr(defaults, name))) for name in names)


def estimate(grid: Grid, jobs: Sequence[Job]) -> list[str]:
    """What a dry run says: every job, and how long the rest may take by the jobs that are done."""
    done = [row for row in read_results(grid.results) if row["status"] == "done"]
    steps = [steps_of(job) for job in jobs]
    lines = [f"{job}: {count:,} steps" for job, count in zip(jobs, steps, strict=True)]
    if done and jobs:
        pace = sum(row["seconds"] for row in done) / sum(row["steps"] for row in done)
        hours = pace * sum(steps) / 3600
        known = f"{len(done)} that are done ({pace:.2f} s a step, prediction included)"
        lines.append(f"{len(jobs)} jobs to run, about {hours:.1f} hours by {known}")
    else:
        lines.append(f"{len(jobs)} jobs to run, {sum(steps):,} steps in all; the time shows after the first")
    return lines
