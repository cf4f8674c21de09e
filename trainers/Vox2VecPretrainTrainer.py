"""vox2vec (Goncharov et al., MICCAI 2023): pretrain a network of nnU-Net on unlabelled volumes."""

from __future__ import annotations

import torch

from nnunet_ssl.nnunet.pretrain import PretrainTrainer
from nnunet_ssl.objectives.vox2vec import Recipe


class Vox2VecPretrainTrainer(PretrainTrainer):
    """``nnUNetv2_train ID 3d_fullres all -tr Vox2VecPretrainTrainer -p PLAN``; settings are the plan's ``ssl`` block.

    See ``nnunet_ssl.objectives.vox2vec.Recipe`` for the fields and ``nnunet_ssl.nnunet.pretrain`` for what it does.
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
