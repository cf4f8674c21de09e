"""What a pretraining learned, in numbers and pictures: `representation_report/` beside its checkpoints.

Everything is also computed for the network that the training started from, because a random network is no zero: its
coarse features already follow intensity and position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.nnunet import preparing
from nnunet_ssl.nnunet.comparing import Comparison
from nnunet_ssl.nnunet.components import Components
from nnunet_ssl.nnunet.dense import levels_reader, vectors_at
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.loader import VALIDATION
from nnunet_ssl.nnunet.subjects import Subject, choose_subjects
from nnunet_ssl.nnunet.watching import average, measure
from nnunet_ssl.step import embed

STEP = 0.6  # of windows, in patches: most volumes need one fewer an axis than at nnU-Net's 0.5; 0.75 leaves seams
FOLDER = "representation_report"
Reader = Callable[[Subject, Sequence[np.ndarray]], Sequence[Tensor]]


def write_report(trainer: Any) -> dict[str, Any]:
    """Write representation.json, pca_*.png and similarity_*.png into `representation_report/`; returns the JSON.

    ``report_cases`` of the recipe: how many subjects the pictures show; 0 makes none.

    trainer: an initialised PretrainTrainer with its final weights. For one process; the others need not take part.
    """
    folder = Path(trainer.output_folder) / FOLDER
    if trainer.recipe.report_cases:
        trainer.print_to_log_file(
            f"Looking at up to {trainer.recipe.report_cases} subjects for {FOLDER}, with the pretrained network and an "
            "untrained one; ssl.report_cases = 0 leaves that out ...", add_timestamp=False
        )  # fmt: skip
    networks = {"pretrained": trainer.bare_network(), "untrained": untrained(trainer)}
    modes = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        report = _report(trainer, networks, folder)
    finally:
        for name, network in networks.items():
            network.train(modes[name])
    write_json(folder / "representation.json", _plain(report))
    for line in summary(report):
        trainer.print_to_log_file(line, add_timestamp=False)
    return report


def _report(trainer: Any, networks: dict[str, nn.Module], folder: Path) -> dict[str, Any]:
    number = trainer.recipe.report_cases
    subjects = choose_subjects(trainer, number) if number else []
    readers = {name: reader_of(trainer, network) for name, network in networks.items()}
    report: dict[str, Any] = {
        "held_back_pairs": pair_metrics(trainer, networks),
        "cases": [{"case": subject.case, "held_back": subject.held_back} for subject in subjects],
        "correspondence": None,
        "pictures": [],
        "flip_axes": trainer.recipe.flip_axes,
        "mirror_axes": trainer.recipe.mirror_axes,
    }
    if not subjects:
        return report
    components = Components(subjects, trainer.bare_network().channels)
    comparison = Comparison(*subjects[:2]) if len(subjects) > 1 else None
    look(subjects, readers, components, comparison)
    pictures = components.draw(folder)
    if comparison is not None:
        report["correspondence"] = comparison.report
        pictures.append(comparison.draw(folder))
    report["pictures"] = [path.name for path in pictures]
    return report


def look(subjects: Sequence[Subject], readers: dict[str, Reader], components: Components,
         comparison: Comparison | None) -> None:  # fmt: skip
    """Give every network's vectors to what is made of them. All that is known beforehand is read in one pass a subject:
    most windows hold points of several pictures."""
    for name, read in readers.items():
        points: list[list[np.ndarray]] = [[where] for where in components.points]
        for own, more in zip(points, comparison.points() if comparison else [], strict=False):
            own += more
        vectors = [read(subject, own) for subject, own in zip(subjects, points, strict=True)]
        components.add(name, [v[0] for v in vectors])
        if comparison:
            comparison.add(name, [v[1:] for v in vectors[:2]], partial(read, subjects[1]))


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
    """(subject, sets of points (n, 3)) -> raw voxel vectors (n, sum C_l) of a network on the CPU, for each set.

    Averaged over overlapping windows and read linearly: the borders of windows and of coarse voxels are no anatomy.
    """

    def read(subject: Subject, points: Sequence[np.ndarray]) -> Sequence[Tensor]:
        patch_size = trainer.configuration_manager.patch_size
        found = vectors_at(levels_reader(network), network.strides, subject.image, patch_size, np.concatenate(points),
                           step=STEP, stitch="gaussian", reading="linear", device=trainer.device)  # fmt: skip
        return found.split([len(where) for where in points])

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
    return [*lines, f"{'Pictures and numbers' if report['pictures'] else 'Numbers'} are in {FOLDER}."]


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
