"""A downstream recipe and a protocol -> the settings that hold, with nothing left open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.protocols import Protocol
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.recipe import parse, ssl_block

# Goncharov et al. 2023, published code: Adam 3e-4, half of the patches around a voxel of a class; fine-tuning frozen
# for 15,000 of 45,000 batches, then (intended) 3e-5 -> 3e-4 over 1,200.
PAPER: dict[str, Any] = {"initial_lr": 3e-4, "weight_decay": 0.0, "optimizer": "adam", "schedule": "constant",
                         "oversample_foreground_percent": 0.5, "standardise": False, "backbone_lr_factor": 1.0,
                         "freeze_fraction": 1 / 3, "ramp_fraction": 1200 / 45000}  # fmt: skip
# The backbone gets nnU-Net's own rate, as with its -pretrained_weights. A tenth of it, usual for long schedules, left
# short trainings where they began (docs/results/first_runs.md: Dice .38 against .80 after 100 steps).
STAGES: dict[str, Any] = {"oversample_foreground_percent": 0.33, "backbone_lr_factor": 1.0, "freeze_fraction": 0.1,
                          "ramp_fraction": 0.05}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What holds in a downstream training. head: ``stock`` | ``linear`` | ``nonlinear``; head_init: ``probe`` |
    ``random``; sigmoid: the paper's loss.

    The rest are the fields of DownstreamRecipe.
    """

    head: str
    head_init: str
    sigmoid: bool
    initial_lr: float
    weight_decay: float
    optimizer: str
    schedule: str
    oversample_foreground_percent: float
    standardise: bool
    backbone_lr_factor: float
    freeze_fraction: float
    ramp_fraction: float


def read_recipe(configuration_manager: Any) -> DownstreamRecipe:
    """The recipe in a configuration's ``ssl`` block; defaults where there is none. Raises UserError."""
    block = ssl_block(configuration_manager)
    if "objective" in block:
        raise UserError(
            f"This configuration's ssl block is that of a pretraining (ssl.objective is {block['objective']!r}), "
            "expected a downstream one. Make a plan for the labelled dataset with "
            "`nnunet_ssl adapt -d ID -w CHECKPOINT`."
        )
    return parse(block, DownstreamRecipe)


def resolve(recipe: DownstreamRecipe, protocol: Protocol) -> Settings:
    """Fields that the recipe leaves open take the paper's values under protocol vox2vec, else the protocol's own."""
    paper = recipe.protocol == "vox2vec"
    head = protocol.head or ("linear" if paper and recipe.head == "stock" else recipe.head)

    def value(name: str) -> Any:
        given = getattr(recipe, name)
        if given is not None:
            return given
        if paper:
            return PAPER[name]
        return STAGES[name] if name in STAGES else getattr(protocol, name)

    # nnU-Net's own start from scratch; a pretrained network is of little use behind a head that has to find its way
    head_init = recipe.head_init or ("probe" if protocol.pretrained and not paper else "random")
    head_init = "random" if head == "nonlinear" else head_init  # a fit is linear
    names = [name for name in Settings.__dataclass_fields__
             if name not in ("head", "head_init", "sigmoid", "standardise")]  # fmt: skip
    standardise = value("standardise") and len(protocol.frozen) == 2
    if head == "nonlinear" and protocol.pretrained:
        # as its probe does. The moments stay what they were before the first step: constants to a backbone that learns
        standardise = not paper if recipe.standardise is None else recipe.standardise
    values = {name: value(name) for name in names}
    return Settings(head=head, head_init=head_init, sigmoid=paper, standardise=standardise, **values)
