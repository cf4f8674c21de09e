"""The datasets of the benchmark: every JSON is found by listing, complete, and adds up to the paper's tasks."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from nnunet_ssl.bench.task import Task, load_task, task_names
from nnunet_ssl.cli.main import main
from tests.test_layers import REPOSITORY

FILES = sorted((REPOSITORY / "nnunet_ssl" / "bench" / "tasks").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_task_has_every_field(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) == {field.name for field in fields(Task)} and content["name"] == path.stem
    task = load_task(path.stem)
    for text in (task.title, task.source, task.licence, task.download, task.names, *task.citation, *task.folders):
        assert isinstance(text, str) and text
    assert task.citation and task.folders and task.channels and task.download.startswith("http")
    assert task.layout in ("btcv", "msd", "acdc") and task.score in ("test", "validation")
    assert task.score == "validation" or task.test_labels
    values = list(task.labels.values())
    assert task.labels["background"] == 0 and values == list(range(len(values))) and task.targets
    assert task.training >= task.split["folds"] >= 2 and set(task.split) == {"folds", "seed", "by_subject", "balanced"}
    assert set(task.metric) == {"names", "tolerance_mm", "tolerance_source"} and task.metric["tolerance_mm"] > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_named_subjects_are_as_many_as_there_are(path: Path) -> None:
    task = load_task(path.stem)
    for test, number in ((False, task.training), (True, task.test)):
        subjects = task.subjects(test)
        frames = 2 if task.layout == "acdc" else 1
        assert len(set(subjects)) == len(subjects) and (not subjects or len(subjects) * frames == number)


def test_the_paper_has_its_22_tasks() -> None:
    assert [path.stem for path in FILES] == task_names()
    papers = [task for task in map(load_task, task_names()) if task.paper == "vox2vec"]
    assert sum(len(task.targets) for task in papers) == 22
    assert len(load_task("BTCV").targets) == 13 and load_task("BTCV").split["folds"] == 5
    msd = [task for task in papers if task.layout == "msd"]
    assert [int(task.name[4:6]) for task in msd] == [3, 6, 7, 8, 9, 10]
    assert {task.split["folds"] for task in msd} == {3} and sum(len(task.targets) for task in msd) == 9
    assert load_task("ACDC").targets == ["RV", "MYO", "LV"] and "Task04_Hippocampus" in task_names()


def test_the_command_shows_one_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tasks"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in task_names()) and "22 of vox2vec" in said
    assert main(["bench", "tasks", "btcv"]) == 0
    said = capsys.readouterr().out
    assert "left adrenal gland 13" in said and "RawData/Training/img/img0001.nii.gz" in said and "syn3193805" in said
    assert "folds 5" in said and "tolerance_mm 1.0" in said


TYPED = [("BTVC", "BTCV"), ("liver", "Task03_Liver"), ("Task3_Liver", "Task03_Liver")]


@pytest.mark.parametrize(("typed", "meant"), TYPED)
def test_an_unknown_task_is_refused_with_the_nearest(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "tasks", typed]) == 1
    said = capsys.readouterr().err
    assert f'There is no task "{typed}". Did you mean "{meant}"?' in said and "There are: ACDC, BTCV" in said
