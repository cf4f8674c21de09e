"""What a pretraining learned, in numbers and pictures: `representation_report/` beside its checkpoints.

Everything is also computed for the network that the training started from, because a random network is no zero: its
coarse features already follow intensity and position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.nnunet import preparing
from nnunet_ssl.nnunet.correspondence import Standard, nearest, round_trip
from nnunet_ssl.nnunet.dense import levels_reader, vectors_at
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.loader import VALIDATION
from nnunet_ssl.nnunet.pca import fit_components
from nnunet_ssl.nnunet.pictures import PLANES, Plane, draw_grid, plane, values_at
from nnunet_ssl.nnunet.subjects import Subject, choose_subjects
from nnunet_ssl.nnunet.watching import average, measure
from nnunet_ssl.step import embed

FOLDER = "representation_report"
POINTS = 1500  # foreground voxels of a subject for the correspondences
FIT_POINTS = 20_000  # voxels for the principal components
QUERIES = 4
Reader = Callable[[Subject, np.ndarray], Tensor]


def write_report(trainer: Any, num_cases: int = 3) -> dict[str, Any]:
    """Write representation.json, pca_*.png and similarity_*.png into `representation_report/`; returns the JSON.

    trainer: an initialised PretrainTrainer with its final weights. For one process; the others need not take part.
    """
    folder = Path(trainer.output_folder) / FOLDER
    networks = {"pretrained": trainer.bare_network(), "untrained": untrained(trainer)}
    modes = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        report = _report(trainer, networks, folder, num_cases)
    finally:
        for name, network in networks.items():
            network.train(modes[name])
    write_json(folder / "representation.json", _plain(report))
    for line in summary(report):
        trainer.print_to_log_file(line, add_timestamp=False)
    return report


def _report(trainer: Any, networks: dict[str, nn.Module], folder: Path, num_cases: int) -> dict[str, Any]:
    subjects = choose_subjects(trainer, num_cases)
    readers = {name: reader_of(trainer, network) for name, network in networks.items()}
    report: dict[str, Any] = {
        "held_back_pairs": pair_metrics(trainer, networks),
        "cases": [{"case": subject.case, "held_back": subject.held_back} for subject in subjects],
        "correspondence": None,
        "flip_axes": trainer.recipe.flip_axes,
        "mirror_axes": trainer.recipe.mirror_axes,
    }
    pictures = pca_pictures(folder, subjects, readers, trainer.bare_network().channels)
    if len(subjects) > 1:
        report["correspondence"], path = compare(folder, subjects[0], subjects[1], readers)
        pictures.append(path)
    report["pictures"] = [path.name for path in pictures]
    return report


def untrained(trainer: Any) -> nn.Module:
    """The network as the training started: same plan, same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.recipe.seed)
        network: nn.Module = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, trainer.num_input_channels,
            trainer.label_manager.num_segmentation_heads, False,
        )  # fmt: skip
    return network.to(trainer.device)


def reader_of(trainer: Any, network: Any) -> Reader:
    """(subject, points (n, 3)) -> raw voxel vectors (n, sum C_l) of a network on the CPU.

    Averaged over overlapping windows and read linearly: the borders of windows and of coarse voxels are no anatomy.
    """

    def read(subject: Subject, points: np.ndarray) -> Tensor:
        patch_size = trainer.configuration_manager.patch_size
        return vectors_at(levels_reader(network), network.strides, subject.image, patch_size, points, step=0.5,
                          stitch="gaussian", reading="linear", device=trainer.device)  # fmt: skip

    return read


