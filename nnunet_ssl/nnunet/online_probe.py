"""How well a linear classifier on the frozen pyramid segments, measured while the pretraining runs.

It watches and never feeds back: its cases, windows and voxels come from its own seeded generator, and the network is
returned in the mode in which it came. Dice is taken on the preprocessed grid, so it follows the training; the figure to
report is that of a probe trained and predicted with nnU-Net's commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.heads import LinearHead
from nnunet_ssl.nnunet.dense import dense_map, levels_reader
from nnunet_ssl.nnunet.linear_fit import collect_voxels, fit_linear, to_head
from nnunet_ssl.nnunet.probe_data import open_folder, preprocessed, split
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_strides
from nnunet_ssl.probe import ProbeSettings


class OnlineProbe:
    """A linear probe on a few labelled cases of another dataset. Built once, measured again and again."""

    def __init__(self, probe: dict[str, Any], trainer: Any) -> None:
        """Find and check the cases. `probe` is a block that the Recipe has checked. Raises UserError where they are
        missing or preprocessed in another way."""
        self.settings = ProbeSettings.parse(probe)
        self.device = trainer.device
        self.patch_size = [int(p) for p in trainer.configuration_manager.patch_size]
        folder, configuration, manager = preprocessed(self.settings, trainer)
        self.num_classes, self.ignore_label = max(manager.foreground_labels) + 1, manager.ignore_label
        self.dataset, identifiers = open_folder(folder, configuration)
        self.train, self.held_out = split(self.settings, identifiers, folder)

    @torch.no_grad()
    def measure(self, network: nn.Module) -> dict[str, Any]:
        """Fit and measure: {"dice": mean over classes, "per_class": [...], "cases": n fitted, "held_out": n measured}.

        A class that a held-out case neither has nor is given does not count; NaN where none counts.
        """
        network = _bare(network)
        training = network.training
        network.eval()
        try:
            head = self._fit(network)
            dice = np.stack([self._dice(network, head, case) for case in self.held_out])  # (cases, K - 1)
        finally:
            network.train(training)
        counted = ~np.isnan(dice)
        per_class = np.where(counted, dice, 0).sum(0) / np.where(counted.any(0), counted.sum(0), np.nan)
        present = per_class[~np.isnan(per_class)]
        return {"dice": float(present.mean()) if len(present) else float("nan"), "per_class": per_class.tolist(),
                "cases": len(self.train), "held_out": len(self.held_out)}  # fmt: skip

    def _fit(self, network: nn.Module) -> LinearHead:
        s = self.settings
        strides, channels = pyramid_strides(network), pyramid_channels(network)
        sample = collect_voxels(
            levels_reader(network), strides, (self._case(case) for case in self.train), self.patch_size,
            self.num_classes, np.random.default_rng(s.seed), num_cases=len(self.train), per_class=s.per_class,
            background=s.background, step=s.step, max_windows=s.max_windows, ignore_label=self.ignore_label,
            device=self.device,
        )  # fmt: skip
        weight, bias = fit_linear(sample.features.to(self.device), sample.labels.to(self.device), self.num_classes,
                                  sample.weights, balance=s.balance, l2=s.l2, max_iter=s.max_iter)  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # its random start is overwritten, and must not shift the training's
            head = LinearHead(channels, strides, self.num_classes).to(self.device)
        to_head(weight, bias, head)
        return head.eval()

    def _case(self, identifier: str) -> tuple[Any, np.ndarray]:
        image, segmentation, *_ = self.dataset.load_case(identifier)
        return image, np.asarray(segmentation[:])[0]

    def _dice(self, network: nn.Module, head: LinearHead, identifier: str) -> np.ndarray:
        image, labels = self._case(identifier)
        predicted = predict_labels(network, head, image, self.patch_size, self.settings.step, self.device)
        use = labels != self.ignore_label if self.ignore_label is not None else np.ones(labels.shape, dtype=bool)
        return dice_per_class(predicted[use], labels[use], self.num_classes)


def predict_labels(network: nn.Module, head: LinearHead, image: Any, patch_size: Sequence[int], step: float,
                   device: torch.device | str) -> np.ndarray:  # fmt: skip
    """Labels (z, y, x) of `image` (C, z, y, x) by a linear head on the pyramid, each voxel from its own window."""
    flat, levels_of = len(patch_size) == 2, levels_reader(network)

    def labels_of(x: Tensor) -> Tensor:
        logits = head([level.float() for level in levels_of(x.squeeze(2) if flat else x)])
        labels = logits.argmax(1, keepdim=True)
        return labels.unsqueeze(2) if flat else labels

    patch = [1, *patch_size] if flat else patch_size
    return dense_map(labels_of, image, patch, step=step, dtype=torch.int16, device=device)[0].numpy()


def dice_per_class(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Hard Dice of classes 1..K-1, NaN for a class that is in neither."""
    result = np.full(num_classes - 1, np.nan)
    for c in range(1, num_classes):
        a, b = predicted == c, labels == c
        total = int(a.sum()) + int(b.sum())
        if total:
            result[c - 1] = 2 * int((a & b).sum()) / total
    return result


def _bare(network: nn.Module) -> nn.Module:
    for attribute in ("module", "_orig_mod"):  # DDP outside, compiled inside
        inner = getattr(network, attribute, None)
        network = inner if isinstance(inner, nn.Module) else network
    return network
