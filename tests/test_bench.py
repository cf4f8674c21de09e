"""``nnunet_ssl bench``: the grid, the runner that goes on where it was stopped, scores, tables and the page."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.bench import commands
from nnunet_ssl.bench.estimates import estimate
from nnunet_ssl.bench.grid import read_grid
from nnunet_ssl.bench.preparing import prepare, require_possible
from nnunet_ssl.bench.report import arms_of, write_report
from nnunet_ssl.bench.results import add_row, folders_of, key_of, latest, read_results
from nnunet_ssl.bench.runner import Runner
from nnunet_ssl.bench.tables import table_rows
from nnunet_ssl.cli.main import main
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import load_json, training_files
from nnunet_ssl.nnunet.scoring import classes_of, dice, score_folder, surface_dice
from tests.plan_datasets import folders, raw_dataset, write_checkpoint

__all__ = ["folders"]

GRID = """
name = "two arms"
[settings]
num_epochs = 2
num_iterations_per_epoch = 5
[[datasets]]
id = 4
labelled = [1, 2, "all"]
draws = 2
folds = [0]
tolerance_mm = 2.0
[[pretrainings]]
name = "first"
checkpoint = "CHECKPOINT"
[[pretrainings]]
name = "second"
checkpoint = "CHECKPOINT"
twin = "first"
[[protocols]]
name = "linear"
[[protocols]]
name = "finetune"
label = "ft-fast"
settings = {initial_lr = 0.1, head = "linear"}
[[protocols]]
name = "scratch"
"""


def write_grid(folder: Path, text: str = GRID, checkpoint: Path | str = "weights.pth") -> Path:
    path = folder / "grid.toml"
    path.write_text(text.replace("CHECKPOINT", str(checkpoint)), encoding="utf-8")
    return path


def test_a_checkpoint_may_lie_in_the_results_folder(tmp_path, monkeypatch):
    """So that a grid can be handed on without anybody's paths."""
    monkeypatch.setenv("nnUNet_results", "/some/where")
    grid = read_grid(write_grid(tmp_path, checkpoint="$nnUNet_results/Dataset901_MyCT/checkpoint_final.pth"))
    assert grid.pretrainings[0].path == "/some/where/Dataset901_MyCT/checkpoint_final.pth"


# ---- the grid


def test_a_grid_names_every_job_once(tmp_path: Path) -> None:
    grid = read_grid(write_grid(tmp_path))
    jobs = list(grid.jobs())
    # (2 numbers x 2 draws + all) x (linear and fine-tune of both, scratch of the one that is nobody's twin)
    assert len(jobs) == len({key_of(job) for job in jobs}) == 5 * 5
    fast = next(job for job in jobs if job.protocol.label)
    assert fast.settings == {"num_epochs": 2, "num_iterations_per_epoch": 5, "initial_lr": 0.1, "head": "linear",
                             "labelled": {"n": 1, "draw": 0}}  # fmt: skip
    assert (fast.configuration, fast.plans, fast.trainer) == (
        "bench_ft-fast_n1_d0",
        "bench_firstPlans",
        "SSLFineTuneTrainer",
    )
    assert [job.settings.get("labelled") for job in jobs if job.labelled == "all"] == [None] * 5
    assert grid.twin_of("second") == "first" and grid.twin_of("first") == "first"
    assert grid.results == tmp_path / "grid.results.jsonl"


def test_a_pretraining_may_have_settings_of_its_own(tmp_path: Path) -> None:
    own = 'name = "first"\nsettings = {ft-fast = {initial_lr = 0.3}}'
    plain, changed = (list(read_grid(write_grid(tmp_path, text)).jobs())
                      for text in (GRID, GRID.replace('name = "first"', own)))  # fmt: skip
    for before, after in zip(plain, changed, strict=True):
        mine = (before.pretraining.name, before.protocol.title) == ("first", "ft-fast")
        assert after.settings == {**before.settings, **({"initial_lr": 0.3} if mine else {})}
    assert any(job.settings.get("initial_lr") == 0.3 for job in changed)


