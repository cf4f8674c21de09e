"""Unlabelled scans -> an ordinary nnU-Net raw dataset whose label is a foreground mask.

The dataset is built in a hidden folder beside its place and moved there at the end: interrupted, it is whole or absent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.converting import PLAIN_ENDING, Outcome, Task, convert, reencode, remove_case
from nnunet_ssl.nnunet.datasets import dataset_name, environment_folder, load_json
from nnunet_ssl.nnunet.dicom import Series, series_of
from nnunet_ssl.nnunet.excluding import Exclusion, read_exclusion
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.import_report import REPORT, report_of, why_nothing
from nnunet_ssl.nnunet.placing import place_of
from nnunet_ssl.nnunet.pool import run_all
from nnunet_ssl.nnunet.sources import Case, Scan, find, group, scan_of, scans_of_series
from nnunet_ssl.nnunet.volumes import ending_of

LINKABLE = (".nrrd", ".mha")  # beside .nii.gz: kept where all files are of one kind, since nnU-Net reads them


@dataclass(frozen=True)
class ImportRequest:
    """What `import` was asked for. ``processes=0`` works in this process."""

    sources: Sequence[str]
    dataset_id: int
    name: str
    channels: Sequence[str] = ()
    copy: bool = False
    overwrite: bool = False
    from_dataset: str | None = None
    exclude: str | None = None
    processes: int = 0


@dataclass
class Imported:
    """The new dataset, and its report as written to import_report.json."""

    folder: Path
    report: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def import_dataset(request: ImportRequest) -> Imported:
    """Build the dataset. UserError, with nothing left behind, where that is impossible."""
    place = place_of(request.dataset_id, request.name, request.overwrite)
    channels, scans, notes = _scans(request, place.replaced)
    exclusion = read_exclusion(request.exclude)
    cases = group(scans, len(channels))
    with place.built() as beside:
        report = _fill(beside, request, cases, channels, exclusion)
        report |= {"dataset": place.target.name}
        write_json(beside / REPORT, report)
    return Imported(place.target, report, notes)


def _scans(request: ImportRequest, replaced: Sequence[Path]) -> tuple[list[str], list[Scan], list[str]]:
    """Channel names, scans and notes for the user."""
    channels, scans, notes = list(request.channels), [], []
    if request.from_dataset is not None:
        folder = environment_folder("nnUNet_raw") / dataset_name(request.from_dataset)
        content = load_json(folder / "dataset.json")
        names = content.get("channel_names") or content.get("modality") or {}
        channels = channels or [str(names[key]) for key in sorted(names, key=int)]
        scans += [scan_of(file) for file in _images_of(folder, content)]
    if not channels:
        raise UserError("Name the channels of the images, e.g. --channel CT, or --channel T1 --channel T2 for two.")
    if not request.sources and request.from_dataset is None:
        raise UserError("Nothing to import: give files, folders or globs, or --from ID.")
    found = find(request.sources)
    scans += [scan_of(file, found.roots[file]) for file in found.files]
    folders = sorted(found.dicom)
    series = run_all(series_of, [found.dicom[f] for f in folders], request.processes, "DICOM headers", _died_series)
    for folder, listed in zip(folders, series, strict=True):
        scans += scans_of_series(folder, listed, found.roots[folder])
    inside = [s.files[0] for s in scans for path in replaced if Path(os.path.realpath(s.files[0])).is_relative_to(path)]
    if inside:
        raise UserError(f"{inside[0]} lies in the dataset that --overwrite would replace. Import under another -d.")
    if found.label_folders:
        notes.append(f"passed over as labels: {', '.join(found.label_folders)}")
    return channels, scans, notes


def _images_of(folder: Path, content: dict[str, Any]) -> list[str]:
    """The training images of a raw dataset; its test images stay out."""
    if "dataset" in content:
        listed = [image for case in content["dataset"].values() for image in case["images"]]
        return [os.path.abspath(folder / os.path.expandvars(image)) for image in listed]
    return [str(path) for path in sorted((folder / "imagesTr").glob("*")) if ending_of(path.name)]


def _died_series(files: Sequence[str]) -> list[Series]:
    return [Series("", tuple(files), "unreadable: reading the DICOM headers crashed")]


def _fill(folder: Path, request: ImportRequest, cases: list[Case], channels: list[str],
          exclusion: Exclusion) -> dict[str, Any]:
    """Convert every case into ``folder``; the report. UserError if no case is usable."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    ending = _ending(cases)
    excluded = {case.name for case in cases if exclusion.matches(case)}
    tasks = [
        Task(case.name, tuple(scan.files for scan in case.channels), tuple(channels),
             None if case.name in excluded else str(folder), ending, request.copy)
        for case in cases if case.problem is None
    ]
    outcomes = {o.name: o for o in run_all(convert, tasks, request.processes, "Importing", _died)}
    for case in cases:
        outcomes.setdefault(case.name, Outcome(case.name, reason=case.problem))
    _skip_copies_of_excluded(outcomes, excluded, tasks)
    used = [case for case in cases if case.name not in excluded and outcomes[case.name].reason is None]
    report = report_of(cases, outcomes, excluded, channels, exclusion)
    if not used:
        raise UserError("Nothing usable was found, so no dataset was made. " + why_nothing(report))
    ending = _reoriented(folder, report, ending, request.processes)
    _write_dataset_json(folder, request, channels, len(used), ending, report)
    return report


def _ending(cases: Sequence[Case]) -> str:
    """The file ending of the dataset: what all files have if nnU-Net reads it, otherwise .nii.gz."""
    endings = {ending_of(file) for case in cases for scan in case.channels for file in scan.files}
    return endings.pop() if len(endings) == 1 and next(iter(endings)) in LINKABLE else PLAIN_ENDING


def _died(task: Task) -> Outcome:
    return Outcome(task.name, reason="unreadable: the process that read it was killed (too large for the memory?)")


def _skip_copies_of_excluded(outcomes: dict[str, Outcome], excluded: set[str], tasks: Sequence[Task]) -> None:
    """A test case must not come in under a second name."""
    kept_out = {h: name for name in excluded for h in outcomes[name].hashes}
    for task in tasks:
        outcome = outcomes[task.name]
        copies = [kept_out[h] for h in outcome.hashes if h in kept_out]
        if task.name not in excluded and outcome.reason is None and copies:
            outcome.reason = f"identical to the excluded case {copies[0]}"
            remove_case(task)


def _reoriented(folder: Path, report: dict[str, Any], ending: str, processes: int) -> str:
    """Mixed orientations need nnU-Net's reorienting reader, which reads .nii.gz only."""
    if len(report["orientations"]) < 2 or ending == PLAIN_ENDING:
        return ending
    paths = [str(path) for part in ("imagesTr", "labelsTr") for path in sorted((folder / part).iterdir())]
    run_all(reencode, paths, processes, "Rewriting as .nii.gz", lambda path: path)
    return PLAIN_ENDING


def _write_dataset_json(folder: Path, request: ImportRequest, channels: list[str], number: int, ending: str,
                        report: dict[str, Any]) -> None:
    content: dict[str, Any] = {
        "name": request.name,
        "description": "Unlabelled images; the label is a foreground mask made by nnunet_ssl import.",
        "channel_names": {str(c): name for c, name in enumerate(channels)},
        "labels": {"background": 0, "foreground": 1},
        "numTraining": number,
        "file_ending": ending,
        "ssl_foreground": True,
    }
    if len(report["orientations"]) > 1:
        content["overwrite_image_reader_writer"] = "NibabelIOWithReorient"
    write_json(folder / "dataset.json", content)