@torch.no_grad()
def pair_metrics(trainer: Any, networks: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the epochs' validation, of every network on the same held-back pairs; {} where there are none.

    Networks are called without their wrapper for several processes: only this process is here.
    """
    count = trainer.num_val_iterations_per_epoch
    if not count:
        return {name: {} for name in networks}
    _, loader = preparing.loaders(trainer, start=0, only_validation=True)
    assert loader is not None  # count > 0
    outputs: dict[str, list[Any]] = {name: [] for name in networks}
    try:
        for index in range(count):
            batch, cases, _ = next(loader)
            pair = trainer.views(batch, VALIDATION, index)
            for name, network in networks.items():
                outputs[name].append(measure(embed(network, pair), pair.valid, cases, network.read_channels))
    finally:
        loader.close()
    return {name: average(values) for name, values in outputs.items()}


def pca_pictures(folder: Path, subjects: Sequence[Subject], readers: dict[str, Reader],
                 channels: Sequence[int]) -> list[Path]:  # fmt: skip
    """One picture a subject: three planes, the image beside three principal components as colours; background is black.

    The components are fitted to all subjects together: the same colour means the same feature in all of them.
    """
    planes = [[plane(s.mask.shape, axis, s.centre()[axis], s.spacing) for axis in range(3)] for s in subjects]
    points = [np.concatenate([p.points for p in three]) for three in planes]
    inside = [s.mask[tuple(where.T)] for s, where in zip(subjects, points, strict=True)]
    columns: list[tuple[str, list[np.ndarray]]] = []
    for name, read in readers.items():
        # the background is not read: it costs most of the windows of a CT and is not shown
        vectors = [read(s, where[mask]) for s, where, mask in zip(subjects, points, inside, strict=True)]
        columns.append((name, colours(vectors, inside, channels)))
        if name == "pretrained":
            parts = [v.split(list(channels), dim=1) for v in vectors]
            columns += [(f"level {i}", colours([p[i] for p in parts], inside)) for i in range(len(channels))]
    columns.insert(1, columns.pop())  # the untrained network beside the pretrained one
    written = []
    for number, subject in enumerate(subjects):
        path = folder / f"pca_{subject.case}.png"
        _draw_pca(path, subject, planes[number], [(title, values[number]) for title, values in columns])
        written.append(path)
    return written


def colours(vectors: Sequence[Tensor], inside: Sequence[np.ndarray], channels: Any = None) -> list[np.ndarray]:
    """Foreground vectors of each subject (n foreground, C) and its mask (n,) -> RGB (n, 3) in [0, 1], black outside.

    Fitted to all subjects; channels: widths of the levels, which then weigh the same.
    """
    body = torch.cat(list(vectors))
    basis = fit_components(body[:: max(1, len(body) // FIT_POINTS)], groups=channels)
    shown = [np.zeros((len(mask), 3), np.float32) for mask in inside]
    for picture, v, mask in zip(shown, vectors, inside, strict=True):
        picture[mask] = basis.colours(v).numpy()
    return shown


def _draw_pca(path: Path, subject: Subject, planes: Sequence[Plane], columns: Sequence[tuple[str, np.ndarray]]) -> None:
    rows: list[list[dict[str, Any] | None]] = []
    first = 0
    for number, shown in enumerate(planes):
        last = first + len(shown.points)
        cells = [("image", values_at(subject.image, shown))]
        cells += [(title, shown.picture(values[first:last])) for title, values in columns]
        rows.append([{"image": image, "plane": shown, "title": "" if number else title} for title, image in cells])
        first = last
    note = "three principal components of the voxel vectors as red, green, blue; all levels, then each level (0 finest)"
    draw_grid(path, rows, PLANES, subject.case, note)


def compare(folder: Path, a: Subject, b: Subject, readers: dict[str, Reader]) -> tuple[dict[str, Any], Path]:
    """Correspondences of two subjects: round trips in mm of every network, and a picture of similarities."""
    rng = np.random.default_rng(0)
    points_a, points_b = a.draw(POINTS, rng), b.draw(POINTS, rng)
    result: dict[str, Any] = {"from": a.case, "by_way_of": b.case}
    standards, vectors = {}, {}
    for name, read in readers.items():
        raw_a, raw_b = read(a, points_a), read(b, points_b)
        standards[name] = Standard.of(raw_a, raw_b)
        vectors[name] = standards[name](raw_a), standards[name](raw_b)
        result[name] = round_trip(vectors[name][0], points_a, vectors[name][1], a.spacing)
    rows = []
    for number in a.spread(points_a, QUERIES):
        query = {name: v[0][number] for name, v in vectors.items()}
        match = points_b[int(nearest(query["pretrained"][None], vectors["pretrained"][1]))]
        rows.append(_similarity_row(a, b, points_a[number], match, query, standards, readers))
    path = folder / f"similarity_{a.case}_{b.case}.png"
    names = [f"query {i + 1}" for i in range(len(rows))]
    note = "cosine of standardised voxel vectors, -1 to 1; red +: the query, and its most similar voxel of the other"
    draw_grid(path, rows, names, f"similarity to one voxel of {a.case}, there and in {b.case}", note)
    return result, path


def _similarity_row(
    a: Subject, b: Subject, point: np.ndarray, match: np.ndarray, query: dict[str, Tensor],
    standards: dict[str, Standard], readers: dict[str, Reader],
) -> list[dict[str, Any]]:  # fmt: skip
    """Axial planes through the query in A and its match in B: image, similarity, and that without training."""
    plane_a, plane_b = (plane(s.mask.shape, 0, int(where[0]), s.spacing) for s, where in ((a, point), (b, match)))
    cells: list[dict[str, Any]] = []
    for subject, shown, where, names in ((a, plane_a, point, ["pretrained"]), (b, plane_b, match, list(query))):
        cells.append({"image": values_at(subject.image, shown), "plane": shown, "mark": where, "title": subject.case})
        inside = subject.mask[tuple(shown.points.T)]
        for name in names:
            similarity = np.full(len(inside), np.nan, np.float32)  # the background stays white
            similarity[inside] = (standards[name](readers[name](subject, shown.points[inside])) @ query[name]).numpy()
            cells.append({"image": shown.picture(similarity), "plane": shown, "title": name,
                          "limits": (-1.0, 1.0), "colours": "coolwarm"})  # fmt: skip
    return cells  # the pretrained network in A and B, the untrained one in B


def summary(report: dict[str, Any]) -> list[str]:
    """The report in a few lines, with the untrained network and chance beside every number."""
    pairs, lines = report["held_back_pairs"], []
    if pairs["pretrained"]:
        before, after = pairs["untrained"], pairs["pretrained"]
        lines.append(
            f"Held-back pairs: retrieval@1 {after['retrieval_at_1']:.3f} (untrained {before['retrieval_at_1']:.3f}, "
            f"chance {after['retrieval_chance']:.4f}), raw vectors {after['retrieval_at_1_raw']:.3f} (untrained "
            f"{before['retrieval_at_1_raw']:.3f}), effective rank {after['effective_rank']:.1f}."
        )
    trip = report["correspondence"]
    if trip:
        after, before = trip["pretrained"], trip["untrained"]
        lines.append(
            f"There and back {trip['from']} - {trip['by_way_of']}: median {after['round_trip_mm_median']:.1f} mm "
            f"(untrained {before['round_trip_mm_median']:.1f}, chance {after['round_trip_mm_median_chance']:.1f})."
        )
    return [*lines, f"Pictures and numbers are in {FOLDER}."]


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
