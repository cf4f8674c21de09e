"""Stopping and continuing: bit for bit, for any number of workers, also inside an epoch, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssl.nnunet import checkpoints
from tests.test_loader import alive
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, command, in_process, metrics, output_folder, run

FOUR = {**SHORT, "num_epochs": 4, "save_every": 1, "schedule": "cosine", "warmup_epochs": 1}
CLOCK = ("seconds", "epoch_start_timestamps", "epoch_end_timestamps")


def tiny_in(folder: Path, **ssl: Any) -> SimpleNamespace:
    return tiny_dataset(folder, cases=3, ssl={**FOUR, **ssl})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        tiny = tiny_in(tmp_path_factory.mktemp("whole"))
        in_process(tiny, patch).run_training()
        yield checkpoints.read(output_folder(tiny) / "checkpoint_final.pth")


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two checkpoints differ in a bit, the clock apart."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) and a.dtype == b.dtype else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys"]
        return [d for key in a if key not in CLOCK for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where}: length"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a!r} {b!r}"]


def same_training(a: dict[str, Any], b: dict[str, Any]) -> None:
    keys = ("network_weights", "optimizer_state", "logging", "_best_ema", "current_epoch")
    assert differences({key: a[key] for key in keys}, {key: b[key] for key in keys}) == []


class Killed(BaseException):
    """Stands for a kill: nothing of the trainer runs after it."""


def interrupt(trainer: Any, iteration: int, how: Callable[[], None]) -> None:
    """Let ``how`` happen right after global iteration ``iteration``."""
    step = trainer.train_step

    def step_then_interrupt(batch: Any) -> Any:
        result = step(batch)
        if trainer.global_iteration == iteration:
            how()
        return result

    trainer.train_step = step_then_interrupt


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def resume(tiny: SimpleNamespace, patch: pytest.MonkeyPatch, workers: int) -> dict[str, Any]:
    folder = output_folder(tiny)
    trainer = in_process(tiny, patch, workers=workers)
    trainer.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    trainer.run_training()
    assert not (folder / "checkpoint_latest.pth").exists()
    return checkpoints.read(folder / "checkpoint_final.pth")


@pytest.mark.parametrize("first, then", [(0, 2), (2, 0)])
def test_continuing_after_two_of_four_epochs(
    uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, then: int
) -> None:
    tiny = tiny_in(tmp_path)
    trainer = in_process(tiny, monkeypatch, workers=first)
    interrupt(trainer, 2 * 3, kill)
    with pytest.raises(Killed):
        trainer.run_training()
    assert checkpoints.read(output_folder(tiny) / "checkpoint_latest.pth")["current_epoch"] == 2
    same_training(resume(tiny, monkeypatch, then), uninterrupted)
    assert [row["epoch"] for row in metrics(output_folder(tiny))] == [0, 1, 2, 3]


@pytest.mark.parametrize("iteration", [4, 5])
def test_sigterm_inside_an_epoch(
    uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iteration: int
) -> None:
    """Iteration 4 (the second of epoch 1) and 5 (the last of epoch 1, before it is validated)."""
    tiny = tiny_in(tmp_path, save_every=100)
    trainer = in_process(tiny, monkeypatch)
    handler = signal.getsignal(signal.SIGTERM)
    interrupt(trainer, iteration, terminate)
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) is handler
    saved = checkpoints.read(output_folder(tiny) / "checkpoint_latest.pth")
    assert (saved["current_epoch"], saved["running_epoch"]["iteration"]) == (1, iteration - 3 + 1)
    same_training(resume(tiny, monkeypatch, 1), uninterrupted)


PROBE = {"dataset": 901, "every": 2, "cases": 1, "held_out": 1, "per_class": 50, "background": 50, "max_iter": 10,
         "max_windows": 2}  # fmt: skip


def test_batch_norm_affine_views_and_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a state of its own beside the weights (running statistics), draws more, or measures in between."""
    ssl = {**FOUR, "spatial": "affine", "flip_axes": [2], "volumes_per_batch": 2, "optimizer": "adamw", "probe": PROBE,
           "save_every": 100}  # fmt: skip
    whole, stopped = (tiny_dataset(tmp_path / name, cases=3, network="fpn", ssl=ssl) for name in ("whole", "stopped"))
    in_process(whole, monkeypatch).run_training()
    expected = checkpoints.read(output_folder(whole) / "checkpoint_final.pth")
    assert any("running_mean" in key for key in expected["network_weights"])
    trainer = in_process(stopped, monkeypatch)
    interrupt(trainer, 7, terminate)  # in epoch 2, after the probe's first measurement
    with pytest.raises(SystemExit):
        trainer.run_training()
    same_training(resume(stopped, monkeypatch, 0), expected)
    dice = [row["probe_dice"] for row in metrics(output_folder(stopped))]
    assert [value is None for value in dice] == [True, False, True, False]


def test_seed_decides(uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of the other tests can fail: another seed trains another network."""
    tiny = tiny_in(tmp_path, seed=1)
    in_process(tiny, monkeypatch).run_training()
    other = checkpoints.read(output_folder(tiny) / "checkpoint_final.pth")
    assert differences(other["network_weights"], uninterrupted["network_weights"])


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_command(tmp_path: Path, number: signal.Signals) -> None:
    """A training that would never end is killed; its files are whole, its workers die, ``--c`` goes on and ends."""
    tiny = tiny_dataset(tmp_path, cases=3, ssl={**SHORT, "num_epochs": 10**6, "save_every": 1})
    folder = output_folder(tiny)
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command(tiny), env={**tiny.env, "nnUNet_n_proc_DA": "2"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            encoding="utf-8",
        )  # fmt: skip
        try:
            wait_for((folder / "checkpoint_latest.pth").exists, process)
            workers = children(process.pid)
            assert workers
            process.send_signal(number)
            code = process.wait(300)
        finally:
            process.kill()
            process.wait()
    assert code == (-9 if number == signal.SIGKILL else 143)
    wait_for(lambda: not any(alive(pid) for pid in workers))
    saved = checkpoints.read(folder / "checkpoint_latest.pth")
    done = len(metrics(folder))
    assert saved["current_epoch"] >= 1
    assert done - saved["current_epoch"] <= 1  # save_every
    _end_after(tiny, saved["current_epoch"] + 1)
    result = run(tiny, "--c")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [row["epoch"] for row in metrics(folder)] == list(range(saved["current_epoch"] + 1))
    shutil.rmtree(tmp_path)


def _end_after(tiny: SimpleNamespace, epochs: int) -> None:
    import json

    path = Path(tiny.preprocessed) / tiny.dataset_name / f"{tiny.plans_name}.json"
    plans = json.loads(path.read_text())
    plans["configurations"][tiny.configuration]["ssl"]["num_epochs"] = epochs
    path.write_text(json.dumps(plans))