BAD = [
    ("draws = 2", "draws = 0", "datasets.draws is 0; expected a whole number"),
    ('name = "linear"', 'name = "lineal"', 'protocols.name is "lineal"; expected one of linear'),
    ("labelled = [1", "labeled = [1", 'Unknown key "labeled" .* Did you mean "labelled"'),
    ("labelled = [1,", "labelled = [0,", r"datasets.labelled is \[0, 2"),
    ('name = "second"', 'name = "first"', "names the pretraining first twice"),
    ('name = "first"', 'name = "first"\nsettings = {lineal = {seed = 1}}', 'settings of first.* Did you mean "linear"'),
    ('name = "first"', 'name = "first"\nsettings = {linear = 1}', "pretrainings.settings is .*; expected tables by"),
    ('twin = "first"', 'twin = "third"', "The twin of second is third; there are: first, second"),
    ('name = "first"', 'name = "a/b"', "letters, digits"), ("id = 4\n", "", "lacks id"),
    ("[[protocols]]", "[[protocol]]", r"tables of trainers are \[\[protocols\]\]"),
    ("[settings]", "[settings", "is no TOML"),
    ('name = "two arms"', 'protocol = "vox2vek"', '"vox2vek". Did you mean "vox2vec"'),
    ('name = "two arms"', 'plan = 3', "plan is 3; expected a table"),
    ('name = "linear"', 'name = "frozen"\nprotocol = "vox2vec"', 'vox2vec is "frozen"; expected one of linear'),
    ("tolerance_mm = 2.0", 'task = "BCTV"', 'There is no task "BCTV". Did you mean "BTCV"'),
    ("tolerance_mm = 2.0", 'spacing = "coarse"', 'datasets.spacing is "coarse"; expected one of auto, pretrained'),
    ("tolerance_mm = 2.0", 'adapt = ["--spacing", "pretrained"]', 'a list of KEY=VALUE'),
    ("tolerance_mm = 2.0", 'cases = "train"', '"test" or "validation"'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), BAD, ids=[new or "no id" for _, new, _ in BAD])
def test_a_grid_that_cannot_be_used_is_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read_grid(write_grid(tmp_path, GRID.replace(old, new)))


def test_a_missing_file_and_an_empty_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_grid(tmp_path / "none.toml")
    with pytest.raises(UserError, match=r"has no \[\[protocols\]\]"):
        read_grid(write_grid(tmp_path, GRID.partition("[[protocols]]")[0]))


# ---- scores


def test_scores_are_the_definitions() -> None:
    truth, guess = np.zeros((2, 20, 20, 20), bool)
    truth[5:15, 5:15, 5:15], guess[6:16, 5:15, 5:15] = True, True
    assert dice(truth, guess) == pytest.approx(2 * 900 / 2000)
    assert dice(truth, ~truth & False) == 0 and dice(truth & False, guess) is None
    pytest.importorskip("surface_distance", reason="the extra nnunet_ssl[bench] is not installed")
    assert surface_dice(truth, guess, (3.0, 1.0, 1.0), 3.1) == 1.0
    shifted = surface_dice(truth, guess, (3.0, 1.0, 1.0), 1.0)
    assert shifted is not None and 0.5 < shifted < 0.95  # the four sides lie on each other, top and bottom do not
    assert (
        surface_dice(truth, truth & False, (1, 1, 1), 1.0) == 0.0
        and surface_dice(truth & False, guess, (1, 1, 1), 1.0) is None
    )


