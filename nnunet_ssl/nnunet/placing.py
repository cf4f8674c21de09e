"""Where a new raw dataset goes: its name, what it may replace, and that it appears whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import MASKS, environment_folder
from nnunet_ssl.nnunet.moving import built_beside, put_back
from nnunet_ssl.nnunet.splits import SPLITS

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# beside the folders of cases
COMPUTED = (MASKS, "gt_segmentations", SPLITS, "dataset_fingerprint.json")
CASE_ENDINGS = (".b2nd", ".pkl", ".npz", ".npy")


@dataclass(frozen=True)
class Place:
    """The folder of a dataset to be, and the raw datasets that it replaces."""

    target: Path
    replaced: tuple[Path, ...]

    def built(self) -> AbstractContextManager[Path]:
        """A hidden folder that takes the place on success; what was computed from the old images goes with them."""
        return built_beside(self.target, [*self.replaced, *_computed_from(self.target.name)])


def place_of(dataset_id: int, name: str, overwrite: bool = False) -> Place:
    """The place in nnUNet_raw for a dataset.

    Raises UserError for a number or a name that nnU-Net cannot use, and for a number that is taken without
    ``overwrite``. What a killed process had moved aside comes back first.
    """
    raw = environment_folder("nnUNet_raw")
    target = raw / _folder_name(dataset_id, name)
    put_back(raw, f"Dataset{dataset_id:03d}_*", _folders_of(dataset_id))
    return Place(target, tuple(_taken(dataset_id, target, overwrite)))


def _folder_name(dataset_id: int, name: str) -> str:
    if not 0 < dataset_id < 1000:
        raise UserError(f"Dataset id {dataset_id} is not between 1 and 999.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"The name {name!r} should consist of letters, digits, - and _ (no folder, no spaces).")
    return f"Dataset{dataset_id:03d}_{name}"


def _folders_of(dataset_id: int) -> list[Path]:
    """What nnU-Net's three folders hold of the dataset's id."""
    places = [Path(os.environ[variable]) for variable in FOLDERS if os.environ.get(variable)]
    return [path for place in places for path in sorted(place.glob(f"Dataset{dataset_id:03d}_*"))]


def _taken(dataset_id: int, target: Path, overwrite: bool) -> list[Path]:
    """The raw datasets that will be replaced. UserError where the id is in use and that was not allowed."""
    there = _folders_of(dataset_id)
    if there and not overwrite:
        raise UserError(
            f"Dataset id {dataset_id} is taken: {', '.join(map(str, there))}. Choose another -d, or replace "
            "the raw dataset with --overwrite (its preprocessed data goes, plans stay)."
        )
    others = [path for path in there if path.name != target.name and path.parent != target.parent]
    if others:
        raise UserError(
            f"{', '.join(map(str, others))} belongs to the same id under another name, and nnU-Net allows one name "
            f"an id. Use -n {others[0].name[11:]}, choose another -d, or remove that folder yourself."
        )
    return [path for path in there if path.parent == target.parent]


def _computed_from(name: str) -> list[Path]:
    """What lies in nnUNet_preprocessed that was computed from a dataset's images; its plans are none of it."""
    if not os.environ.get("nnUNet_preprocessed"):
        return []
    folder = environment_folder("nnUNet_preprocessed") / name
    beside = [folder / part for part in COMPUTED]
    there = [path for path in folder.glob("[!.]*") if path not in beside]
    cases = [path for path in there if any(file.suffix in CASE_ENDINGS for file in path.glob("*"))]
    return [*(path for path in beside if path.exists()), *cases]
