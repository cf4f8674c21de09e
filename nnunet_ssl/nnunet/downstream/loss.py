"""The loss of vox2vec's evaluation: binary cross-entropy inside the body plus squared soft Dice, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = 1e-5


class Vox2VecLoss(nn.Module):
    """One sigmoid a class (Goncharov et al. 2023, published code).

    BCE is averaged over the voxels of the body, Dice = 2 sum(p g) / (sum(p^2) + sum(g^2)) is taken over the whole
    batch, class by class. Voxels with the ignore label count in neither. ``body`` (B, 1, *S) bool is set before each
    call; None means everywhere.
    """

    def __init__(self, num_outputs: int, regions: bool, ignore_label: int | None) -> None:
        """
        :param num_outputs: channels of the network's output, the constant background included
        :param regions: targets are (B, R [+ 1 for ignore], *S) masks, not a label map (B, 1, *S)
        """
        super().__init__()
        self.num_outputs, self.regions, self.ignore_label = num_outputs, regions, ignore_label
        self.body: Tensor | None = None

    def masks(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Target -> (B, K, *S) float masks of the foreground classes, (B, 1, *S) bool where labels are known"""
        if self.regions:
            known = ~target[:, -1:].bool() if self.ignore_label is not None else torch.ones_like(target[:, :1]).bool()
            return target[:, : self.num_outputs].float(), known
        known = target != self.ignore_label if self.ignore_label is not None else torch.ones_like(target).bool()
        classes = torch.arange(1, self.num_outputs, device=target.device).view(1, -1, *[1] * (target.ndim - 2))
        return (target == classes).float(), known

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        masks, known = self.masks(target)
        logits = output.float() if self.regions else output[:, 1:].float()
        inside = known if self.body is None else known & self.body
        bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none") * inside
        bce = bce.sum() / (inside.sum() * logits.shape[1]).clamp_min(1)
        p, g = torch.sigmoid(logits) * known, masks * known
        axes = (0, *range(2, p.ndim))
        dice = (2 * (p * g).sum(axes) + SMOOTH) / (p.square().sum(axes) + g.square().sum(axes) + SMOOTH)  # (K,)
        return bce + 1 - dice.mean()


def split_target(target: Tensor, regions: Sequence[Any] | None, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """(B, 2, *S) label map and body -> the loss's target, (B, 1, *S) bool body."""
    labels, body = target[:, :1], target[:, 1:] > 0
    if regions is None:
        return labels, body
    wanted = [*regions, ignore_label] if ignore_label is not None else list(regions)
    rows = [torch.isin(labels, torch.as_tensor(r, device=labels.device)) for r in wanted]
    return torch.cat(rows, 1), body
