"""``nnunet_ssl bench prepare``: every converter on a miniature of its download, and what is not one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.bench.prepare import MOST_PROBLEMS, PrepareRequest, prepare
from nnunet_ssl.bench.splits import make_splits
from nnunet_ssl.bench.task import load_task
from nnunet_ssl.cli.main import main
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.volumes import content_hash
from tests import download_tools as make
from tests.import_tools import assert_nothing_left, places

__all__ = ["places"]  # a fixture


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whole miniature of each layout, not to be changed."""
    folder = tmp_path_factory.mktemp("downloads")
    return {"BTCV": make.btcv(folder), "Task09_Spleen": make.msd(folder), "ACDC": make.acdc(folder)}


def made(task: str, source: Path, **more: Any) -> Path:
    return prepare(PrepareRequest(task, str(source), **{"dataset_id": 17, **more})).folder


def contents(folder: Path) -> tuple[dict[str, Any], list[dict[str, list[str]]], dict[str, Any]]:
    names = ("dataset.json", "splits_final.json", "import_report.json")
    description, splits, report = (json.loads((folder / name).read_text()) for name in names)
    return description, splits, report


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("task_name", ["BTCV", "Task09_Spleen", "ACDC"])
def test_a_whole_download_becomes_an_nnunet_dataset(task_name: str, downloads: dict[str, Path], places: Path) -> None:
    task = load_task(task_name)
    folder = made(task_name, downloads[task_name])
    description, splits, report = contents(folder)
    assert folder == places / "raw" / f"Dataset017_{task.short_name}"
    assert names_in(places / "raw") == [folder.name] and names_in(places / "preprocessed") == []
    assert description["labels"] == task.labels and description["numTraining"] == task.training
    assert description["channel_names"] == {"0": task.channels[0]} and description["file_ending"] == ".nii.gz"
    assert len(names_in(folder / "imagesTr")) == len(names_in(folder / "labelsTr")) == task.training
    assert len(names_in(folder / "imagesTs")) == task.test
    assert (folder / "labelsTs").is_dir() == task.test_labels
    cases = [name.removesuffix(".nii.gz") for name in names_in(folder / "labelsTr")]
    assert set(names_in(folder / "imagesTr")) == {f"{case}_0000.nii.gz" for case in cases}
    assert len(splits) == task.split["folds"] and sorted(c for f in splits for c in f["val"]) == sorted(cases)
    assert all(sorted(fold["train"] + fold["val"]) == sorted(cases) for fold in splits)
    assert set(report["volumes"]) == set(cases) and len(report["test_volumes"]) == task.test
    first = sitk.ReadImage(str(folder / "imagesTr" / f"{cases[0]}_0000.nii.gz"))
    assert report["volumes"][cases[0]] == content_hash(first)
    assert len({*report["volumes"].values(), *report["test_volumes"].values()}) == task.training + task.test
    left = {"dataset.json", "splits_final.json", "import_report.json", "imagesTr", "labelsTr", "imagesTs", "labelsTs"}
    assert set(names_in(folder)) <= left and report["missing"] == [] and report["task"] == task_name


def test_the_labels_are_those_of_their_images(downloads: dict[str, Path], places: Path) -> None:
    folder = made("BTCV", downloads["BTCV"])
    source = downloads["BTCV"] / "RawData" / "Training"
    for name in ("img0010", "img0021"):
        assert (folder / "imagesTr" / f"{name}_0000.nii.gz").read_bytes() == (
            source / "img" / f"{name}.nii.gz"
        ).read_bytes()
        assert (folder / "labelsTr" / f"{name}.nii.gz").read_bytes() == (
            source / "label" / f"{name.replace('img', 'label')}.nii.gz"
        ).read_bytes()


