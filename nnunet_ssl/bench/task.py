"""The datasets of the benchmark, found by listing ``nnunet_ssl.bench.tasks``: a new one is a JSON there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import read_shipped, shipped

FOLDER = "nnunet_ssl.bench.tasks"


@dataclass(frozen=True)
class Task:
    """What is known of one dataset.

    name: what commands call it; paper: the paper whose evaluation has it ("vox2vec", "pix2rep"), or None.
    layout: of the download (btcv, msd, acdc), with examples of its paths in ``folders``.
    training, test: numbers of cases. training_subjects, test_subjects: names, as single ones and ranges
    ("img0001-img0010"); empty where a list comes with the download. test_labels: whether test cases have labels.
    labels: name -> value in the label files, background included; ``channels``: as dataset.json names them.
    split: ``folds``, ``seed``, ``by_subject`` (all cases of a subject in one part), ``balanced`` (over groups).
    metric: ``names``, ``tolerance_mm`` of the surface Dice and where it is from. score: "test" or "validation".
    """

    name: str
    title: str
    paper: str | None
    layout: str
    source: str
    licence: str
    citation: Sequence[str]
    download: str
    folders: Sequence[str]
    training: int
    test: int
    training_subjects: Sequence[str]
    test_subjects: Sequence[str]
    test_labels: bool
    names: str
    channels: Sequence[str]
    labels: Mapping[str, int]
    split: Mapping[str, Any]
    metric: Mapping[str, Any]
    score: str

    @property
    def targets(self) -> list[str]:
        """The classes to be segmented; each is one task of the paper's count."""
        return [name for name, value in self.labels.items() if value != 0]

    @property
    def short_name(self) -> str:
        """What its nnU-Net dataset is called by default: Task03_Liver -> Liver, as nnU-Net's own converter does."""
        return self.name.rpartition("_")[2]

    def subjects(self, test: bool) -> list[str]:
        """The names of all training or test subjects; none where the download lists them."""
        return [name for part in (self.test_subjects if test else self.training_subjects) for name in _expanded(part)]


def _expanded(part: str) -> list[str]:
    match = re.fullmatch(r"(\D+)(\d+)-\1(\d+)", part)
    if match is None:
        return [part]
    width = len(match[2])
    return [f"{match[1]}{number:0{width}d}" for number in range(int(match[2]), int(match[3]) + 1)]


def task_names() -> list[str]:
    """Names of all datasets of the benchmark."""
    return shipped(FOLDER)


def load_task(name: str) -> Task:
    """A dataset by its name, in any case. UserError for an unknown name, with the nearest known one."""
    known = {task.casefold(): task for task in task_names()}
    found = known.get(name.casefold())
    if found is None:
        near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.4)
        hint = f' Did you mean "{known[near[0]]}"?' if near else ""
        raise UserError(f'There is no task "{name}".{hint} There are: {", ".join(known.values())}.')
    return Task(**read_shipped(FOLDER, found))


def table() -> list[str]:
    """All datasets, a line each, and what they add up to."""
    tasks = [load_task(name) for name in task_names()]
    rows = [("name", "cases", "test", "folds", "NSD at", "paper", "targets")]
    rows += [
        (t.name, str(t.training), str(t.test), str(t.split["folds"]), f"{t.metric['tolerance_mm']:g} mm",
         t.paper or "-", ", ".join(t.targets))
        for t in tasks
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    papers = list(dict.fromkeys(t.paper for t in tasks if t.paper))
    counts = [f"{sum(len(t.targets) for t in tasks if t.paper == paper)} of {paper}" for paper in papers]
    return [*lines, f"{sum(len(t.targets) for t in tasks)} targets: {', '.join(counts)}"]


def description(task: Task) -> list[str]:
    """Everything about one dataset, a line or more a field."""
    lines = []
    for field in fields(task):
        value = getattr(task, field.name)
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1:
            lines += [f"{field.name}:", *(f"    {entry}" for entry in value)]
        else:
            lines.append(f"{field.name}: {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
