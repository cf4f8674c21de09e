"""vox2vec (Goncharov et al., MICCAI 2023): pretrain a network of nnU-Net on unlabelled volumes."""

from __future__ import annotations

from nnunet_ssl.nnunet.pretrain import PretrainTrainer
from nnunet_ssl.objectives.vox2vec import Recipe


class Vox2VecPretrainTrainer(PretrainTrainer):
    """``nnUNetv2_train ID 3d_fullres all -tr Vox2VecPretrainTrainer -p PLAN``; settings are the plan's ``ssl`` block.

    See ``nnunet_ssl.objectives.vox2vec.Recipe`` for the fields and ``nnunet_ssl.nnunet.pretrain`` for what it does.
    """

    recipe_class = Recipe
