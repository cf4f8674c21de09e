"""Optimiser and learning rate of a pretraining, both functions of the Recipe alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

POLY_EXPONENT = 0.9  # nnU-Net's PolyLRScheduler
SGD_MOMENTUM = 0.99  # nnU-Net's SGD


def build_optimizer(network: nn.Module, recipe: Any) -> Optimizer:
    """The optimiser that the recipe names, over the parameters that learn (the segmentation layers do not)."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    lr, decay = recipe.initial_lr, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, weight_decay=decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=decay)
    return torch.optim.SGD(parameters, lr, weight_decay=decay, momentum=SGD_MOMENTUM, nesterov=True)


def learning_rate(recipe: Any, iteration: int) -> float:
    """Rate of global iteration ``iteration``: linear warm-up, then constant, cosine to 0 or nnU-Net's polynomial."""
    warmup = recipe.warmup_epochs * recipe.num_iterations_per_epoch
    if iteration < warmup:
        return float(recipe.initial_lr * (iteration + 1) / warmup)
    total = recipe.num_epochs * recipe.num_iterations_per_epoch
    done = min(1.0, (iteration - warmup) / max(1, total - warmup))
    if recipe.schedule == "cosine":
        return float(recipe.initial_lr * 0.5 * (1 + math.cos(math.pi * done)))
    if recipe.schedule == "poly":
        return float(recipe.initial_lr * (1 - done) ** POLY_EXPONENT)
    return float(recipe.initial_lr)


class Schedule:
    """Sets the optimiser's rate; ``step(epoch)`` is what the stock trainer calls, ``at(iteration)`` what ours does."""

    def __init__(self, optimizer: Optimizer, recipe: Any) -> None:
        self.optimizer = optimizer
        self.recipe = recipe

    def at(self, iteration: int) -> float:
        rate = learning_rate(self.recipe, iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def step(self, epoch: int) -> None:
        self.at(epoch * self.recipe.num_iterations_per_epoch)
