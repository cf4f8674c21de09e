"""Runs the jobs of a grid by the public commands, remembers what is done, and goes on where it was stopped."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.leakage import Guard, require_clean
from nnunet_ssl.bench.results import Folders, add_row, folders_of, key_of, latest, read_results
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import load_json
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe

Run = Callable[[Sequence[str], Path, Mapping[str, str]], int]


def run_command(command: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
    """Run one command to its end, its output added to `log`; its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=env, check=False
        )
    return done.returncode


class Runner:
    """Runs every job that is not done, ``workers`` at a time; ``run`` is replaced in tests."""

    def __init__(
        self,
        grid: Grid,
        device: str | None = None,
        workers: int = 1,
        run: Run = run_command,
        allow_leakage: bool = False,
    ) -> None:
        self.grid, self.device, self.workers, self.run = grid, device, workers, run
        self.guard, self.allow_leakage = Guard(grid), allow_leakage
        self.lock = Lock()
        self.gpus = _gpus()

    def todo(self) -> list[Job]:
        """Jobs without a finished row. Raises UserError where a finished job had other settings."""
        done = latest(read_results(self.grid.results))
        open_jobs = []
        for job in self.grid.jobs():
            row = done.get(key_of(job))
            if row is None or row["status"] != "done":
                open_jobs.append(job)
            elif row["settings"] != json.loads(json.dumps(dict(job.settings))):
                raise UserError(
                    f"{job} was run with other settings ({json.dumps(row['settings'])}). Give the protocol another "
                    f"label, or take its line out of {self.grid.results}."
                )
        return open_jobs

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Make the plans and configurations that the jobs need, one after the other: they share files."""
        from nnunet_ssl.nnunet.adapting import AdaptRequest, make_adapted
        from nnunet_ssl.nnunet.datasets import open_dataset
        from nnunet_ssl.nnunet.planners import existing_plans
        from nnunet_ssl.nnunet.preprocessing import is_preprocessed, preprocess

        for job in {(job.dataset.id, job.plans, job.configuration): job for job in jobs}.values():
            where = (job.dataset.id, job.pretraining.path, job.plans)
            if existing_plans(open_dataset(job.dataset.id), job.plans) is None:
                make_adapted(AdaptRequest(*where, settings=job.dataset.adapt))
            settings = [f"ssl.{key}={json.dumps(value)}" for key, value in job.settings.items()]
            adapted = make_adapted(AdaptRequest(*where, settings=settings, config=job.configuration))
            if not is_preprocessed(adapted.dataset, adapted.plans, job.configuration):
                preprocess(adapted.dataset, adapted.plans, [job.configuration])

    def all(self) -> list[dict[str, Any]]:
        """Run what is to do; the new rows. UserError, before anything runs, where a pretraining has seen what it would
        be scored on and that was not allowed.
        """
        jobs = self.todo()
        for line in require_clean(jobs, self.guard, self.allow_leakage):
            print(line, flush=True)
        if jobs:
            self.prepare(jobs)
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self.one, jobs, range(len(jobs))))

    def one(self, job: Job, number: int = 0) -> dict[str, Any]:
        """Train, predict and score one job; its row, which is written whatever happens."""
        folders, start = folders_of(job), time.monotonic()
        row: dict[str, Any] = {"job": job.key, "settings": dict(job.settings), "log": str(folders.log)}
        env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {})}
        print(f"{job}: starts", flush=True)
        try:
            self._train(job, folders, env)
            scores = self._scores(job, folders, env)
            facts = load_json(folders.fold / "downstream.json")
            leakage = self.guard.check(job)  # known since before the first job
            row |= {
                "status": "done",
                "trainer": job.trainer,
                "plans": job.plans,
                "configuration": job.configuration,
                "steps": facts["steps"],
                "trainable_parameters": facts["trainable_parameters"],
                "pretrained": facts["pretrained"],
                "mirror_axes": facts["mirror_axes"],
                "leakage": leakage and leakage.row(),
                "scores": scores,
            }
        except UserError as error:
            row |= {"status": "failed", "error": str(error)}
        row["seconds"] = round(time.monotonic() - start, 1)
        with self.lock:
            add_row(self.grid.results, row)
        print(f"{job}: {row['status']} after {row['seconds']:.0f} s {row.get('error', '')}", flush=True)
        return row

    def _train(self, job: Job, folders: Folders, env: Mapping[str, str]) -> None:
        """To checkpoint_final.pth and its validation; a killed training goes on."""
        command = [
            "nnUNetv2_train",
            str(job.dataset.id),
            job.configuration,
            str(job.fold),
            "-tr",
            job.trainer,
            "-p",
            job.plans,
            *self._device(),
        ]
        final = folders.fold / "checkpoint_final.pth"
        if not final.is_file():
            going_on = (folders.fold / "checkpoint_latest.pth").is_file()
            self._call([*command, *(["--c"] if going_on else [])], folders, env)
        if not (folders.fold / "validation" / "summary.json").is_file():
            self._call([*command, "--val"], folders, env)

    def _scores(self, job: Job, folders: Folders, env: Mapping[str, str]) -> dict[str, Any]:
        from nnunet_ssl.nnunet.scoring import score_folder

        description = load_json(folders.raw / "dataset.json")
        ending, tolerance = description["file_ending"], job.dataset.tolerance_mm
        if job.dataset.cases == "validation":
            predicted = folders.fold / "validation"
            cases = [path.name.removesuffix(ending) for path in predicted.glob(f"*{ending}")]
            return score_folder(predicted, folders.raw / "labelsTr", description, tolerance, cases)
        self._call(["nnUNetv2_predict", *self._prediction(job, folders)], folders, env)
        return score_folder(folders.predicted, folders.raw / "labelsTs", description, tolerance)

    def _prediction(self, job: Job, folders: Folders) -> list[str]:
        """What nnUNetv2_predict is told; what it has predicted already stays."""
        # without a GPU to feed, processes of their own cost more than they bring
        workers = "1" if self.gpus and self.device != "cpu" else "0"
        return [
            *("-i", str(folders.raw / "imagesTs"), "-o", str(folders.predicted), "-d", str(job.dataset.id)),
            *("-c", job.configuration, "-f", str(job.fold), "-tr", job.trainer, "-p", job.plans),
            *("-step_size", str(job.dataset.step_size), "-npp", workers, "-nps", workers, "--continue_prediction"),
            *self._device(),
        ]

    def _call(self, command: list[str], folders: Folders, env: Mapping[str, str]) -> None:
        status = self.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], folders.log, env)
        if status != 0:
            log = folders.log.read_text(encoding="utf-8", errors="replace") if folders.log.is_file() else ""
            said = next((line for line in reversed(log.splitlines()) if line.strip()), "nothing")
            raise UserError(f"{command[0]} ended with {status} ({said.strip()[:300]}); see {folders.log}.")

    def _device(self) -> list[str]:
        return ["-device", self.device] if self.device else []


def _gpus() -> list[str]:
    """Names of the GPUs that jobs may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


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