def image_of(array: np.ndarray, path: Path, spacing: tuple[float, ...] = (1.0, 1.0, 2.0)) -> None:
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def test_folders_are_scored_subject_by_subject(tmp_path: Path) -> None:
    description = {"file_ending": ".nii.gz", "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}
    truth = np.zeros((6, 8, 8), int)
    truth[1:3, 2:6, 2:6], truth[3:5, 2:6, 2:6], truth[5] = 1, 2, 3
    guess = truth.copy()
    guess[5] = 2  # where the reference says ignore
    guess[1] = 0
    image_of(truth, tmp_path / "truth" / "a.nii.gz")
    image_of(guess, tmp_path / "guess" / "a.nii.gz")
    scores = score_folder(tmp_path / "guess", tmp_path / "truth", description, 1.0)
    assert classes_of(description) == {"whole": (1, 2), "core": (2,)}
    assert scores["a"]["core"]["dice"] == 1.0 and scores["a"]["whole"]["dice"] == pytest.approx(2 * 48 / (48 + 64))
    image_of(truth, tmp_path / "truth" / "b.nii.gz")
    with pytest.raises(UserError, match=r"b.nii.gz is missing"):
        score_folder(tmp_path / "guess", tmp_path / "truth", description, 1.0)
    image_of(guess[1:], tmp_path / "guess" / "b.nii.gz")
    with pytest.raises(UserError, match="expected the same grid"):
        score_folder(tmp_path / "guess", tmp_path / "truth", description, 1.0, ["b"])
    with pytest.raises(UserError, match="no reference segmentations"):
        score_folder(tmp_path / "guess", tmp_path, description, 1.0)


# ---- the runner


class Commands:
    """Stands for nnU-Net's commands: leaves the files that they leave, or fails or dies where it is told to."""

    def __init__(self, raw: Path) -> None:
        self.raw, self.calls, self.fails, self.dies = raw, [], set(), set()
        self.threads: set[str | None] = set()
        self.processes: set[tuple[str | None, str | None]] = set()

    def __call__(self, command: Sequence[str], log: TextIO, env: Mapping[str, str]) -> int:
        name, words = Path(command[0]).name, list(command[1:])
        self.calls.append([name, *words])
        self.threads.add(env.get("OMP_NUM_THREADS"))
        self.processes.add((env.get("nnUNet_n_proc_DA"), env.get("nnUNet_def_n_proc")))
        print("something happened", file=log, flush=True)
        if name == "nnUNetv2_predict":
            out = Path(words[words.index("-o") + 1])
            for path in (self.raw / "labelsTs").glob("*.nii.gz"):
                image_of(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), out / path.name)
            return 0
        folder = self.folder(words)
        folder.mkdir(parents=True, exist_ok=True)
        plans = Path(env["nnUNet_preprocessed"]) / self.raw.name / f"{words[words.index('-p') + 1]}.json"
        shutil.copy(plans, folder.parent / "plans.json")
        if words[1] in self.dies:
            (folder / "checkpoint_latest.pth").write_bytes(b"half")
            raise KeyboardInterrupt
        if words[1] in self.fails:
            return 3
        (folder / "checkpoint_final.pth").write_bytes(b"weights")
        (folder / "validation").mkdir(exist_ok=True)
        (folder / "validation" / "summary.json").write_text("{}")
        facts = {
            "steps": 10,
            "trainable_parameters": {"head": 7, "backbone": 0},
            "pretrained": None,
            "mirror_axes": None,
        }
        (folder / "downstream.json").write_text(json.dumps(facts))
        return 0

    def folder(self, words: list[str]) -> Path:
        import os

        trainer, plans = words[words.index("-tr") + 1], words[words.index("-p") + 1]
        dataset = next(Path(os.environ["nnUNet_results"]).parent.joinpath("raw").glob("Dataset004_*")).name
        return Path(os.environ["nnUNet_results"]) / dataset / f"{trainer}__{plans}__{words[1]}" / f"fold_{words[2]}"


