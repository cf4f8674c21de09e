"""The benchmark by real commands, killed in the middle of a training and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_ssl.bench.results import read_results
from tests.plan_datasets import write_checkpoint
from tests.tiny_dataset import tiny_dataset

GRID = """
[settings]
num_epochs = 3
num_iterations_per_epoch = 2
num_val_iterations_per_epoch = 1
save_every = 1
seed = 1
[[datasets]]
id = 901
labelled = [1]
folds = [0]
cases = "validation"
[[pretrainings]]
name = "tiny"
checkpoint = "CHECKPOINT"
[[protocols]]
name = "linear"
"""


def made(root: Path) -> SimpleNamespace:
    """A labelled, preprocessed dataset, a checkpoint of its network, and a grid of one job."""
    data = tiny_dataset(root, labelled=True)
    plans = json.loads((data.preprocessed / data.dataset_name / f"{data.plans_name}.json").read_text())
    plans["configurations"][data.configuration]["ssl"] = {"objective": "vox2vec"}
    weights = write_checkpoint(root / "weights.pth", plans, data.configuration, ("CT",))
    grid = root / "grid.toml"
    grid.write_text(GRID.replace("CHECKPOINT", str(weights)))
    return SimpleNamespace(grid=grid, env=data.env, results=root / "grid.results.jsonl", trained=data.results)


def start(bench: SimpleNamespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nnunet_ssl.cli.main", "bench", "run", str(bench.grid), "-device", "cpu"]
    return subprocess.Popen(
        command, env=bench.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, encoding="utf-8", errors="replace",
    )  # fmt: skip


def finish(bench: SimpleNamespace) -> list[dict]:
    process = start(bench)
    said, _ = process.communicate(timeout=600)
    logs = "\n".join(path.read_text() for path in bench.trained.rglob("*.log"))
    assert process.returncode == 0, said + logs[-4000:]
    return read_results(bench.results)


@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
def test_a_killed_run_gives_the_same_table(tmp_path: Path) -> None:
    whole, killed = made(tmp_path / "whole"), made(tmp_path / "killed")
    expected = finish(whole)
    assert len(expected) == 1 and expected[0]["status"] == "done" and expected[0]["steps"] == 6
    assert {len(scores) for scores in expected[0]["scores"].values()} == {2}  # body and organ
    process = start(killed)
    deadline = time.monotonic() + 300
    while not list(killed.trained.rglob("checkpoint_latest.pth")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_results(killed.results) == [] and not list(killed.trained.rglob("checkpoint_final.pth"))
    found = finish(killed)
    assert [row["status"] for row in found] == ["done"] and found[0]["scores"] == expected[0]["scores"]
    assert "--c" in next(killed.trained.rglob("*.log")).read_text()
