"""Find the cases of a download in its own layout, and say what is missing or was not expected.

A layout is a function ``(task, folder) -> Found``, in LAYOUTS under the name that a task's JSON gives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ssl.bench.task import Task
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import load_json

GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")  # of ACDC


@dataclass(frozen=True)
class Item:
    """One case: its name, the subject that it is of, its files (label None where it has none)."""

    name: str
    subject: str
    image: Path
    label: Path | None
    test: bool


@dataclass
class Found:
    """The cases that are whole, what is missing, what is wrong, subject -> group where the dataset has groups."""

    root: Path
    items: list[Item] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)

    def add(self, item: Item, needs_label: bool) -> None:
        """A case, or what it lacks. A test case whose label is missing stays, as one that cannot be scored."""
        label = item.label if item.label is not None and item.label.is_file() else None
        lacks = [path for path in (item.image, item.label if needs_label else None) if path and not path.is_file()]
        self.missing += [os.path.relpath(path, self.root) for path in lacks]
        if item.image.is_file() and (label or item.test or not needs_label):
            self.items.append(Item(item.name, item.subject, item.image, label, item.test))


def find_cases(task: Task, source: str | Path) -> Found:
    """The cases of a download. UserError where the folder is not laid out as the task's download is."""
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--source {source} is no folder. Give the folder of the unpacked download of {task.name}.")
    return LAYOUTS[task.layout](task, folder)


def _root(task: Task, folder: Path, below: Iterable[str], needs: Iterable[str]) -> Path:
    """The folder that holds what the layout needs: the given one, or one below it."""
    candidates = [folder / part for part in ("", *below)]
    for candidate in candidates:
        if all((candidate / name).exists() for name in needs):
            return candidate
    there = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    raise UserError(
        f"{folder} is not the download of {task.name}: it has no {' and '.join(needs)} (there: {listed or 'nothing'}). "
        f"Expected {', '.join(task.folders)}. Unpack the download ({task.download}) and give its folder as --source."
    )


def _volumes(folder: Path) -> set[str]:
    """Names of the images of a folder; files that systems hide there are none."""
    names = (path.name for path in folder.glob("*.nii.gz")) if folder.is_dir() else iter(())
    return {name for name in names if not name.startswith((".", "_"))}


def btcv(task: Task, folder: Path) -> Found:
    """RawData/Training/img/img0001.nii.gz and label/label0001.nii.gz, RawData/Testing/img/img0061.nii.gz."""
    root = _root(task, folder, ("RawData", "Abdomen/RawData"), ("Training/img", "Training/label"))
    found = Found(root)
    for test, part in ((False, "Training"), (True, "Testing")):
        names = task.subjects(test)
        for name in names:
            label = None if test else root / part / "label" / f"{name.replace('img', 'label')}.nii.gz"
            found.add(Item(name, name, root / part / "img" / f"{name}.nii.gz", label, test), not test)
        unknown = _volumes(root / part / "img") - {f"{name}.nii.gz" for name in names}
        found.wrong += [f"{part}/img/{name}: no image of {task.name}" for name in sorted(unknown)]
    return found


def msd(task: Task, folder: Path) -> Found:
    """dataset.json with its lists, imagesTr, labelsTr, imagesTs. Files that the lists do not name are refused."""
    root = _root(task, folder, (task.name,), ("dataset.json", "imagesTr", "labelsTr"))
    content = load_json(root / "dataset.json")
    found = Found(root)
    try:
        training = [(root / row["image"], root / row["label"]) for row in content["training"]]
        tests = [root / name for name in content["test"]]
        values = sorted(int(value) for value in content["labels"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{root / 'dataset.json'} is not the decathlon's ({type(error).__name__}: {error}); expected its lists "
            "training and test and its labels. Take the file of the download."
        ) from None
    if values != sorted(task.labels.values()):
        found.wrong.append(f"dataset.json: labels {values}, expected {sorted(task.labels.values())}: another task?")
    for number, expected, part in ((len(training), task.training, "training"), (len(tests), task.test, "test")):
        if number < expected:
            found.missing.append(f"dataset.json: it lists {number} {part} cases, expected {expected}")
        elif number > expected:
            found.wrong.append(f"dataset.json: it lists {number} {part} cases, expected {expected}")
    for image, label in training:
        found.add(Item(_stem(image), _stem(image), image, label, False), True)
    for image in tests:
        found.add(Item(_stem(image), _stem(image), image, None, True), False)
    listed = {path.resolve() for path in [*(p for pair in training for p in pair), *tests]}
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        extra = sorted(name for name in _volumes(root / part) if (root / part / name).resolve() not in listed)
        found.wrong += [f"{part}/{name}: not listed in dataset.json" for name in extra]
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def acdc(task: Task, folder: Path) -> Found:
    """training/patient001 and testing/patient101, each with Info.cfg, two frames and their ``_gt`` files.

    nnU-Net's Dataset027_ACDC copies every frame that lies there, leaves the test labels out and does not balance its
    folds: this one takes the frames that Info.cfg names.
    """
    found = Found(_root(task, folder, ("database", "ACDC/database"), ("training", "testing")))
    for test, part in ((False, "training"), (True, "testing")):
        for patient in task.subjects(test):
            home = found.root / part / patient
            if not home.is_dir():
                found.missing.append(f"{part}/{patient}")
                continue
            for frame in _frames(found, home, patient, test):
                name = f"{patient}_frame{frame:02d}"
                image, label = (home / f"{name}{ending}.nii.gz" for ending in ("", "_gt"))
                found.add(Item(name, patient, image, label, test), True)
    return found


def _frames(found: Found, home: Path, patient: str, test: bool) -> list[int]:
    """The numbers of the two frames, by Info.cfg; the group of a training patient goes to ``found``."""
    path = home / "Info.cfg"
    where = str(path.relative_to(found.root))
    if not path.is_file():
        found.missing.append(where)
        return []
    rows = dict(re.findall(r"^(\w+):[ \t]*(\S+)", path.read_text(encoding="utf-8", errors="replace"), re.M))
    frames = [rows.get(key, "") for key in ("ED", "ES")]
    usable = all(frame.isdecimal() for frame in frames) and frames[0] != frames[1]
    if not usable or not (test or rows.get("Group") in GROUPS):
        shown = ", ".join(f"{key} {rows.get(key, 'missing')}" for key in ("ED", "ES", "Group"))
        found.wrong.append(f"{where}: {shown}; expected two frame numbers and a group of {', '.join(GROUPS)}")
        return []
    if not test:
        found.groups[patient] = rows["Group"]
    return [int(frame) for frame in frames]


LAYOUTS: dict[str, Callable[[Task, Path], Found]] = {"btcv": btcv, "msd": msd, "acdc": acdc}
