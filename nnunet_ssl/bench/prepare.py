"""A public dataset, as it was downloaded -> an ordinary nnU-Net raw dataset with its folds.

Everything is read before anything is written, and the dataset is built in a hidden folder beside its place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ssl import __version__
from nnunet_ssl.bench.layouts import Found, Item, find_cases
from nnunet_ssl.bench.splits import make_splits
from nnunet_ssl.bench.task import Task, load_task
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.checking import CaseFiles, Checked, check_case, died
from nnunet_ssl.nnunet.datasets import environment_folder, load_json
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.import_report import REPORT
from nnunet_ssl.nnunet.placing import place_of
from nnunet_ssl.nnunet.pool import run_all
from nnunet_ssl.nnunet.splits import SPLITS

ENDING = ".nii.gz"
MOST_PROBLEMS = 40  # that are printed


@dataclass(frozen=True)
class PrepareRequest:
    """What `bench prepare` was asked for. partial: take what is there; processes=0 works in this process."""

    task: str
    source: str
    dataset_id: int
    name: str | None = None
    overwrite: bool = False
    partial: bool = False
    processes: int = 0


@dataclass(frozen=True)
class Prepared:
    """The new dataset, and its report as written to import_report.json."""

    task: Task
    folder: Path
    report: dict[str, Any]


def prepare(request: PrepareRequest) -> Prepared:
    """Check the download, convert it. UserError, with nothing left behind, for a wrong or a partial one."""
    task = load_task(request.task)
    place = place_of(request.dataset_id, request.name or task.short_name, request.overwrite)
    found = find_cases(task, request.source)
    inside = [path for path in place.replaced if Path(os.path.realpath(found.root)).is_relative_to(path.resolve())]
    if inside:
        raise UserError(f"{found.root} lies in {inside[0]}, which --overwrite would replace. Choose another -d.")
    checked = _check(task, found, request)
    splits = _splits(task, found)
    with place.built() as beside:
        _convert(task, found, beside, request.processes)
        report = _report(task, found, checked, place.target.name)
        description = _description(task, found, beside, report)
        write_json(beside / "dataset.json", description)
        write_json(beside / SPLITS, splits)
        write_json(beside / REPORT, report)
    _publish_splits(place.target.name, splits)
    return Prepared(task, place.target, report)


def _publish_splits(name: str, splits: list[dict[str, list[str]]]) -> None:
    """Into the preprocessed dataset, where trainers read them, if there is one.

    Otherwise nnU-Net's planner copies them from the raw dataset, which it does whenever it plans; but plans that
    survived --overwrite may never be made again.
    """
    if not os.environ.get("nnUNet_preprocessed"):
        return
    folder = environment_folder("nnUNet_preprocessed") / name
    try:
        if folder.is_dir():
            write_json(folder / SPLITS, splits)
    except OSError as error:
        raise UserError(
            f"The dataset is made, but {folder / SPLITS} cannot be written ({error.strerror}). Mend that, and copy "
            "the file of this name there from the raw dataset."
        ) from error


def _check(task: Task, found: Found, request: PrepareRequest) -> dict[str, Checked]:
    """Every case read. UserError with all that is missing and wrong."""
    labels = {value: name for name, value in task.labels.items()}
    tasks = [
        CaseFiles(item.name, str(item.image), str(item.label) if item.label else None, labels) for item in found.items
    ]
    checked = run_all(check_case, tasks, request.processes, "Checking", died)
    damaged = [problem for row in checked for problem in row.problems]
    missing = [f"missing: {path}" for path in found.missing]
    problems = [*found.wrong, *damaged, *([] if request.partial else missing)]
    if not any(not item.test for item in found.items):
        problems = problems or ["there is no training case with image and label"]
    if problems:
        more = len(problems) - MOST_PROBLEMS
        listed = problems[:MOST_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])
        advice = "Download it again, or what is missing of it"
        if missing and not request.partial and not (found.wrong or damaged):
            advice += " (--partial takes what is there, which is another benchmark then)"
        raise UserError(
            f"{found.root} is not the whole {task.name}, and nothing was made. Problems: {len(problems)}\n  "
            + "\n  ".join(listed)
            + f"\nExpected {task.training} training and {task.test} test cases, {', '.join(task.folders)}. {advice}: "
            f"{task.download}"
        )
    return {row.name: row for row in checked}


def _training(found: Found) -> list[Item]:
    return [item for item in found.items if not item.test]


def _splits(task: Task, found: Found) -> list[dict[str, list[str]]]:
    rule, cases = task.split, {item.name: item.subject for item in _training(found)}
    try:
        return make_splits(cases, rule["folds"], rule["seed"], found.groups if rule["balanced"] else None)
    except ValueError as error:
        raise UserError(f"{found.root} has too few cases of {task.name} for its folds: {error}.") from None


def _convert(task: Task, found: Found, folder: Path, processes: int) -> None:
    """imagesTr, labelsTr, imagesTs (and labelsTs where test cases have labels) with the cases that were found."""
    if task.layout == "msd":
        _convert_msd(task, found, folder, max(processes, 1))
        return
    for item in found.items:
        part = "Ts" if item.test else "Tr"
        _copy(item.image, folder / f"images{part}" / f"{item.name}_0000{ENDING}")
        if item.label is not None:
            _copy(item.label, folder / f"labels{part}" / f"{item.name}{ENDING}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


def _convert_msd(task: Task, found: Found, folder: Path, processes: int) -> None:
    """By nnU-Net's own command, in a raw folder of its own: it writes where it is told to, and asks for a free id."""
    own = folder / "conversion"
    source = own / "source" / task.name  # the command reads the task's number and name in the folder's name
    source.parent.mkdir(parents=True)
    source.symlink_to(os.path.realpath(found.root), target_is_directory=True)
    if not (found.root / "imagesTs").is_dir():
        _without_tests(found, source)
    folders = {name: str(own / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    command = [str(Path(sys.executable).with_name("nnUNetv2_convert_MSD_dataset"))]
    done = subprocess.run(
        [*command, "-i", str(source), "-overwrite_id", "1", "-np", str(processes)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **folders}, check=False,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    made = next((own / "nnUNet_raw").glob("Dataset001_*"), None)
    if done.returncode != 0 or made is None or not (made / "dataset.json").is_file():
        said = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "nothing")
        raise UserError(f"nnUNetv2_convert_MSD_dataset ended with {done.returncode} ({said.strip()[:300]}). "
                        "Check the room in nnUNet_raw, then run the command again.")  # fmt: skip
    for path in sorted(made.iterdir()):
        os.replace(path, folder / path.name)
    shutil.rmtree(own)
    kept = {f"{item.name}{ending}" for item in found.items for ending in (ENDING, f"_0000{ENDING}")}
    for path in folder.glob(f"*/*{ENDING}"):
        if path.name not in kept:  # of a partial download: an image without its label
            path.unlink()


def _without_tests(found: Found, source: Path) -> None:
    """A partial download may lack imagesTs, which the command wants: an empty one beside links to the rest."""
    source.unlink()
    (source / "imagesTs").mkdir(parents=True)
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        (source / name).symlink_to(os.path.realpath(found.root / name))


def _description(task: Task, found: Found, folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """dataset.json: what nnU-Net's converter wrote, with the task's names of labels and the number of cases."""
    made = load_json(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    content: dict[str, Any] = made | {
        "name": report["dataset"].partition("_")[2],
        "description": task.title,
        "reference": task.download,
        "licence": task.licence,
        "channel_names": {str(number): channel for number, channel in enumerate(task.channels)},
        "labels": dict(task.labels),
        "numTraining": len(_training(found)),
        "file_ending": ENDING,
    }
    if found.groups:
        # dataset.json goes with the plans; ssl.labelled balances its cases over these
        content["groups"] = {item.name: found.groups[item.subject] for item in _training(found)}
    if task.split["by_subject"]:
        # several images of one: ssl.labelled then counts subjects
        content["subjects"] = {item.name: item.subject for item in _training(found)}
    if len(report["orientations"]) > 1 and "CT" in task.channels:
        # As import does: nnU-Net reads the axes as they are stored, and left and right would be mixed up. Not for the
        # oblique slices of a heart, which must stay slices.
        content["overwrite_image_reader_writer"] = "NibabelIOWithReorient"
    return content


def _report(task: Task, found: Found, checked: Mapping[str, Checked], name: str) -> dict[str, Any]:
    """What was made of what. ``volumes`` and ``test_volumes``: content hash by case, as import records them."""

    def hashes(test: bool) -> dict[str, str]:
        return {item.name: checked[item.name].hash for item in found.items if item.test == test}

    def files(item: Item) -> Sequence[str]:
        return [str(item.image), *([str(item.label)] if item.label else [])]

    return {
        "dataset": name,
        "nnunet_ssl": __version__,
        "task": task.name,
        "channels": list(task.channels),
        "source": str(found.root),
        "prepared": {item.name: files(item) for item in found.items},
        "missing": found.missing,
        "split": dict(task.split),
        "orientations": dict(Counter(row.orientation for row in checked.values()).most_common()),
        "volumes": hashes(test=False),
        "test_volumes": hashes(test=True),
    }
