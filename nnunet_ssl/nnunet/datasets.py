"""Where datasets lie, and what planning needs of them: names, cases, labels or masks in their place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import check_writable, replacing, write_json
from nnunet_ssl.nnunet.volumes import check_values, damage

MASKS = "ssl_foreground_masks"  # folder in the preprocessed dataset, for cases that have no label file


@dataclass
class RawDataset:
    """A dataset in nnUNet_raw: its name, dataset.json (completed where it has no labels) and files by case."""

    name: str
    json: dict[str, Any]
    cases: dict[str, dict[str, Any]]  # case -> {"images": [one path a channel], "label": path}
    masked: bool = False  # the labels are foreground masks that were made here
    checked: bool = False  # no image is damaged, see fingerprints.check_images

    @property
    def id(self) -> int:
        """The number in the name."""
        return int(self.name[7:10])

    @property
    def channels(self) -> list[str]:
        """Channel names in order."""
        return list((self.json.get("channel_names") or self.json.get("modality") or {}).values())

    @property
    def folder(self) -> Path:
        """Its folder in nnUNet_preprocessed."""
        return environment_folder("nnUNet_preprocessed") / self.name


def environment_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's variables names. UserError if it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"The environment variable {variable} is not set. Set it to the folder where nnU-Net keeps its "
            f"{variable.removeprefix('nnUNet_')} data, e.g. `export {variable}=$HOME/{variable}`."
        )
    return Path(value)


@contextlib.contextmanager
def quiet_planning() -> Iterator[None]:
    """nnU-Net's planner prints whole plans, and refuses ``nnUNet_n_proc_DA=0``, which is right for CPU training."""
    before = os.environ.get("nnUNet_n_proc_DA")
    if before is not None and before.strip() in ("0", ""):
        os.environ["nnUNet_n_proc_DA"] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if before is not None:
            os.environ["nnUNet_n_proc_DA"] = before


def processes() -> int:
    """nnU-Net's number of worker processes (``nnUNet_def_n_proc``), no more than there are cores."""
    value = os.environ.get("nnUNet_def_n_proc", "8").strip()
    if not (value.isdecimal() and int(value) > 0):
        raise UserError(f"nnUNet_def_n_proc is {value!r}, expected a whole number from 1 up. Set it so, or unset it.")
    return min(int(value), os.cpu_count() or 1)


def dataset_name(identifier: int | str) -> str:
    """Number or name -> name. UserError for one that does not exist in nnUNet_raw."""
    raw = environment_folder("nnUNet_raw")
    text = str(identifier)
    known = sorted(p.name for p in raw.glob("Dataset[0-9][0-9][0-9]_*")) if raw.is_dir() else []
    found = [name for name in known if name == text or (text.isdigit() and name.startswith(f"Dataset{int(text):03d}_"))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"Dataset {text} is ambiguous in {raw}: {', '.join(found)}. Give the full name or remove one.")
    raise UserError(
        f"No dataset {text} in nnUNet_raw={raw} (there: {', '.join(known[:8]) or 'none'}). Make one with "
        "`nnunet_ssl import FOLDER -d ID -n NAME --channel CT`, or correct the number."
    )


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. UserError where it is missing or broken."""
    if not path.is_file():
        raise UserError(f"No file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def plans_in(folder: Path) -> dict[Path, dict[str, Any]]:
    """The plans files of a preprocessed folder; what else lies there as JSON (splits, fingerprints) is passed over."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # another plan's problem
        if isinstance(content, dict) and "configurations" in content and "plans_name" in content:
            found[path] = content
    return found


def open_dataset(identifier: int | str) -> RawDataset:
    """Find a raw dataset; where cases have no label, foreground masks are made in the preprocessed folder instead."""
    processes()  # nnU-Net stumbles over a wrong number as soon as a module of it is imported
    name = dataset_name(identifier)
    folder = environment_folder("nnUNet_raw") / name
    check_writable(environment_folder("nnUNet_preprocessed") / name, "nnUNet_preprocessed")
    content = load_json(folder / "dataset.json")
    for key in ("channel_names", "file_ending"):
        if key not in content and not (key == "channel_names" and "modality" in content):
            raise UserError(f"{folder / 'dataset.json'} has no {key}, which nnU-Net needs (its dataset_format.md).")
    if "dataset" not in content and not (folder / "imagesTr").is_dir():
        raise UserError(f"{folder} has no imagesTr folder. Put the images there as CASE_0000{content['file_ending']}.")
    cases = training_files(folder, content)
    if not cases:
        ending = content["file_ending"]
        raise UserError(f"{folder / 'imagesTr'} holds no {ending} images. Check file_ending in dataset.json.")
    dataset = RawDataset(name, content, cases)
    if "labels" not in content or not all(Path(case["label"]).is_file() for case in cases.values()):
        _mask(dataset)
    return dataset


def training_files(folder: Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Image and label files by case, as nnU-Net finds them: listed in dataset.json, or by name in imagesTr."""
    if "dataset" in content:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        listed: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(
            str(folder), json.loads(json.dumps(content))
        )
        return listed
    ending = content["file_ending"]
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    cases: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "imagesTr").iterdir()):
        match = pattern.fullmatch(path.name)
        if match:
            label = str(folder / "labelsTr" / f"{match[1]}{ending}")
            cases.setdefault(match[1], {"images": [], "label": label})["images"].append(str(path))
    return cases


def _mask(dataset: RawDataset) -> None:
    """Give every case its foreground mask as label, as `import` does; what labels there are stay unread."""
    ending = dataset.json["file_ending"]
    for case, files in dataset.cases.items():
        path = dataset.folder / MASKS / f"{case}{ending}"
        if not path.is_file():
            _write_mask(files["images"], path, dataset)
        files["label"] = str(path)
    dataset.json |= {
        "labels": {"background": 0, "foreground": 1},
        "numTraining": len(dataset.cases),
        "dataset": dataset.cases,
        "ssl_foreground": True,
    }
    dataset.json.pop("regions_class_order", None)
    dataset.masked = True


def _write_mask(images: list[str], path: Path, dataset: RawDataset) -> None:
    from nnunet_ssl.nnunet.foreground import foreground

    reader = reader_class(dataset)()
    reason = damage((path.name.removesuffix(dataset.json["file_ending"]), images))
    if reason:
        raise UserError(f"{reason}. Remove or replace the case.")
    try:
        data, properties = reader.read_images(images)
        for channel in data:
            check_values(channel)
    except Exception as error:
        reason = str(error).strip()[:160]
        raise UserError(f"{images[0]} cannot be read ({reason}). Remove or replace the case.") from error
    mask = foreground(data, dataset.channels, properties["spacing"]).astype(np.uint8)
    if not mask.any():
        raise UserError(f"{images[0]} shows no body. Remove the case.")
    with replacing(path) as beside:
        reader.write_seg(mask, str(beside), properties)


def reader_class(dataset: RawDataset) -> Any:
    """nnU-Net's reader for the dataset's files."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    example = next(iter(dataset.cases.values()))["images"][0]
    try:
        return determine_reader_writer_from_dataset_json(dataset.json, example, verbose=False)
    except RuntimeError as error:
        raise UserError(f"No reader of nnU-Net opens {example}: {error}") from error


def publish_dataset_json(dataset: RawDataset) -> None:
    """Put dataset.json into the preprocessed folder, where nnU-Net's trainers read it."""
    write_json(dataset.folder / "dataset.json", dataset.json)
