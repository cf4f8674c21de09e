"""Jobs of a grid as jobs of Slurm: options, what is submitted once, submitit's local executor, and a real Slurm."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_ssl.bench import slurm
from nnunet_ssl.bench.commands import run_command
from nnunet_ssl.bench.grid import read_grid
from nnunet_ssl.bench.report import write_report
from nnunet_ssl.bench.results import add_row, key_of, latest, read_results
from nnunet_ssl.bench.runner import Runner
from nnunet_ssl.bench.slurm import Ledger, SlurmOptions, options_of, run_on_slurm
from nnunet_ssl.cli.main import main
from nnunet_ssl.errors import UserError
from tests.bench_stand_ins import quick
from tests.plan_datasets import folders
from tests.slurm_tools import OneNode, missing_programs
from tests.test_bench import bench as with_two_draws

__all__ = ["folders", "with_two_draws"]
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def bench(with_two_draws: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Five jobs, and stand-ins that the processes of an executor can import."""
    made = with_two_draws
    made.path.write_text(made.path.read_text().replace("draws = 2", "draws = 1"))
    made.grid, made.raw = read_grid(made.path), made.folders / "raw"
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("die", "fail", "slow"):
        (made.raw / name).mkdir()
    return made


def run(bench: SimpleNamespace, cluster: str, **options: Any) -> list[dict[str, Any]]:
    chosen = SlurmOptions(**{"gpus": 0, "cpus": 1, "time_min": 10, **options})
    return run_on_slurm(Runner(bench.grid, "cpu", run=quick), chosen, cluster, poll_s=0.5)


# ---- options


