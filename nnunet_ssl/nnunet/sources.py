"""Find scans in files, folders and globs, and group them into cases with one volume a channel."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.dicom import Series, looks_like_dicom
from nnunet_ssl.nnunet.volumes import ending_of

CHANNEL = re.compile(r"(.+)_(\d{4})")
MANY = 8  # more numbered files than this with one prefix are numbered cases, not channels


@dataclass(frozen=True)
class Scan:
    """One volume: a file, or the files of a DICOM series in order. ``stem``: its name without ending.

    ``root``: the folder above the source that it was found in; None where the file itself was given.
    """

    stem: str
    files: tuple[str, ...]
    problem: str | None = None
    root: str | None = None

    @property
    def folder(self) -> str:
        """The folder that it (the file, or the series' own folder) lies in."""
        parent = os.path.dirname(self.files[0])
        return parent if ending_of(self.files[0]) else os.path.dirname(parent)

    @property
    def below(self) -> list[str]:
        """The folders that it lies in, up to the source that was given (a file's own folder); not what is above."""
        folder, found = os.path.dirname(self.files[0]), []
        root = os.path.dirname(folder) if self.root is None else self.root
        while len(folder) > len(root):
            found.append(folder)
            folder = os.path.dirname(folder)
        return found


@dataclass(frozen=True)
class Case:
    """A case to be: its name and the scans of its channels."""

    name: str
    channels: tuple[Scan, ...]
    problem: str | None = None


@dataclass(frozen=True)
class Found:
    """Volume files, DICOM files by folder, and folders passed over because they hold labels."""

    files: list[str]
    dicom: dict[str, list[str]]
    label_folders: list[str]
    roots: dict[str, str]  # Scan.root by volume file and by folder of DICOM files


def find(patterns: Sequence[str]) -> Found:
    """Expand files, folders (searched to the bottom) and globs. UserError for one that matches nothing."""
    found = Found([], {}, [], {})
    seen: set[str] = set()
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        paths = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded, recursive=True))
        if not paths:
            raise UserError(f"{pattern} does not exist and matches no file. Give files, folders or globs.")
        root = _root(expanded)
        for path in paths:
            for file in _files_below(path, found.label_folders) if os.path.isdir(path) else [path]:
                _sort_in(os.path.abspath(file), found, seen, root)
    return found


def _root(source: str) -> str:
    """The folder above a source: above the folder, the file's folder, or the folder in which a glob begins."""
    if not os.path.exists(source):
        source = re.split(r"[*?\[]", source, maxsplit=1)[0]
    return os.path.dirname(os.path.abspath(source if os.path.isdir(source) else os.path.dirname(source)))


def scan_of(file: str, root: str | None = None) -> Scan:
    """A volume file as a scan."""
    return Scan(os.path.basename(file)[: -len(ending_of(file))], (file,), root=root)


def scans_of_series(folder: str, series: Iterable[Series], root: str | None = None) -> list[Scan]:
    """The series of one folder as scans, called like the folder (with a number where there are several)."""
    listed = sorted(series, key=lambda s: (s.problem is not None, s.uid))
    name = os.path.basename(folder) or "dicom"
    stems = [name if len(listed) == 1 else f"{name}_s{number}" for number in range(1, len(listed) + 1)]
    return [Scan(stem, s.files, s.problem, root) for stem, s in zip(stems, listed, strict=True)]


def group(scans: Sequence[Scan], num_channels: int) -> list[Case]:
    """Scans -> cases with unique names. Channels are told by nnU-Net's suffix (``_0000``, ``_0001``, ...)."""
    groups: dict[tuple[str, str], dict[str, Scan]] = {}
    plain: list[Scan] = []
    for scan in scans:
        match = CHANNEL.fullmatch(scan.stem)
        if match:
            groups.setdefault((scan.folder, match[1]), {})[match[2]] = scan
        else:
            plain.append(scan)
    cases = [_case(scan.stem, {"0000": scan}, num_channels) for scan in plain]
    for (_, prefix), members in groups.items():
        numbered = num_channels == 1 and ("0000" not in members or len(members) > MANY)
        if numbered:
            cases += [_case(scan.stem, {"0000": scan}, 1) for scan in members.values()]
        else:
            cases.append(_case(prefix, members, num_channels))
    return sorted(_with_unique_names(cases), key=lambda case: case.name)


def _case(name: str, members: dict[str, Scan], num_channels: int) -> Case:
    scans = tuple(members[key] for key in sorted(members))
    expected = [f"{c:04d}" for c in range(num_channels)]
    problem = next((scan.problem for scan in scans if scan.problem), None)
    # a single file may hold all channels as its fourth axis: the reader will tell
    if problem is None and sorted(members) != expected and sorted(members) != ["0000"]:
        problem = f"wrong number of channels: found {', '.join(sorted(members))}, expected {', '.join(expected)}"
        if num_channels == 1:
            problem += f"; if these are numbered cases, give them names without four digits at the end, like {name}_1"
    return Case(_safe(name), scans, problem)


def _safe(name: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "case"
    return f"{name}_" if name.endswith("_seg") else name  # nnU-Net takes NAME_seg for the segmentation of NAME


def _with_unique_names(cases: list[Case]) -> list[Case]:
    """Cases of one name (every patient's ct.nii.gz) get their folder's name in front, then a number."""
    for _ in range(2):
        taken = Counter(case.name.lower() for case in cases)
        cases = [
            replace(case, name=_safe(f"{_parent(case)}_{case.name}")) if taken[case.name.lower()] > 1 else case
            for case in cases
        ]
        if len({case.name.lower() for case in cases}) == len(cases):
            return cases
    unique: list[Case] = []
    names: set[str] = set()
    for case in sorted(cases, key=lambda c: (c.name, c.channels[0].files)):
        name, number = case.name, 2
        while name.lower() in names:
            name, number = f"{case.name}-{number}", number + 1
        names.add(name.lower())
        unique.append(replace(case, name=name))
    return unique


def _parent(case: Case) -> str:
    return os.path.basename(case.channels[0].folder)


def _files_below(folder: str, label_folders: list[str]) -> Iterable[str]:
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        labels = [name for name in folders if re.fullmatch(r"labels?(tr|ts|val)?", name, re.IGNORECASE)]
        label_folders += [os.path.join(root, name) for name in labels]
        folders[:] = sorted(name for name in folders if name not in labels and not name.startswith("."))
        yield from (os.path.join(root, name) for name in sorted(files) if not name.startswith("."))


def _sort_in(file: str, found: Found, seen: set[str], root: str) -> None:
    if file in seen:
        return
    seen.add(file)
    if ending_of(file):
        found.files.append(file)
        found.roots[file] = root
    elif looks_like_dicom(Path(file)):
        found.dicom.setdefault(os.path.dirname(file), []).append(file)
        found.roots.setdefault(os.path.dirname(file), root)
