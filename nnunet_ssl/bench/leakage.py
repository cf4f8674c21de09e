"""Whether a pretraining has seen what it is scored on: the volumes of both are compared by their content hashes.

A copy that was resampled, cropped or rescaled has another hash and is not found.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.bench.checkpoints import read_once
from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.marks import CLEAN, LEAKED, UNCHECKED
from nnunet_ssl.bench.specs import Dataset, Pretraining
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.checkpoints import volume_hashes
from nnunet_ssl.nnunet.datasets import dataset_name, environment_folder, load_json, training_files
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.splits import validation_cases
from nnunet_ssl.nnunet.volumes import Unusable, content_hash, read_volumes

MOST_NAMED = 10  # cases in a message; the row has them all


@dataclass(frozen=True)
class Finding:
    """What a check found. status: clean, leaked or unchecked; cases: scored case -> the pretraining's name of the same
    volume; reason: why nothing could be checked.
    """

    status: str
    cases: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """As the results file records it."""
        return asdict(self)


class Guard:
    """Checks jobs; every checkpoint is read once, every image hashed once (``<grid>.hashes.json`` beside the grid)."""

    def __init__(self, grid: Grid) -> None:
        self.cache = Cache(grid.beside(".hashes.json"))
        self._seen: dict[str, dict[str, str]] = {}
        self._found: dict[tuple[Any, ...], Finding] = {}

    def check(self, job: Job) -> Finding | None:
        """None for scratch, which takes nothing of the checkpoint but its plan."""
        if job.protocol.name == "scratch":
            return None
        key = (job.pretraining.path, job.dataset.id, job.dataset.cases, job.fold)
        if key not in self._found:
            self._found[key] = self._checked(job)
        return self._found[key]

    def _checked(self, job: Job) -> Finding:
        checkpoint = job.pretraining.path
        if checkpoint not in self._seen:
            self._seen[checkpoint] = _pretrained_on(checkpoint)
        seen = self._seen[checkpoint]
        if not seen:
            return Finding(UNCHECKED, reason=f"{checkpoint} has no record of the volumes that it was trained on")
        names = {value: name for name, value in seen.items()}
        try:
            hashes = scored_hashes(job.dataset, job.fold, self.cache)
        except Unusable as error:
            return Finding(UNCHECKED, reason=str(error))
        leaked = {case: names[h] for case, own in hashes.items() for h in own if h in names}
        return Finding(LEAKED if leaked else CLEAN, leaked)


class Recorded:
    """Says again what a Guard has found, in a process that cannot ask one."""

    def __init__(self, found: Finding | None) -> None:
        self.found = found

    def check(self, job: Job) -> Finding | None:
        """As ``Guard.check``."""
        return self.found


def _pretrained_on(checkpoint: str) -> dict[str, str]:
    """Volume -> content hash of the dataset of a pretraining, those included that it held back (they chose the best
    checkpoint); empty where the file does not say.
    """
    block = read_once(checkpoint).ssl or {}
    volumes = block.get("volumes")
    return dict(volumes) if isinstance(volumes, Mapping) else {}


def scored_hashes(dataset: Dataset, fold: int | str, cache: Cache) -> dict[str, list[str]]:
    """Scored case -> the hashes of its channels, recorded by `import` or `bench prepare` or computed.

    Scored are the cases of labelsTs, or the validation cases of the fold. Raises Unusable for an image that cannot be
    read, UserError for a dataset that is not there.
    """
    name = dataset_name(dataset.id)
    raw = environment_folder("nnUNet_raw") / name
    content = load_json(raw / "dataset.json")
    ending = content["file_ending"]
    if dataset.cases == "test":
        recorded = volume_hashes(name, "test_volumes")
        cases = sorted(path.name.removesuffix(ending) for path in (raw / "labelsTs").glob(f"*{ending}"))
        files = {case: _images(raw / "imagesTs", case, ending) for case in cases}
    else:
        recorded = volume_hashes(name)
        training = training_files(raw, content)
        folders = [environment_folder("nnUNet_preprocessed") / name, raw]
        chosen = validation_cases(folders, sorted(training), fold)
        files = {case: list(map(str, training[case]["images"])) for case in chosen if case in training}
    hashes = {}
    for case, images in files.items():
        if not images:
            raise Unusable(f"the scored case {case} of {name} has no image")
        keys = [case] if len(images) == 1 else [f"{case}_{channel:04d}" for channel in range(len(images))]
        known = [recorded[key] for key in keys if key in recorded]
        hashes[case] = known if len(known) == len(images) else [h for image in images for h in cache.hashes(image)]
    cache.write()
    return hashes


def _images(folder: Path, case: str, ending: str) -> list[str]:
    return sorted(glob.glob(str(folder / f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{ending}")))


class Cache:
    """Content hashes of image files by path, size and time of change, in a JSON file of ours: raw folders stay as they
    are.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.changed = path, False
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                self.rows = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                self.rows = {}  # made again

    def hashes(self, image: str) -> list[str]:
        """Of every volume in a file. Raises Unusable where it cannot be read."""
        path = os.path.realpath(image)
        try:
            facts = os.stat(path)
        except OSError as error:
            raise Unusable(f"{image} cannot be read ({error.strerror})") from None
        stamp = [facts.st_size, facts.st_mtime_ns]
        row = self.rows.get(path)
        if not row or row.get("stamp") != stamp:
            try:
                row = {"stamp": stamp, "hashes": [content_hash(volume) for volume in read_volumes([path])]}
            except (Unusable, RuntimeError, MemoryError) as error:
                raise Unusable(f"{image} cannot be hashed: {error or 'too large for the memory'}") from None
            self.rows[path], self.changed = row, True
        return list(row["hashes"])

    def write(self) -> None:
        """To its file, if there is something new."""
        if self.changed:
            write_json(self.path, self.rows)
            self.changed = False


def require_clean(jobs: Sequence[Job], guard: Guard | Recorded, allow: bool) -> list[str]:
    """Check all jobs before one of them runs; lines for the user about what could not be checked or was allowed.

    Raises UserError that names the cases where a pretraining has seen what it would be scored on, unless ``allow``.
    """
    lines: dict[str, None] = {}
    refused: dict[str, None] = {}
    for job in jobs:
        found = guard.check(job)
        if found is None or found.status == CLEAN:
            continue
        if found.status == UNCHECKED:
            lines[f"WARNING: leakage into dataset {job.dataset.id} was not checked: {found.reason}."] = None
            continue
        said = _sentence(job.pretraining, job.dataset, job.fold, found.cases)
        if allow:
            lines[f"WARNING: {said} Allowed: the tables will say so."] = None
        else:
            refused[said] = None
    if refused:
        raise UserError(
            "\n".join(refused) + "\nExpected a pretraining that has not seen them: import its volumes with `--exclude` "
            "and pretrain again, or run with --allow-leakage, which marks the rows and every table."
        )
    return list(lines)


def _sentence(pretraining: Pretraining, dataset: Dataset, fold: int | str, cases: Mapping[str, str]) -> str:
    listed = [case if case == volume else f"{case} (there {volume})" for case, volume in cases.items()]
    named = ", ".join(listed[:MOST_NAMED]) + (f", ... {len(listed) - MOST_NAMED} more" if listed[MOST_NAMED:] else "")
    what = "test cases" if dataset.cases == "test" else f"validation cases of fold {fold}"
    which = f'"{pretraining.name}" ({pretraining.path})'
    return f"The pretraining {which} was trained on {len(cases)} {what} of dataset {dataset.id}: {named}."