def test_options_of_a_job_come_from_the_file_and_the_command(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(
        '[slurm]\npartition = "gpu"\ntime_min = 60\nmem_gb = 32\nsetup = ["module load x"]\n[slurm.sbatch]\nnice = 10\n'
        "[[datasets]]\nid = 4\n[[pretrainings]]\nname = 'v'\ncheckpoint = 'c'\n[[protocols]]\nname = 'linear'\n"
    )
    grid = read_grid(tmp_path / "grid.toml")
    found = options_of(grid, ["time_min=90", "gpus=0", "qos=long"])
    assert (found.partition, found.time_min, found.gpus, found.qos, found.cpus) == ("gpu", 90, 0, "long", 8)
    assert found.parameters() == {
        "timeout_min": 90, "cpus_per_task": 8, "name": "nnunet_ssl_bench", "mem_gb": 32, "slurm_partition": "gpu",
        "slurm_qos": "long", "slurm_array_parallelism": 256, "slurm_setup": ["module load x"],
        "slurm_additional_parameters": {"nice": 10},
    }  # fmt: skip
    for setting, words in (("partion=x", 'Unknown key "partion".* Did you mean "partition"'), ("gpus", "KEY=VALUE"),
                           ("time_min=0", "slurm.time_min is 0; expected a whole number from 1 up")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            options_of(grid, [setting])


def test_without_slurm_a_command_says_so(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(bench.folders))
    if pytest.importorskip("submitit"):
        assert main(["bench", "run", str(bench.path), "--slurm", "--slurm", "gpus=0"]) == 1
    assert "There is no sbatch here" in capsys.readouterr().err and not bench.grid.results.exists()
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["bench", "run", str(bench.path), "--slurm"]) == 1
    assert "pip install nnunet_ssl[slurm]" in capsys.readouterr().err


# ---- what several processes share


def test_rows_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    """Four writers of long rows, and a file that a kill has cut off."""
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"job": "cut o')
    program = (
        "import sys\nfrom pathlib import Path\nfrom nnunet_ssl.bench.results import add_row\n"
        "for i in range(100):\n    add_row(Path(sys.argv[1]), {'job': [sys.argv[2], i], 'text': 'x' * 20000})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(n)]) for n in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    assert len(path.read_text().splitlines()) == 401  # the cut line stays a line of its own
    rows = read_results(path)
    assert sorted(map(tuple, (row["job"] for row in rows))) == sorted((str(n), i) for n in range(4) for i in range(100))


def test_what_is_in_the_queue_is_not_submitted_again(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second command beside a first that was interrupted: it waits for the same jobs."""
    jobs = list(bench.grid.jobs())
    Ledger(bench.grid).add({key_of(job): f"7_{i}" for i, job in enumerate(jobs)})
    asked: list[int] = []

    def queued() -> set[str]:
        asked.append(1)
        if len(asked) == 3:
            for job in jobs:
                add_row(bench.grid.results, {"job": job.key, "status": "done", "seconds": 1.0})
        if len(asked) == 2:
            raise OSError("the controller does not answer")
        return {f"7_{i}" for i in range(len(jobs))}

    def refused(*_: Any) -> None:
        raise AssertionError("submitted twice")

    monkeypatch.setattr(slurm, "queued", queued)
    monkeypatch.setattr(slurm, "_executor", lambda *_: SimpleNamespace(submit=refused, folder="logs"))
    assert {row["status"] for row in run(bench, "slurm")} == {"done"} and len(asked) == 3


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has no such signal")
def test_a_command_does_not_hear_the_warning_of_slurm(tmp_path: Path) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('lives')"
    with (tmp_path / "log").open("a") as log:
        assert run_command([sys.executable, "-c", program], log, {}) == 0
    assert "lives" in (tmp_path / "log").read_text()
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ---- executors


def test_submitits_local_executor_runs_a_grid(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job fails and the process of one disappears: both are recorded, and they alone are run again."""
    pytest.importorskip("submitit", reason="the extra nnunet_ssl[slurm] is not installed")
    monkeypatch.setattr(slurm, "PATIENCE", 1)
    (bench.raw / "fail" / "bench_linear_n1_d0").touch()  # of both pretrainings
    (bench.raw / "die" / "bench_scratch_n1_d0").touch()
    rows = {json.dumps(row["job"], sort_keys=True): row for row in run(bench, "local")}
    assert sorted(row["status"] for row in rows.values()) == ["done", "done", "failed", "failed", "failed"]
    errors = sorted(row["error"] for row in rows.values() if row["status"] == "failed")
    assert "ended without a result" in errors[0] and "nnUNetv2_train ended with 3" in errors[1]
    for name in ("fail", "die"):
        shutil.rmtree(bench.raw / name)
    assert [row["status"] for row in run(bench, "local")] == ["done"] * 3
    assert run(bench, "local") == []
    processes = {line for path in (bench.folders / "results").rglob("*.log")
                 for line in path.read_text().splitlines()}
    assert len(processes) == 5 + 3  # each job had one of its own, and again the second time


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("submitit", reason="the extra nnunet_ssl[slurm] is not installed")
    if missing := missing_programs():
        pytest.skip(f"needs a Slurm (apt-get install slurm-wlm): there is no {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        try:
            node = OneNode(Path(folder))
            environment = node.__enter__()
        except RuntimeError as error:
            pytest.skip(f"Slurm is installed but does not start here: {str(error)[:600]}")
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        try:
            yield
        finally:
            node.__exit__()


@pytest.mark.usefixtures("cluster")
def test_a_real_slurm_gives_the_same_results(bench: SimpleNamespace) -> None:
    """The whole way: an array, a job that Slurm warns and that is put back into the queue, the same table as here."""
    slow = bench.raw / "slow" / "bench_scratch_n1_d0"
    slow.touch()

    def warn() -> None:
        while slow.stat().st_size == 0:
            time.sleep(0.2)
        job = next(job for job in bench.grid.jobs() if job.protocol.name == "scratch")
        time.sleep(1)
        subprocess.run(["scancel", "--signal=USR2", Ledger(bench.grid).jobs[key_of(job)]], check=True)

    thread = threading.Thread(target=warn, daemon=True)
    thread.start()
    rows = run(bench, "slurm", time_min=5, partition="main")
    thread.join(60)
    assert [row["status"] for row in rows] == ["done"] * 5, [row.get("error") for row in rows]
    assert run(bench, "slurm") == [] and slow.read_text() == "started, again"
    report = (write_report(bench.grid, bench.folders / "a") / "table.md").read_text()
    bench.grid.results.rename(bench.folders / "by_slurm.jsonl")
    shutil.rmtree(bench.folders / "results")
    Runner(bench.grid, "cpu", run=quick).all()
    again = (write_report(bench.grid, bench.folders / "b") / "table.md").read_text()
    timeless = [[cell for i, cell in enumerate(line.split("|")) if i != 14] for line in report.splitlines()]
    assert timeless == [[cell for i, cell in enumerate(line.split("|")) if i != 14] for line in again.splitlines()]
    scores = [{key: row["scores"] for key, row in latest(read_results(path)).items()}
              for path in (bench.grid.results, bench.folders / "by_slurm.jsonl")]  # fmt: skip
    assert scores[0] == scores[1]
