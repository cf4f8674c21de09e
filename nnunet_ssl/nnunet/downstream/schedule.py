"""Optimiser and learning rates of a downstream training: nnU-Net's schedule, with a backbone that starts later."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from nnunet_ssl.nnunet.downstream.settings import Settings
from nnunet_ssl.nnunet.optimisation import POLY_EXPONENT, SGD_MOMENTUM

RAMP_FROM = 0.1  # the backbone's rate begins its ramp at a tenth (published code of vox2vec: 3e-5 -> 3e-4)


def build_optimizer(settings: Settings, head: list[nn.Parameter], backbone: list[nn.Parameter]) -> Optimizer:
    """One group for the head and, where the backbone learns, one for the backbone; both from step 0 on."""
    groups = [{"params": parameters, "role": role} for role, parameters in (("head", head), ("backbone", backbone))
              if parameters]  # fmt: skip
    lr, decay = settings.initial_lr, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr, weight_decay=decay)
    return torch.optim.SGD(groups, lr, weight_decay=decay, momentum=SGD_MOMENTUM, nesterov=True)


class StagedSchedule:
    """Rates by epoch as nnU-Net's (poly, exponent 0.9), times a factor for the backbone that changes step by step.

    A staged training has ``freeze_steps`` with the head alone, then ``ramp_steps`` in which the backbone's factor rises
    linearly from a tenth of ``backbone_lr_factor`` to all of it. Both are shares of all steps. Anything else has
    factor 1.
    """

    def __init__(self, optimizer: Optimizer, settings: Settings, num_epochs: int, steps_per_epoch: int,
                 staged: bool) -> None:  # fmt: skip
        total = num_epochs * steps_per_epoch
        self.optimizer, self.settings, self.num_epochs, self.staged = optimizer, settings, num_epochs, staged
        self.freeze_steps = round(settings.freeze_fraction * total) if staged else 0
        self.ramp_steps = round(settings.ramp_fraction * total) if staged else 0
        self.rate = settings.initial_lr
        self.now = 0

    def step(self, epoch: int) -> None:
        """Called by nnU-Net at the start of an epoch."""
        done = min(1.0, epoch / max(1, self.num_epochs))
        decay = {"poly": (1 - done) ** POLY_EXPONENT, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
        self.rate = self.settings.initial_lr * decay[self.settings.schedule]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def head_only(self, step: int) -> bool:
        """Whether the backbone rests at global step ``step``."""
        return step < self.freeze_steps

    def backbone_factor(self, step: int) -> float:
        """The backbone's rate as a multiple of the head's at global step ``step``."""
        if not self.staged:
            return 1.0
        done = min(1.0, (step - self.freeze_steps + 1) / max(1, self.ramp_steps)) if self.ramp_steps else 1.0
        return self.settings.backbone_lr_factor * (RAMP_FROM + (1 - RAMP_FROM) * max(0.0, done))

    def at(self, step: int) -> None:
        """Set the rates of global step ``step``; ``step(epoch)`` of its epoch has been called."""
        self.now = step
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (self.backbone_factor(step) if group["role"] == "backbone" else 1.0)
