"""Two subjects side by side: how far a voxel's most similar voxel leads astray, and what looks like one voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nnunet_ssl.nnunet.correspondence import Standard, nearest, round_trip
from nnunet_ssl.nnunet.pictures import Plane, draw_grid, plane, values_at
from nnunet_ssl.nnunet.subjects import Subject

POINTS = 1500  # foreground voxels of a subject for the correspondences
QUERIES = 4
NOTE = "cosine of standardised voxel vectors, -1 to 1; red +: the query, and its most similar voxel of the other"


class Comparison:
    """Correspondences of two subjects: round trips in mm of every network, and a picture of similarities."""

    def __init__(self, a: Subject, b: Subject) -> None:
        rng = np.random.default_rng(0)
        self.a, self.b = a, b
        self.points_a, self.points_b = a.draw(POINTS, rng), b.draw(POINTS, rng)
        self.queries = a.spread(self.points_a, QUERIES)
        self.planes_a = [_axial(a, self.points_a[number]) for number in self.queries]
        self.matches: list[np.ndarray] = []  # of the queries in b, says the first network
        self.report: dict[str, Any] = {"from": a.case, "by_way_of": b.case}
        self.maps: list[list[dict[str, Any]]] = [[] for _ in self.queries]

    def points(self) -> list[list[np.ndarray]]:
        """Where `add` needs vectors: in a, in b."""
        return [[self.points_a, *(_foreground(self.a, shown) for shown in self.planes_a)], [self.points_b]]

    def add(self, name: str, vectors: Sequence[Sequence[Tensor]],
            read_b: Callable[[Sequence[np.ndarray]], Sequence[Tensor]]) -> None:  # fmt: skip
        """A network, from its vectors at `points`; read_b reads others in b, where the matches lie."""
        (in_a, *maps_a), (in_b,) = vectors
        standard = Standard.of(in_a, in_b)
        a, b = standard(in_a), standard(in_b)
        self.report[name] = round_trip(a, self.points_a, b, self.a.spacing)
        first = not self.matches
        if first:
            self.matches = [self.points_b[int(nearest(a[number][None], b))] for number in self.queries]
        planes_b = [_axial(self.b, match) for match in self.matches]
        maps_b = read_b([_foreground(self.b, shown) for shown in planes_b])
        for row, number in enumerate(self.queries):
            shown_in = [(self.a, self.planes_a[row], self.points_a[number], maps_a[row])] if first else []
            shown_in.append((self.b, planes_b[row], self.matches[row], maps_b[row]))
            for subject, shown, where, found in shown_in:
                if first:
                    self.maps[row].append(_image(subject, shown, where))
                self.maps[row].append(_similarity(subject, shown, name, standard(found) @ a[number]))

    def draw(self, folder: Path) -> Path:
        """Write the picture: a row a query, the first network in a and b, the others in b."""
        path = folder / f"similarity_{self.a.case}_{self.b.case}.png"
        names = [f"query {row + 1}" for row in range(len(self.maps))]
        draw_grid(path, self.maps, names, f"similarity to one voxel of {self.a.case}, there and in {self.b.case}", NOTE)
        return path


def _axial(subject: Subject, where: np.ndarray) -> Plane:
    return plane(subject.mask.shape, 0, int(where[0]), subject.spacing)


def _foreground(subject: Subject, shown: Plane) -> np.ndarray:
    return np.asarray(shown.points[subject.mask[tuple(shown.points.T)]])


def _image(subject: Subject, shown: Plane, where: np.ndarray) -> dict[str, Any]:
    return {"image": values_at(subject.image, shown), "plane": shown, "mark": where, "title": subject.case}


def _similarity(subject: Subject, shown: Plane, name: str, found: Tensor) -> dict[str, Any]:
    """A cell of similarities (n,) of the plane's foreground; the background stays white."""
    inside = subject.mask[tuple(shown.points.T)]
    similarity = np.full(len(inside), np.nan, np.float32)
    similarity[inside] = found.numpy()
    return {"image": shown.picture(similarity), "plane": shown, "title": name, "limits": (-1.0, 1.0),
            "colours": "coolwarm"}  # fmt: skip
