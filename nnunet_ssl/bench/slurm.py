"""The jobs of a grid as jobs of Slurm, by ``submitit``: the same file, the same results.

Whoever submits makes the plans, hands the jobs to Slurm as one array and waits for their rows. The jobs need nothing of
that process: when it ends they go on, and the same command waits for them again instead of submitting them twice.
"""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

from nnunet_ssl.bench.commands import Run, run_command
from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.leakage import Finding, Recorded
from nnunet_ssl.bench.results import add_row, key_of, key_of_row, read_results
from nnunet_ssl.bench.runner import Runner
from nnunet_ssl.bench.specs import made, require
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import write_json

POLL_S = 5.0
PATIENCE = 6  # polls without a row after Slurm has forgotten a job: file systems show a new line late


@dataclass(frozen=True)
class SlurmOptions:
    """The table ``[slurm]`` of a grid, and ``--slurm KEY=VALUE``. All are of one job.

    time_min: limit in minutes; a training that reaches it is put back into the queue and goes on from its checkpoint,
    max_requeues times. at_once: jobs of the array that run at the same time. setup: lines of shell before the job
    (``module load ...``). sbatch: any other option by its long name (``{reservation = "x"}``).
    """

    partition: str | None = None
    time_min: int = 1440
    gpus: int = 1
    cpus: int = 8
    mem_gb: float | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    at_once: int = 256
    max_requeues: int = 10
    setup: Sequence[str] = ()
    sbatch: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UserError for values that cannot be used."""
        for name, least in (("time_min", 1), ("gpus", 0), ("cpus", 1), ("at_once", 1), ("max_requeues", 0)):
            value = getattr(self, name)
            require(type(value) is int and value >= least, f"slurm.{name}", value, f"a whole number from {least} up")
        require(self.mem_gb is None or self.mem_gb > 0, "slurm.mem_gb", self.mem_gb, "a number above 0")
        require(isinstance(self.sbatch, Mapping), "slurm.sbatch", self.sbatch, "a table of sbatch's options")

    def parameters(self) -> dict[str, Any]:
        """As submitit's AutoExecutor names them."""
        found: dict[str, Any] = {"timeout_min": self.time_min, "cpus_per_task": self.cpus, "name": "nnunet_ssl_bench"}
        if self.gpus:
            found["gpus_per_node"] = self.gpus
        if self.mem_gb is not None:
            found["mem_gb"] = self.mem_gb
        slurm = {key: getattr(self, key) for key in ("partition", "account", "qos", "constraint")}
        slurm |= {"array_parallelism": self.at_once, "setup": list(self.setup)}
        slurm |= {"additional_parameters": dict(self.sbatch)}
        return found | {f"slurm_{key}": value for key, value in slurm.items() if value not in (None, [], {})}


def options_of(grid: Grid, settings: Iterable[str] = ()) -> SlurmOptions:
    """The grid's table with ``KEY=VALUE`` over it; values are JSON, or else text. UserError for an unknown key."""
    given: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            known = ", ".join(f.name for f in fields(SlurmOptions))
            raise UserError(f"--slurm {setting} is not of the form KEY=VALUE. Keys: {known}.")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    return made(SlurmOptions, {**grid.slurm, **given}, f"{grid.path}, slurm", {})