def test_mixed_orientations_get_the_reorienting_reader(downloads: dict[str, Path], places: Path) -> None:
    """nnU-Net reads axes as they are stored: left and right organs of one turned scan would change places."""
    assert "overwrite_image_reader_writer" not in contents(made("BTCV", downloads["BTCV"]))[0]
    source = make.copied(downloads["BTCV"] / "RawData", places / "source")
    for path in (source / "Training/img/img0003.nii.gz", source / "Training/label/label0003.nii.gz"):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS"), str(path))
    description, _, report = contents(made("BTCV", source, overwrite=True))
    assert description["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert report["orientations"] == {"LPS": 49, "RAS": 1}


def test_acdc_is_split_by_patient_and_balanced(downloads: dict[str, Path], places: Path) -> None:
    from nnunet_ssl.nnunet.downstream.sampling import case_groups, case_subjects, choose_cases

    description, splits, _ = contents(made("ACDC", downloads["ACDC"]))
    groups = case_groups(places / "nowhere", description)
    assert len(groups) == 200 and "patient090_frame04" in groups and "patient090_frame01" not in groups
    for fold in splits:
        patients = {case[:10] for case in fold["val"]}
        assert len(patients) == 20 and not patients & {case[:10] for case in fold["train"]}
        assert Counter(groups[case] for case in fold["val"]) == dict.fromkeys(make.GROUPS, 8)
    subjects = case_subjects(description)
    assert len(set(subjects.values())) == 100 and subjects["patient090_frame04"] == "patient090"
    chosen = choose_cases(splits[0]["train"], {"n": 5, "draw": 0}, groups, subjects)
    assert len(chosen) == 10 and {groups[case] for case in chosen} == set(make.GROUPS)
    assert "subjects" not in contents(made("BTCV", downloads["BTCV"], dataset_id=18))[0]


def test_stock_planning_takes_the_folds_over(downloads: dict[str, Path], places: Path) -> None:
    """And an --overwrite gives them to plans that stay."""
    from nnunet_ssl.nnunet.datasets import open_dataset
    from nnunet_ssl.nnunet.planners import stock_plan

    folder = made("Task09_Spleen", downloads["Task09_Spleen"])
    stock_plan(open_dataset(17), "ExperimentPlanner", "nnUNetPlans")
    copied = places / "preprocessed" / folder.name / "splits_final.json"
    assert json.loads(copied.read_text()) == contents(folder)[1]
    stock_plan(open_dataset(17), "ExperimentPlanner", "nnUNetPlans")  # which compares the two
    with pytest.raises(UserError, match="17 is taken"):
        made("Task09_Spleen", downloads["Task09_Spleen"])
    made("Task09_Spleen", downloads["Task09_Spleen"], overwrite=True)
    assert json.loads(copied.read_text()) == contents(folder)[1]


def test_splits_are_seeded_whole_and_balanced() -> None:
    cases = {f"p{i:02d}_{frame}": f"p{i:02d}" for i in range(23) for frame in "ab"}
    groups = {f"p{i:02d}": "xyz"[i % 3] for i in range(23)}
    splits = make_splits(cases, 4, 0, groups)
    assert splits == make_splits(dict(reversed(cases.items())), 4, 0, groups) != make_splits(cases, 4, 1, groups)
    parts = [{cases[case] for case in fold["val"]} for fold in splits]
    assert {len(part) for part in parts} == {5, 6} and set.union(*parts) == set(groups)
    for group in "xyz":
        assert len({sum(groups[s] == group for s in part) // 2 for part in parts}) <= 2
        counts = [sum(groups[s] == group for s in part) for part in parts]
        assert max(counts) - min(counts) <= 1
    with pytest.raises(ValueError, match="3 subjects for 4 folds"):
        make_splits({"a": "a", "b": "b", "c": "c"}, 4, 0)


# ---- what is not a whole download

B = Path("RawData/Training")


def corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def rewrite(change: Callable[[np.ndarray], np.ndarray], **more: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        make.save(path, change(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))), **more)

    return apply


def wrong_value(array: np.ndarray) -> np.ndarray:
    array[0, 0, 0] = 200
    return array


DAMAGE = {
    "a label is missing": (B / "label/label0004.nii.gz", Path.unlink, "missing: Training/label/label0004.nii.gz"),
    "an image is missing": (B / "img/img0021.nii.gz", Path.unlink, "missing: Training/img/img0021.nii.gz"),
    "a test image is missing": (Path("RawData/Testing/img/img0080.nii.gz"), Path.unlink, "Testing/img/img0080.nii.gz"),
    "corrupt image": (B / "img/img0002.nii.gz", corrupt, "img0002.nii.gz: unreadable"),
    "corrupt label": (B / "label/label0002.nii.gz", corrupt, "label0002.nii.gz: unreadable"),
    "no image": (B / "img/img0002.nii.gz", lambda path: path.write_text("<html>"), "img0002.nii.gz: unreadable"),
    "empty file": (B / "img/img0002.nii.gz", lambda path: path.write_bytes(b""), "img0002.nii.gz: empty"),
    "another size": (B / "label/label0003.nii.gz", rewrite(lambda a: a[1:]), "another grid than its image: 11 x 9 x 5"),
    "another spacing": (B / "label/label0003.nii.gz", rewrite(lambda a: a, spacing=(1.5, 1.5, 4.0)), "another grid"),
    "wrong value": (B / "label/label0005.nii.gz", rewrite(wrong_value), "label values 200, expected only 0 background"),
    "half a value": (B / "label/label0005.nii.gz", rewrite(lambda a: a.astype(np.float32) / 2), "values 0.5, 1.5"),
    "constant": (B / "img/img0006.nii.gz", rewrite(lambda a: a * 0), "constant"),
    "unknown image": (B / "img/img0099.nii.gz", lambda path: path.write_bytes(b"x"), "img0099.nii.gz: no image of"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_wrong_is_listed(
    case: str, downloads: dict[str, Path], places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, damage, words = DAMAGE[case]
    source = make.copied(downloads["BTCV"] / "RawData", places / "source" / "RawData").parent
    damage(source / path)
    command = ["bench", "prepare", "BTCV", "--source", str(source), "-d", "17", "-np", "0"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert words in said and "is not the whole BTCV" in said and "Problems: 1\n" in said and "Traceback" not in said
    assert "Expected 30 training and 20 test cases" in said and "https://www.synapse.org" in said
    assert_nothing_left(places)
    partial = main([*command, "--partial"])
    assert partial == (0 if "missing" in case else 1)  # only what is missing can be done without
    if partial == 0:
        assert "lists what is missing: 1)" in capsys.readouterr().out
        description, splits, report = contents(places / "raw" / "Dataset017_BTCV")
        number = 30 if "test" in case else 29
        assert description["numTraining"] == len(report["volumes"]) == number
        assert sum(len(fold["val"]) for fold in splits) == number
        assert len(report["missing"]) == 1


def test_everything_is_listed_at_once(downloads: dict[str, Path], places: Path) -> None:
    source = make.copied(downloads["BTCV"] / "RawData", places / "source")
    for path in (source / "Testing/img").iterdir():
        path.unlink()
    for path in (source / "Training/label").iterdir():
        path.unlink()
    corrupt(source / "Training/img/img0001.nii.gz")
    with pytest.raises(UserError) as error:
        made("BTCV", source)
    said = str(error.value)
    assert "Problems: 50" in said and said.count("\n  ") == MOST_PROBLEMS + 1 and "and 10 more" in said
    with pytest.raises(UserError, match="no training case"):
        made("BTCV", source, partial=True)


@pytest.mark.parametrize("task_name", ["BTCV", "Task09_Spleen", "ACDC"])
def test_a_wrong_folder_is_refused(task_name: str, downloads: dict[str, Path], places: Path) -> None:
    other = {"BTCV": "ACDC", "ACDC": "Task09_Spleen", "Task09_Spleen": "ACDC"}[task_name]
    for source in (downloads[other], places / "scans"):
        with pytest.raises(UserError, match=f"is not the download of {task_name}: it has no"):
            made(task_name, source)
    with pytest.raises(UserError, match="is no folder"):
        made(task_name, places / "nowhere")
    assert_nothing_left(places)


def test_another_task_of_the_decathlon_is_refused(places: Path) -> None:
    source = make.msd(places / "source", "Task09_Spleen")
    with pytest.raises(UserError, match=r"labels \[0, 1\], expected \[0, 1, 2\]: another task"):
        made("Task03_Liver", source)
    with pytest.raises(UserError, match="lists 41 training cases, expected 63"):
        made("Task06_Lung", source)
    (source / "labelsTr" / "spleen_999.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"labelsTr/spleen_999.nii.gz: not listed in dataset.json"):
        made("Task09_Spleen", source)
    (source / "dataset.json").write_text('{"labels": {"0": "background"}}')
    with pytest.raises(UserError, match="is not the decathlon's"):
        made("Task09_Spleen", source)
    assert_nothing_left(places)


def test_a_part_of_a_decathlon_task(places: Path) -> None:
    """One case lacks its label, the test images are not there: on demand, the rest is taken."""
    source = make.msd(places / "source")
    os.rename(source, source.with_name("unpacked"))  # whatever its folder is called
    source = source.with_name("unpacked")
    (source / "labelsTr" / "spleen_5.nii.gz").unlink()
    for path in (source / "imagesTs").iterdir():
        path.unlink()
    (source / "imagesTs").rmdir()
    with pytest.raises(UserError, match=r"missing: labelsTr/spleen_5.nii.gz"):
        made("Task09_Spleen", source)
    folder = made("Task09_Spleen", source, partial=True, name="Part")
    description, _, report = contents(folder)
    assert folder.name == "Dataset017_Part" and description["numTraining"] == 40 and report["test_volumes"] == {}
    assert len(names_in(folder / "imagesTr")) == len(names_in(folder / "labelsTr")) == 40
    assert len(report["missing"]) == 21 and names_in(places / "raw") == [folder.name]


def test_what_acdc_may_lack(downloads: dict[str, Path], places: Path) -> None:
    source = make.copied(downloads["ACDC"], places / "source")
    (source / "training/patient001/Info.cfg").unlink()
    (source / "training/patient002/Info.cfg").write_text("ED: 1\nES: 10\nGroup: XYZ\n")
    (source / "training/patient003/patient003_frame10_gt.nii.gz").unlink()
    (source / "testing/patient101/patient101_frame01_gt.nii.gz").unlink()
    os.rename(source / "training/patient004", source / "training/patient4")
    with pytest.raises(UserError) as error:
        made("ACDC", source)
    for words in (
        "missing: training/patient001/Info.cfg",
        "training/patient002/Info.cfg: ED 1, ES 10, Group XYZ; expected two frame numbers and a group of NOR, MINF",
        "missing: training/patient003/patient003_frame10_gt.nii.gz",
        "missing: testing/patient101/patient101_frame01_gt.nii.gz",
        "missing: training/patient004\n",
    ):
        assert words in str(error.value)
    assert_nothing_left(places)


def test_the_next_commands_have_real_names(
    downloads: dict[str, Path], places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(downloads["ACDC"])
    assert main(["bench", "prepare", "acdc", "--source", source, "-d", "27", "-n", "Hearts", "-np", "2"]) == 0
    said = capsys.readouterr().out
    assert "Dataset027_Hearts: 200 training and 100 test cases" in said and "CC BY-NC-SA" in said
    assert "nnUNetv2_plan_and_preprocess -d 27" in said and 'cases = "test"' in said
    assert main(["bench", "prepare", "acdc", "--source", source, "-d", "27"]) == 1
    assert "27 is taken" in capsys.readouterr().err
    assert main(["bench", "prepare", "ACDD", "--source", source, "-d", "28"]) == 1
    assert 'Did you mean "ACDC"' in capsys.readouterr().err


def test_an_interrupted_conversion_leaves_nothing(
    downloads: dict[str, Path], places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunet_ssl.bench import prepare as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        made("BTCV", downloads["BTCV"])
    assert_nothing_left(places)
