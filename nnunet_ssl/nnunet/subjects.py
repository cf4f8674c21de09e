"""The subjects that a representation report looks at: image, foreground, places in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_ssl.nnunet.b2nd import B2ndVolume
from nnunet_ssl.nnunet.masks import mask_maker

MIDDLE = 0.7  # of the foreground's bounding box: where queries are taken from, away from the borders


@dataclass(frozen=True)
class Subject:
    """A preprocessed case. image (C, z, y, x), read lazily; mask (z, y, x) bool; spacing in mm (z, y, x)."""

    case: str
    held_back: bool
    image: Any
    mask: np.ndarray
    spacing: tuple[float, ...]

    def centre(self) -> tuple[int, ...]:
        """A foreground voxel near the foreground's centre of mass."""
        points = np.argwhere(self.mask)
        return tuple(int(i) for i in points[((points - points.mean(0)) ** 2).sum(1).argmin()])

    def draw(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Up to `number` foreground voxels (n, 3), all different."""
        flat = np.flatnonzero(self.mask)
        return np.stack(np.unravel_index(rng.choice(flat, min(number, len(flat)), replace=False), self.mask.shape), 1)

    def spread(self, points: np.ndarray, number: int) -> np.ndarray:
        """Rows of `points` (n, 3) that lie far from each other (farthest first, in mm) in the middle of the body."""
        low, high = points.min(0), points.max(0)
        inside = np.abs(points - (low + high) / 2) <= MIDDLE * (high - low) / 2
        rows = np.flatnonzero(inside.all(1)) if inside.all(1).any() else np.arange(len(points))
        place = points[rows] * np.asarray(self.spacing)
        chosen = [int(((place - place.mean(0)) ** 2).sum(1).argmin())]
        while len(chosen) < min(number, len(rows)):
            gaps = ((place[:, None] - place[chosen][None]) ** 2).sum(2).min(1)
            chosen.append(int(gaps.argmax()))
        return rows[chosen]


def choose_subjects(trainer: Any, number: int) -> list[Subject]:
    """Up to `number` subjects: held-back ones first, then, to have two to compare, ones of the training."""
    training, held = trainer.do_split()
    cases = list(held)[:number]
    if len(cases) < 2:
        cases += [case for case in training if case not in cases][: 2 - len(cases)]
    maker = mask_maker(trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json)
    return [_subject(trainer, case, case in held and case not in training, maker) for case in cases]


def _subject(trainer: Any, case: str, held_back: bool, maker: Any) -> Subject:
    folder = trainer.preprocessed_dataset_folder
    image, _, _, properties = trainer.dataset_class(folder, [case]).load_case(case)
    volume = B2ndVolume(folder, case, maker)
    mask = volume.mask((0, 0, 0), volume.shape)
    if not mask.any():
        mask = np.ones_like(mask)
    return Subject(case, held_back, image, mask, _spacing(trainer, properties))


def _spacing(trainer: Any, properties: dict[str, Any]) -> tuple[float, ...]:
    spacing: Sequence[float] = [float(s) for s in trainer.configuration_manager.spacing]
    if len(spacing) == 2:  # slices of a volume: their distance is the image's own
        spacing = [float(properties["spacing"][trainer.plans_manager.transpose_forward[0]]), *spacing]
    return tuple(spacing)