@pytest.fixture
def bench(folders: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A labelled dataset with two test cases, a checkpoint, and a grid; nothing is preprocessed."""
    from nnunet_ssl.nnunet import preprocessing
    from nnunet_ssl.nnunet.planning import PlanRequest, make_plan

    raw_dataset(folders, 901, shape=(60, 80, 80))
    raw_dataset(folders, 4, labelled=True, shape=(60, 80, 80))
    raw = next((folders / "raw").glob("Dataset004_*"))
    for number in range(2):
        array = np.zeros((6, 8, 8), int)
        array[2:5, 2:6, 2 + number : 6] = 1
        image_of(array, raw / "labelsTs" / f"test_{number}.nii.gz")
        image_of(array, raw / "imagesTs" / f"test_{number}_0000.nii.gz")
    plans = make_plan(PlanRequest(901, "tiny")).plans
    checkpoint = write_checkpoint(folders / "weights.pth", plans, "3d_fullres", ("CT",), 0)
    monkeypatch.setattr(preprocessing, "is_preprocessed", lambda *_: True)
    monkeypatch.setenv("nnUNet_results", str(folders / "results"))
    path = write_grid(folders, GRID.replace('labelled = [1, 2, "all"]', "labelled = [1]"), checkpoint)
    return SimpleNamespace(path=path, grid=read_grid(path), commands=Commands(raw), folders=folders)


def runner(bench: SimpleNamespace, **more: Any) -> Runner:
    return Runner(bench.grid, "cpu", run=bench.commands, **more)


def test_every_job_is_one_stock_training_and_is_never_repeated(bench: SimpleNamespace) -> None:
    rows = runner(bench, workers=2).all()
    assert len(rows) == 10 and {row["status"] for row in rows} == {"done"}
    trained = [call for call in bench.commands.calls if call[0] == "nnUNetv2_train"]
    assert len(trained) == 10 and all(call[-2:] == ["-device", "cpu"] for call in trained)
    assert ["nnUNetv2_train", "4", "bench_linear_n1_d1", "0", "-tr", "SSLLinearProbeTrainer", "-p", "bench_secondPlans",
            "-device", "cpu"] in trained  # fmt: skip
    plans = json.loads(next((bench.folders / "preprocessed").glob("Dataset004_*/bench_firstPlans.json")).read_text())
    block = plans["configurations"]["bench_ft-fast_n1_d1"]["ssl"]
    assert (block["initial_lr"], block["labelled"], block["num_epochs"]) == (0.1, {"n": 1, "draw": 1}, 2)
    assert rows[0]["scores"]["test_0"] and all(s["dice"] == 1.0 for c in rows[0]["scores"].values() for s in c.values())
    assert runner(bench).todo() == [] and runner(bench).all() == [] and len(bench.commands.calls) == 20
    # a grid that grows keeps what is done, and the earlier configurations stay in the plan
    bench.path.write_text(bench.path.read_text().replace("labelled = [1]", "labelled = [1, 2]"))
    bench.grid = read_grid(bench.path)
    assert len(runner(bench).todo()) == 10 and len(runner(bench).all()) == 10
    plans = json.loads(next((bench.folders / "preprocessed").glob("Dataset004_*/bench_firstPlans.json")).read_text())
    assert {"bench_linear_n1_d0", "bench_linear_n2_d0"} <= set(plans["configurations"])


def test_a_checkpoint_is_read_once_for_all_jobs_of_a_plan(bench: SimpleNamespace, monkeypatch: Any) -> None:
    """And what is in the plan already is left alone."""
    from nnunet_ssl.nnunet import adapting, reading

    calls = {"adapt": 0, "read": 0}

    def counted(name: str, function: Callable) -> Callable:
        def inner(*args: Any, **more: Any) -> Any:
            calls[name] += 1
            return function(*args, **more)

        return inner

    monkeypatch.setattr(adapting, "make_adapted", counted("adapt", adapting.make_adapted))
    for module in (reading, adapting):
        monkeypatch.setattr(module, "read_checkpoint", counted("read", module.read_checkpoint))
    jobs = list(bench.grid.jobs())
    prepare(jobs)
    assert calls == {"adapt": 2 + 10, "read": 1}  # two plans of one file, ten configurations
    prepare(jobs)
    assert calls == {"adapt": 12, "read": 2}
    changed = [replace(job, settings={**job.settings, "num_epochs": 9}) for job in jobs[:1]]
    prepare(changed)
    assert calls["adapt"] == 13


def test_a_preset_reaches_the_plan_the_row_and_the_scores(bench: SimpleNamespace) -> None:
    bench.path.write_text('protocol = "vox2vec"\n' + bench.path.read_text())
    bench.grid = read_grid(bench.path)
    rows = runner(bench).all()
    assert {row["status"] for row in rows} == {"done"}, rows[0].get("error")
    assert (rows[0]["evaluation"], rows[0]["plan"]) == ("vox2vec", {"batch_size": 7})
    assert rows[0]["grids"]["1 x 1 x 2 mm"] == rows[0]["scores"]  # the fake images have that spacing
    plans = json.loads(next((bench.folders / "preprocessed").glob("Dataset004_*/bench_firstPlans.json")).read_text())
    made = plans["configurations"]["bench_linear-vox2vec_n1_d1"]
    assert made["batch_size"] == 7 and made["ssl"]["protocol"] == "vox2vec" and made["ssl"]["num_epochs"] == 2
    assert runner(bench).todo() == []
    bench.path.write_text("plan = {batch_size = 2}\n" + bench.path.read_text())
    bench.grid = read_grid(bench.path)
    with pytest.raises(UserError, match=r"was run with other settings .*batch_size"):
        runner(bench).todo()


def test_a_failed_job_stops_no_other_and_is_tried_again(bench: SimpleNamespace) -> None:
    bench.commands.fails = {"bench_linear_n1_d0"}
    rows = runner(bench).all()
    failed = [row for row in rows if row["status"] == "failed"]
    assert (
        len(rows) == 10
        and len(failed) == 2
        and "nnUNetv2_train ended with 3 (something happened)" in failed[0]["error"]
    )
    assert Path(failed[0]["log"]).is_file()
    bench.commands.fails = set()
    assert len(runner(bench).todo()) == 2
    assert [row["status"] for row in runner(bench).all()] == ["done", "done"]
    assert len(latest(read_results(bench.grid.results))) == 10


def test_a_killed_run_goes_on(bench: SimpleNamespace) -> None:
    """Stopped in a training, with half a line in the results: that job continues, no other is repeated."""
    bench.commands.dies = {"bench_ft-fast_n1_d0"}
    with pytest.raises(KeyboardInterrupt):
        runner(bench).all()
    with bench.grid.results.open("a") as stream:
        stream.write('{"job": {"dataset": 4,')
    done, bench.commands.dies, bench.commands.calls = len(latest(read_results(bench.grid.results))), set(), []
    assert 0 < done < 10
    runner(bench).all()
    trained = [call for call in bench.commands.calls if call[0] == "nnUNetv2_train"]
    assert len(trained) == 10 - done
    goes_on = [call for call in trained if call[-1] == "--c"]
    assert [(call[2], call[call.index("-p") + 1]) for call in goes_on] == [("bench_ft-fast_n1_d0", "bench_firstPlans")]
    assert {row["status"] for row in latest(read_results(bench.grid.results)).values()} == {"done"}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX's processes")
def test_what_a_killed_runner_has_started_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner is killed and its command lives on: the next runner comes after its end, but does not wait for a
    worker that the command leaves behind with the log open.
    """
    path = tmp_path / "folder" / "log"
    sleep = "import time; time.sleep(300)"
    worker = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{sleep}'])"
    command = [sys.executable, "-c", f"{worker}; {sleep}"]
    runs = f"from nnunet_ssl.bench.commands import *\nwith own_log(Path({str(path)!r}), lambda: None) as log:\n" \
           f"    run_command({command!r}, log, os.environ)"  # fmt: skip
    killed = subprocess.Popen([sys.executable, "-c", runs])
    deadline = time.monotonic() + 60
    while not path.is_file() or commands.PROCESS not in path.read_text():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    orphan = int(path.read_text().split(commands.PROCESS)[1].split()[0])
    killed.kill()
    killed.wait()
    monkeypatch.setattr(commands, "POLL_S", 0.02)
    said: list[str] = []

    def end_it() -> None:
        said.append(path.read_text())
        os.kill(orphan, signal.SIGKILL)

    with commands.own_log(path, end_it) as log:
        assert len(said) == 1
        assert commands.run_command([sys.executable, "-c", "print('next')"], log, {}) == 0
    assert path.read_text().splitlines()[-1] == "next"
    with commands.own_log(path, lambda: pytest.fail("nobody has it")):
        pass


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX's signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_runner_that_is_stopped_ends_its_commands_and_records_nothing(
    bench: SimpleNamespace, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[float] = []

    def slow(command: Sequence[str], log: TextIO, env: Mapping[str, str]) -> int:
        started.append(time.monotonic())
        if len(started) == 2:
            Timer(0.5, os.kill, (os.getpid(), getattr(signal, number))).start()
        return commands.run_command([sys.executable, "-c", "import time; time.sleep(30)"], log, env)

    before = signal.getsignal(signal.SIGTERM)
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background processes
    try:
        with pytest.raises(KeyboardInterrupt):
            Runner(bench.grid, "cpu", 2, run=slow).all()
    finally:
        signal.signal(signal.SIGINT, interrupts)
    assert len(started) == 2 and time.monotonic() - started[0] < 60
    assert not bench.grid.results.exists() and not commands.RUNNING and signal.getsignal(signal.SIGTERM) == before
    assert "the same command goes on" in capsys.readouterr().out
    assert len(runner(bench).todo()) == 10


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX's locks")
@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_job_of_another_runner_is_not_run_beside_it(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    job = next(bench.grid.jobs())
    runner(bench).ready([job])
    other = commands.own_log(folders_of(job).log, lambda: None)
    other.__enter__()
    row = {"job": job.key, "status": status, "scores": {}}
    with ThreadPoolExecutor() as pool:
        second = pool.submit(runner(bench).one, job)
        said, deadline = "", time.monotonic() + 60
        while "another process is at it" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().out
            time.sleep(0.01)
        assert not bench.commands.calls and not second.done()
        add_row(bench.grid.results, row)
        other.__exit__(None, None, None)
        found = second.result(60)
    if status == "done":
        assert found == row and not bench.commands.calls and len(read_results(bench.grid.results)) == 1
    else:
        assert found["status"] == "done" and bench.commands.calls and len(read_results(bench.grid.results)) == 2


@pytest.mark.parametrize(
    ("workers", "given", "expected"), [(1, None, None), (2, None, "4"), (3, None, "2"), (99, None, "1"), (2, "3", "3")]
)
def test_jobs_side_by_side_share_the_processor(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, workers: int, given: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    job = next(bench.grid.jobs())
    runner(bench).ready([job])
    runner(bench, workers=workers).one(job)
    assert bench.commands.threads == {expected}


@pytest.mark.parametrize(("device", "given", "expected"), [
    ("cpu", {}, ("0", "1")),
    ("cpu", {"nnUNet_n_proc_DA": "3"}, ("3", "1")),
    ("cuda", {}, (None, None)),
])  # fmt: skip
def test_on_a_cpu_a_job_has_no_worker_processes_unless_asked_for(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, device: str, given: dict[str, str], expected: tuple
) -> None:
    """They compete with the training for its cores, and no seed reaches what they draw."""
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    job = next(bench.grid.jobs())
    runner(bench).ready([job])
    Runner(bench.grid, device, run=bench.commands).one(job)
    assert bench.commands.processes == {expected}


def test_changed_settings_are_noticed(bench: SimpleNamespace) -> None:
    runner(bench).all()
    bench.path.write_text(bench.path.read_text().replace("num_epochs = 2", "num_epochs = 3"))
    bench.grid = read_grid(bench.path)
    with pytest.raises(UserError, match="was run with other settings"):
        runner(bench).todo()


def test_a_training_of_another_grid_is_not_taken_for_ones_own(bench: SimpleNamespace) -> None:
    """A second file with the same names and other settings: its jobs would find the first one's checkpoints."""
    runner(bench).all()
    moved = bench.path.with_name("same.toml")
    moved.write_text(bench.path.read_text())
    Runner(read_grid(moved), "cpu", run=bench.commands).all()  # the same settings: its own, as far as anybody can tell
    other = bench.path.with_name("other.toml")
    other.write_text(bench.path.read_text().replace("num_epochs = 2", "num_epochs = 3"))
    bench.commands.calls = []
    with pytest.raises(UserError, match=r"by other settings .*ssl.num_epochs 2 and not 3.*another name or label"):
        Runner(read_grid(other), "cpu", run=bench.commands).all()
    assert bench.commands.calls == []


def test_a_dry_run_says_what_would_happen(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", str(bench.path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count(": 10 steps") == 10 and "10 jobs to run, 100 steps in all" in said and not bench.commands.calls
    rows = runner(bench).all()
    text = bench.grid.results.read_text().splitlines()
    bench.grid.results.write_text("\n".join(text[:5]) + "\n")
    lines = estimate(bench.grid, runner(bench).todo())
    assert len(lines) == 7 and "5 jobs to run" in lines[-1] and "5 that are done" in lines[-1] and len(rows) == 10
    assert " free" in lines[-1] and lines[-2].startswith("dataset 4: 5 jobs, 50 steps, about ")
    assert main(["bench", "run", str(bench.path), "--jobs", "0"]) == 1 and "--jobs is 0" in capsys.readouterr().err


@pytest.mark.parametrize("old, new, words", [
    ('checkpoint = "', 'checkpoint = "/gone', "The checkpoint /gone.* is not there"),
    ("tolerance_mm = 2.0", "tolerance_mm = 2.0  # gone", "has no .*labelsTs with .nii.gz files.*validation"),
    ("[settings]", "[settings]\nnum_epoch = 3", 'Did you mean "num_epochs"'),
    ("labelled = [1]", "labelled = [1, 99]", "asks for 99 labelled cases of dataset 4, fold 0, which has [0-9]"),
])  # fmt: skip
def test_what_cannot_be_run_is_said_before_anything_runs(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    text = bench.path.read_text(encoding="utf-8")
    assert old in text
    bench.path.write_text(text.replace(old, new), encoding="utf-8")
    if new.endswith("# gone"):
        for name in ("imagesTs", "labelsTs"):
            shutil.rmtree(bench.commands.raw / name)
    for more in (["--dry-run"], []):
        assert main(["bench", "run", str(bench.path), *more]) == 1
        assert re.search(words, capsys.readouterr().err)


def test_more_subjects_than_a_fold_can_choose_from_are_refused(bench: SimpleNamespace) -> None:
    """Counted are subjects of the training part: two cases of one subject are one, validation cases none."""
    jobs = [job for job in bench.grid.jobs() if job.labelled == 1]
    raw = folders_of(jobs[0]).raw
    content = load_json(raw / "dataset.json")
    cases = sorted(training_files(raw, content))
    split = [{"train": cases[:-1], "val": cases[-1:]}]
    (bench.folders / "preprocessed" / raw.name / "splits_final.json").write_text(json.dumps(split))
    for subjects, most, what in ((None, len(cases) - 1, "cases"), (dict.fromkeys(cases, "one"), 1, "subjects")):
        (raw / "dataset.json").write_text(json.dumps({**content, **({"subjects": subjects} if subjects else {})}))
        require_possible([replace(job, labelled=most) for job in jobs])
        with pytest.raises(UserError, match=f"{most + 1} labelled {what} of dataset 4, fold 0, which has {most}"):
            require_possible([replace(job, labelled=most + 1) for job in jobs])


def test_time_and_disk_are_those_of_jobs_alike(bench: SimpleNamespace) -> None:
    """By hand: 10 s a step for linear, 100 for the rest; disk by what a finished job has left, else by checkpoints."""
    jobs = list(bench.grid.jobs())
    first, size = estimate(bench.grid, jobs), (bench.folders / "weights.pth").stat().st_size
    assert "the time shows after the first" in first[-2] and "no time known" in first[-1]
    labels = sum(path.stat().st_size for path in bench.commands.raw.glob("labelsTs/*"))
    assert f"about {10 * (2 * size + labels) / 1e6:.1f} MB" in first[-2]
    fast = next(job for job in jobs if job.protocol.title == "ft-fast")
    done = [jobs[0], fast]
    bench.grid.results.write_text("".join(
        json.dumps({"job": job.key, "status": "done", "steps": 10, "seconds": seconds, "settings": {}}) + "\n"
        for job, seconds in zip(done, (100.0, 1000.0), strict=True)))  # fmt: skip
    for job in done:
        folders_of(job).fold.mkdir(parents=True)
        (folders_of(job).fold / "checkpoint_final.pth").write_bytes(b"0" * 3_000_000)
    rest = [job for job in jobs if job not in done]
    # 3 linear ones of 10 steps at 10 s, 3 fast ones at 100 s, 2 from scratch at the mean of 55 s
    line = estimate(bench.grid, rest)[-2]
    assert f"about {(3 * 100 + 3 * 1000 + 2 * 550) / 3600:.1f} h, about 24.0 MB" in line


def test_where_a_jobs_files_lie(bench: SimpleNamespace) -> None:
    job = next(bench.grid.jobs())
    found = folders_of(job)
    assert found.fold.name == "fold_0" and found.fold.parent.name == f"{job.trainer}__{job.plans}__{job.configuration}"
    assert found.raw.name.startswith("Dataset004_") and found.log.parent == found.fold.parent.parent


# ---- tables


def made_up(
    folder: Path,
    value: Callable[[dict[str, Any], int], float],
    skip: Callable[[dict[str, Any]], bool] = lambda _: False,
    subjects: int = 12,
    text: str = GRID,
) -> Any:
    """A grid whose results are a function of the job and the subject."""
    grid = read_grid(write_grid(folder, text))
    lines = []
    for job in grid.jobs():
        if skip(job.key):
            continue
        scores = {f"s{i}": {"organ": {"dice": value(job.key, i), "nsd": 0.5}} for i in range(subjects)}
        lines.append(json.dumps({
            "job": job.key, "settings": dict(job.settings), "status": "done", "steps": 10, "seconds": 60.0,
            "trainable_parameters": {"head": 10, "backbone": 90}, "mirror_axes": None, "scores": scores,
        }))  # fmt: skip
    grid.results.write_text("\n".join(lines) + "\n")
    return grid


def flat(key: dict[str, Any], subject: int) -> float:
    base = {"linear": 0.5, "ft-fast": 0.8, "scratch": 0.6}[key["protocol"]]
    slope = {"linear": 0.01, "ft-fast": 0.011, "scratch": 0.009}[key["protocol"]]  # no two differences alike
    return base + slope * subject + 0.02 * key["draw"]


def test_a_table_has_the_known_answers(tmp_path: Path) -> None:
    grid = made_up(tmp_path, flat)
    rows = {(row["labelled"], row["arm"]): row for row in table_rows(arms_of(grid))}
    found = rows[(1, "first ft-fast")]
    assert found["dice"] == pytest.approx(0.8 + 0.011 * 5.5 + 0.01) and found["sd_draws"] == pytest.approx(
        0.02 / 2**0.5
    )
    assert found["difference"] == pytest.approx(0.2 + 0.002 * 5.5) and found["signs"] == "++" and found["nsd"] == 0.5
    assert rows[(1, "second linear")]["difference"] == pytest.approx(-0.1 + 0.001 * 5.5) and found["parameters"] == 100
    # every subject differs the same way: the exact two-sided test over 12 subjects; 12 comparisons in the family
    assert found["p"] == pytest.approx(2 / 2**12) and found["p_holm"] == pytest.approx(12 * 2 / 2**12)
    assert rows[(1, "scratch (first's plan)")]["difference"] is None and found["note"] == ""
    assert (rows[("all", "first linear")]["signs"], rows[("all", "first linear")]["jobs"]) == ("-", 1)


def test_what_is_missing_shows(tmp_path: Path) -> None:
    """Nothing is compared over unequal sets: scratch lacks draw 1, so the arms are compared on draw 0."""
    grid = made_up(tmp_path, flat, lambda key: (key["labelled"], key["draw"], key["protocol"]) == (1, 1, "scratch")
                   or (key["labelled"], key["pretraining"]) == (2, "second"))  # fmt: skip
    rows = {(row["labelled"], row["arm"]): row for row in table_rows(arms_of(grid))}
    arm = rows[(1, "first linear")]
    assert (
        arm["difference"] == pytest.approx(-0.1 + 0.001 * 5.5)
        and arm["signs"] == "-"
        and "compared on 1 shared draws" in arm["note"]
    )
    assert rows[(1, "scratch (first's plan)")]["note"] == "1 of 2 jobs"
    missing = rows[(2, "second linear")]
    assert missing["dice"] is None and missing["note"] == "0 of 2 jobs"
    folder = write_report(grid)
    assert "| 4 | 2 | second linear | original | missing |" in (folder / "table.md").read_text()
    draws = {(row["labelled"], row["arm"], row["draw"]): row for row in csv.DictReader((folder / "draws.csv").open())}
    assert draws["1", "first linear", "1"]["dice"] and not draws["1", "first linear", "1"]["difference"]
    assert draws["1", "first linear", "0"]["difference"] and ("2", "second linear", "0") not in draws


def test_the_files_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = made_up(tmp_path, flat)
    assert main(["bench", "report", str(grid.path), "-o", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out"
    assert "open " + str(folder / "index.html") in capsys.readouterr().out
    singles = list(csv.DictReader((folder / "subjects.csv").open()))
    assert (
        len(singles) == 25 * 12 and float(singles[0]["dice"]) == pytest.approx(0.5) and singles[0]["class"] == "organ"
    )
    assert len(list(csv.DictReader((folder / "arms.csv").open()))) == 15
    latex = (folder / "table.tex").read_text()
    assert latex.count(r"\\") == 16 and r"95 \% interval" in latex and "first ft-fast" in latex
    page = (folder / "index.html").read_text()
    assert page.count("<svg ") == 3 and "http" not in page and "25 of 25 jobs" in page
    assert {path.name for path in (folder / "figures").iterdir()} == {"few_shot_4.svg", "classes_4.svg",
                                                                      "parameters_4.svg"}  # fmt: skip
    draws = {(row["labelled"], row["arm"], row["draw"]): row for row in csv.DictReader((folder / "draws.csv").open())}
    assert len(draws) == 25
    one, other = (float(draws["1", "first ft-fast", draw]["dice"]) for draw in "01")
    assert (one, other) == (pytest.approx(0.8 + 0.011 * 5.5), pytest.approx(0.8 + 0.011 * 5.5 + 0.02))
    assert float(draws["1", "first ft-fast", "1"]["difference"]) == pytest.approx(0.2 + 0.002 * 5.5)
    assert draws["1", "scratch (first's plan)", "0"]["difference"] == ""
    targets = list(csv.DictReader((folder / "targets.csv").open()))
    assert len(targets) == 15 and {row["class"] for row in targets} == {"organ"}
    with pytest.raises(UserError, match="has no finished job"):
        write_report(read_grid(write_grid(tmp_path / "out")))


def test_thousands_of_results_are_read_in_moments(tmp_path: Path) -> None:
    """Not a benchmark: it fails where a report would take minutes."""
    text = GRID.replace("draws = 2", "draws = 100").replace('labelled = [1, 2, "all"]', "labelled = [1, 2, 5, 10]")
    grid = made_up(tmp_path, flat, subjects=2, text=text)
    assert len(read_results(grid.results)) == 2000
    start = time.process_time()
    assert len(arms_of(grid)) == 20
    assert time.process_time() - start < 60
