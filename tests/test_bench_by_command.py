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


def start(bench: SimpleNamespace, *action: str) -> subprocess.Popen[str]:
    action = action or ("run",)
    command = [sys.executable, "-m", "nnunet_ssl.cli.main", "bench", *action, str(bench.grid), "-device", "cpu"]
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


def test_a_search_trains_at_several_rates(tmp_path: Path) -> None:
    """By real trainings: the rates that were set are those that the configurations have, and the rest is the grid's."""
    bench = made(tmp_path)
    text = bench.grid.read_text()
    bench.grid.write_text(text.replace("folds = [0]", "folds = [1]").replace("num_epochs = 3", "num_epochs = 1"))
    said, _ = (process := start(bench, "search", "--more", "0")).communicate(timeout=600)
    assert process.returncode == 0, said
    rows = read_results(tmp_path / "grid_search.results.jsonl")
    assert [row["status"] for row in rows] == ["done"] * 3 and not bench.results.exists()
    assert [row["settings"]["initial_lr"] for row in rows] == [0.0003, 0.001, 0.003]
    for row in rows:
        plans = next(bench.trained.glob(f"*/*__{row['plans']}__{row['configuration']}/plans.json"))
        block = json.loads(plans.read_text())["configurations"][row["configuration"]]["ssl"]
        assert block["initial_lr"] == row["settings"]["initial_lr"] and block["num_epochs"] == 1
    assert "tiny, linear:  0.0003: 0." in said and "-> initial_lr = 0." in said
    process = start(bench, "search", "--fold", "1")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1 and "chosen on what is scored" in said and "Traceback" not in said
