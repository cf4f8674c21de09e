"""Pix2Rep (Seince et al., MIDL 2024; version 2: MICCAI 2026): pretrain a network of nnU-Net on unlabelled images."""

from __future__ import annotations

from nnunet_ssl.nnunet.pretrain import PretrainTrainer
from nnunet_ssl.objectives.pix2rep import Recipe


class Pix2RepPretrainTrainer(PretrainTrainer):
    """``nnUNetv2_train ID 2d|3d_fullres all -tr Pix2RepPretrainTrainer -p PLAN``; settings: the plan's ``ssl`` block.

    See ``nnunet_ssl.objectives.pix2rep.Recipe`` for the fields and ``nnunet_ssl.nnunet.pretrain`` for what it does.
    """

    recipe_class = Recipe
