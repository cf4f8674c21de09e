"""Pix2Rep (Seince et al., MIDL 2024; version 2: MICCAI 2026): pretrain a network of nnU-Net on unlabelled images."""

from __future__ import annotations

import torch

from nnunet_ssl.nnunet.pretrain import PretrainTrainer
from nnunet_ssl.objectives.pix2rep import Recipe


class Pix2RepPretrainTrainer(PretrainTrainer):
    """``nnUNetv2_train ID 2d|3d_fullres all -tr Pix2RepPretrainTrainer -p PLAN``; settings: the plan's ``ssl`` block.

    See ``nnunet_ssl.objectives.pix2rep.Recipe`` for the fields and ``nnunet_ssl.nnunet.pretrain`` for what it does.
    """

    recipe_class = Recipe

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
