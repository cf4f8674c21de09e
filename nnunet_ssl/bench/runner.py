"""Runs the jobs of a grid by the public commands, remembers what is done, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Any, TextIO

from nnunet_ssl.bench.commands import (
    PROCESS,
    Run,
    end_commands,
    own_log,
    run_command,
    sigterm_as_interrupt,
    visible_gpus,
)
from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.leakage import Guard, Recorded, require_clean
from nnunet_ssl.bench.preparing import prepare
from nnunet_ssl.bench.results import Folders, add_row, folders_of, key_of, latest, read_results
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import load_json


class Runner:
    """Runs every job that is not done, ``workers`` at a time; ``run`` is replaced in tests."""

    def __init__(
        self,
        grid: Grid,
        device: str | None = None,
        workers: int = 1,
        run: Run = run_command,
        allow_leakage: bool = False,
        guard: Guard | Recorded | None = None,
    ) -> None:
        self.grid, self.device, self.workers, self.run = grid, device, workers, run
        self.guard, self.allow_leakage = guard or Guard(grid), allow_leakage
        self.lock, self.stopping = Lock(), Event()
        self.gpus = visible_gpus()

    def todo(self) -> list[Job]:
        """Jobs without a finished row. Raises UserError where a finished job had other settings."""
        done = latest(read_results(self.grid.results))
        open_jobs = []
        for job in self.grid.jobs():
            row = done.get(key_of(job))
            if row is None or row["status"] != "done":
                open_jobs.append(job)
            elif (row["settings"], row.get("plan", {})) != (_plain(job.settings), _plain(job.plan)):
                found = json.dumps({**row["settings"], **row.get("plan", {})})
                raise UserError(
                    f"{job} was run with other settings ({found}). Give the protocol another label, or take its line "
                    f"out of {self.grid.results}."
                )
        return open_jobs

    def all(self) -> list[dict[str, Any]]:
        """Run what is to do; the new rows."""
        jobs = self.todo()
        self.ready(jobs)
        with ThreadPoolExecutor(self.workers) as pool, sigterm_as_interrupt():
            futures = [pool.submit(self.one, job, number) for number, job in enumerate(jobs)]
            try:
                return [future.result() for future in futures]
            except KeyboardInterrupt:
                self.stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                print("Stopping the jobs that run; the same command goes on with them.", flush=True)
                while not all(future.done() for future in futures):
                    end_commands()
                    time.sleep(0.1)
                raise

    def ready(self, jobs: Sequence[Job]) -> None:
        """Make what the jobs need. UserError, before anything runs, where a pretraining has seen what it would be
        scored on and that was not allowed.
        """
        for line in require_clean(jobs, self.guard, self.allow_leakage):
            print(line, flush=True)
        if jobs:
            prepare(jobs)

    def _share_of_machine(self, number: int) -> dict[str, str]:
        """Variables that give a job its GPU, or its part of the processor. On a CPU nnU-Net's worker processes compete
        with the training, and what they draw no seed reaches: none there. What the user has set stays.
        """
        if self.device != "cpu" and self.gpus:
            return {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]}
        wanted = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"} if self.device == "cpu" else {}
        if self.workers > 1:
            wanted["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.workers))
        return {name: value for name, value in wanted.items() if name not in os.environ}

    def one(self, job: Job, number: int = 0) -> dict[str, Any]:
        """Train, predict and score one job; its row, which is written whatever happens. A job that another process is
        at is waited for, and is done when that one has written its row.
        """
        folders, waited = folders_of(job), []

        def wait() -> None:
            waited.append(True)
            print(f"{job}: another process is at it; waiting for its end; {folders.log} says how far it is", flush=True)

        if self.stopping.is_set():
            raise KeyboardInterrupt
        with own_log(folders.log, wait) as log:
            row = latest(read_results(self.grid.results)).get(key_of(job)) if waited else None
            if row is not None and row["status"] == "done":
                return dict(row)
            return self._run(job, folders, log, number)

    def _run(self, job: Job, folders: Folders, log: TextIO, number: int) -> dict[str, Any]:
        start = time.monotonic()
        row: dict[str, Any] = {"job": job.key, "settings": dict(job.settings), "log": str(folders.log)}
        row |= {"plan": dict(job.plan)} if job.plan else {}
        env = {**os.environ, **self._share_of_machine(number)}
        print(f"{job}: starts; {folders.log} says how far it is", flush=True)
        try:
            self._train(job, folders, log, env)
            scores = self._scores(job, folders, log, env)
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
                "evaluation": job.protocol.preset.name,
                **scores,
            }
        except KeyboardInterrupt:
            self.stopping.set()
            raise
        except UserError as error:
            row |= {"status": "failed", "error": str(error)}
        row["seconds"] = round(time.monotonic() - start, 1)
        with self.lock:
            add_row(self.grid.results, row)
        print(f"{job}: {row['status']} after {row['seconds']:.0f} s {row.get('error', '')}", flush=True)
        return row

    def _train(self, job: Job, folders: Folders, log: TextIO, env: Mapping[str, str]) -> None:
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
            self._call([*command, *(["--c"] if going_on else [])], log, env)
        if not (folders.fold / "validation" / "summary.json").is_file():
            self._call([*command, "--val"], log, env)

    def _scores(self, job: Job, folders: Folders, log: TextIO, env: Mapping[str, str]) -> dict[str, Any]:
        """``scores``: case -> class -> metric on the original grid; ``grids``: the same on further ones, by name."""
        from nnunet_ssl.nnunet.scoring import score_folder

        description = load_json(folders.raw / "dataset.json")
        ending, cases = description["file_ending"], None
        if job.dataset.cases == "validation":
            where = folders.fold / "validation", folders.raw / "labelsTr"
            cases = [path.name.removesuffix(ending) for path in where[0].glob(f"*{ending}")]
        else:
            where = folders.predicted, folders.raw / "labelsTs"
            self._call(["nnUNetv2_predict", *self._prediction(job, folders)], log, env)
        preset, tolerance = job.protocol.preset, job.dataset.tolerance_mm
        scores = {"scores": score_folder(*where, description, tolerance, cases)}
        if preset.grid and preset.grid_mm:
            scores["grids"] = {preset.grid: score_folder(*where, description, tolerance, cases, preset.grid_mm)}
        return scores

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

    def _call(self, command: list[str], log: TextIO, env: Mapping[str, str]) -> None:
        status = self.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], log, env)
        if self.stopping.is_set():
            raise KeyboardInterrupt  # neither done nor failed
        if status != 0:
            lines = Path(log.name).read_text(encoding="utf-8", errors="replace").splitlines()
            of_command = (line for line in reversed(lines) if line.strip() and not line.startswith(PROCESS))
            said = next(of_command, "nothing")
            raise UserError(f"{command[0]} ended with {status} ({said.strip()[:300]}); see {log.name}.")

    def _device(self) -> list[str]:
        return ["-device", self.device] if self.device else []


def _plain(settings: Mapping[str, Any]) -> Any:
    """As the results file gives it back."""
    return json.loads(json.dumps(dict(settings)))