@dataclass
class Task:
    """One job of a grid, to be called in a process of its own; what it needs travels with it."""

    grid: Grid
    job: Job
    device: str | None
    leakage: Finding | None
    run: Run = run_command

    def __call__(self) -> str:
        return str(Runner(self.grid, self.device, run=self.run, guard=Recorded(self.leakage)).one(self.job)["status"])

    def checkpoint(self) -> Any:
        """Called by submitit before the time is over: the same again, which goes on from nnU-Net's checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Ledger:
    """Which Slurm job has which job of the grid: ``<grid>.slurm.json``, beside the results."""

    def __init__(self, grid: Grid) -> None:
        self.path = grid.beside(".slurm.json")
        self.jobs: dict[str, str] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def add(self, submitted: Mapping[str, str]) -> None:
        """Key -> Slurm id."""
        self.jobs |= submitted
        write_json(self.path, self.jobs)


def queued() -> set[str]:
    """Ids of all jobs of this user that Slurm has not ended, arrays member by member."""
    done = subprocess.run(["squeue", "-h", "-r", "-o", "%i", "-u", getpass.getuser()], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    if done.returncode != 0:
        raise OSError(done.stderr.strip()[:300])
    # an array's member is ARRAY_INDEX, a single job its number
    return set(done.stdout.split())


def run_on_slurm(
    runner: Runner, options: SlurmOptions, cluster: str = "slurm", poll_s: float = POLL_S
) -> list[dict[str, Any]]:
    """Submit what is to do and not in the queue, wait for all of it; the new rows. ``cluster``: submitit's name."""
    grid, ledger = runner.grid, Ledger(runner.grid)
    executor = _executor(grid, options, cluster)
    seen, jobs = len(read_results(grid.results)), runner.todo()
    alive = queued() if cluster == "slurm" else set()
    waiting = {key_of(job): ledger.jobs[key_of(job)] for job in jobs if ledger.jobs.get(key_of(job)) in alive}
    new = [job for job in jobs if key_of(job) not in waiting]
    runner.ready(new)
    with executor.batch() if new else nullcontext():
        submitted = [executor.submit(Task(grid, job, runner.device, runner.guard.check(job), runner.run))
                     for job in new]  # fmt: skip
    ids = {key_of(job): str(one.job_id) for job, one in zip(new, submitted, strict=True)}
    ledger.add(ids)
    print(f"{len(new)} jobs submitted, {len(waiting)} are in the queue already; logs in {executor.folder}", flush=True)

    def local() -> set[str]:
        return {str(one.job_id) for one in submitted if not one.done()}

    by_key = {key_of(job): job for job in jobs}
    try:
        return _wait(grid, by_key, waiting | ids, seen, queued if cluster == "slurm" else local, poll_s)
    except KeyboardInterrupt:
        print("The jobs go on. The same command waits for them again; scancel stops them.", flush=True)
        raise


def _executor(grid: Grid, options: SlurmOptions, cluster: str) -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("--slurm needs the package submitit: pip install nnunet_ssl[slurm].") from None
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("There is no sbatch here: --slurm is for a machine that submits to Slurm. Leave it out.")
    executor = submitit.AutoExecutor(
        folder=grid.beside(".slurm"), cluster=cluster,
        **({"slurm_max_num_timeout": options.max_requeues} if cluster == "slurm" else {}),
    )  # fmt: skip
    try:
        executor.update_parameters(**options.parameters())
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"submitit does not take the options of {grid.path}, slurm: {error}") from None
    return executor


def _wait(
    grid: Grid, jobs: Mapping[str, Job], ids: Mapping[str, str], seen: int, alive: Callable[[], set[str]], poll_s: float
) -> list[dict[str, Any]]:
    """Until every job has a row; one that Slurm ended without gets a failed one."""
    rows: dict[str, dict[str, Any]] = {}
    gone: dict[str, int] = {}
    while True:
        for row in read_results(grid.results)[seen:]:
            key = key_of_row(row)
            if key in ids and key not in rows:
                rows[key] = row
                print(f"{jobs[key]}: {row['status']} after {row['seconds']:.0f} s {row.get('error', '')}", flush=True)
        if len(rows) == len(ids):
            return list(rows.values())
        try:
            running = alive()
        except OSError as error:  # the controller is busy or away: ask again
            print(f"squeue: {error}", flush=True)
            running = set(ids.values())
        for key in ids.keys() - rows.keys():
            gone[key] = 0 if ids[key] in running else gone.get(key, 0) + 1
            if gone[key] > PATIENCE:
                add_row(grid.results, _lost(jobs[key], ids[key], grid))
        time.sleep(poll_s)


def _lost(job: Job, slurm_id: str, grid: Grid) -> dict[str, Any]:
    where = grid.beside(".slurm")
    return {"job": job.key, "settings": dict(job.settings), "status": "failed", "seconds": 0.0,
            "log": str(where / f"{slurm_id}_0_log.err"),
            "error": f"Slurm's job {slurm_id} ended without a result (memory, time, a lost node or scancel); see "
                     f"{where}, and `sacct -j {slurm_id}`. The next run submits it again."}  # fmt: skip
