"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017): cases without labels help, by what a slow copy of the network
makes of them.

Pix2Rep (Seince et al., MIDL 2024) adds it to fine-tuning without saying with which settings: those here are common ones
of semi-supervised segmentation. The teacher's weights are a moving average of the student's. Both get the same patch of
an unlabelled case, each with noise of its own, and the student's class probabilities are drawn to the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl import fields
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.network import bare


@dataclass(frozen=True)
class MeanTeacherSettings:
    """``ssl.mean_teacher``. decay: of the moving average. weight: of the consistency, after it has risen for the first
    `rampup` (a share of all steps). noise: standard deviation of what is added to each patch, normalised units.
    """

    decay: float = 0.99
    weight: float = 0.1
    rampup: float = 0.4
    noise: float = 0.1

    @classmethod
    def parse(cls, block: Mapping[str, Any]) -> MeanTeacherSettings:
        """Raises ValueError for an unknown key or a value that cannot be used."""
        unknown = [key for key in block if key not in cls.__dataclass_fields__]
        if unknown:
            raise ValueError(f"mean_teacher has the unknown key {unknown[0]!r}; known: {', '.join(RULES)}")
        settings = cls(**block)
        fields.check(settings, RULES, "mean_teacher.")
        return settings


RULES = {
    "decay": fields.number(0.0, 1.0),
    "weight": fields.number(0.0),
    "rampup": fields.number(0.0, 1.0),
    "noise": fields.number(0.0),
}


class MeanTeacher:
    """The teacher of one training, and the patches that it looks at."""

    def __init__(self, settings: MeanTeacherSettings, trainer: Any) -> None:
        self.settings, self.trainer = settings, trainer
        self.network = deepcopy(bare(trainer.network)).requires_grad_(False)
        self.rise = round(settings.rampup * trainer.num_epochs * trainer.num_iterations_per_epoch)
        self.loader = _unlabelled_loader(trainer)

    def patches(self) -> Tensor:
        """(B, C, *S) of unlabelled cases, on the device, augmented as nnU-Net does."""
        data: Tensor = next(self.loader)["data"].to(self.trainer.device, non_blocking=True)
        return data

    def noisy(self, patches: Tensor) -> Tensor:
        """The patches with new noise, within two standard deviations."""
        sigma = self.settings.noise
        return patches + (torch.randn_like(patches) * sigma).clamp(-2 * sigma, 2 * sigma)

    def weight(self, step: int) -> float:
        """Of the consistency at global step ``step``: exp(-5 (1 - t)^2) of all, t from 0 to 1 while it rises."""
        t = min(1.0, step / self.rise) if self.rise else 1.0
        return self.settings.weight * math.exp(-5 * (1 - t) ** 2)

    def consistency(self, student: Tensor | list[Tensor], patches: Tensor, step: int) -> Tensor:
        """Weighted mean squared difference of class probabilities; student: logits (B, K, *S), or a list,
        finest first.
        """
        with torch.no_grad():
            teacher = self.network(self.noisy(patches))
        answers = [answer[0] if isinstance(answer, list | tuple) else answer for answer in (student, teacher)]
        regions = self.trainer.label_manager.has_regions
        found, wanted = (a.float().sigmoid() if regions else a.float().softmax(1) for a in answers)
        return self.weight(step) * (found - wanted).square().mean()

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the student after global step ``step``; at first by a plain mean of what it has been."""
        keep = min(self.settings.decay, 1 - 1 / (step + 1))
        student = bare(self.trainer.network).state_dict()
        for key, mine in self.network.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(student[key].to(mine.dtype), 1 - keep)
            else:
                mine.copy_(student[key])


def _unlabelled_loader(trainer: Any) -> Any:
    """nnU-Net's training loader over the fold's training cases that ``ssl.labelled`` leaves out; their labels are not
    looked at, not even to place the patches.
    """
    if not trainer.unlabelled_cases():
        raise UserError(
            "ssl.mean_teacher learns from training cases without labels, and there are none: all are labelled. Set "
            'ssl.labelled, e.g. {"n": 5, "draw": 0}, or leave ssl.mean_teacher out.'
        )
    share = trainer.oversample_foreground_percent
    trainer.oversample_foreground_percent, trainer.draws_unlabelled = 0.0, True
    try:
        loader, other = trainer.get_dataloaders()
    finally:
        trainer.oversample_foreground_percent, trainer.draws_unlabelled = share, False
    if hasattr(other, "_finish"):  # worker processes, which nobody needs
        other._finish()
    return loader
