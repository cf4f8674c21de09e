"""The network that a plan names, and the network that pretrains it.

Letters: B pairs, C channels, *S spatial size of a view, N points a pair, D spatial dimensions, M valid points of the
batch, L levels. Levels run finest first; the bottleneck is the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.heads import Projector
from nnunet_ssl.nnunet.pyramid_of import has_batch_norm, pyramid_channels, pyramid_levels, pyramid_strides
from nnunet_ssl.nnunet.recipe import ssl_block
from nnunet_ssl.nnunet.widening import WidenedNetwork
from nnunet_ssl.pyramid import Change, LevelWidths, gather


def build_backbone(
    configuration_manager: Any,
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool = True,
    stock: bool = False,
) -> nn.Module:
    """The network that the plan's configuration names, as the stock trainer builds it.

    Its finest level is widened where the ``ssl`` block has ``representation_channels``, but not for `stock`.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network: nn.Module = get_network_from_plans(
        configuration_manager.network_arch_class_name,
        configuration_manager.network_arch_init_kwargs,
        configuration_manager.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        allow_init=True,
        deep_supervision=enable_deep_supervision,
    )
    width = None if stock else ssl_block(configuration_manager).get("representation_channels")
    return network if width is None else WidenedNetwork(network, width)


class VoxelProjector(nn.Module):
    """Voxel vectors (M, sum C_l) -> embeddings (M, d): optionally equal level widths, then the projector.

    vox2vec (Goncharov et al., 2023, section 2.3) projects the concatenated levels as they are; ``level_width`` gives
    every level the same number of channels first (Kats et al., ISBI 2024), which keeps the coarse levels from
    deciding alone.
    """

    def __init__(self, channels: Sequence[int], recipe: Any) -> None:
        super().__init__()
        equal = recipe.level_width != "native"
        width = recipe.level_width * len(channels) if equal else sum(channels)
        self.widths = LevelWidths(list(channels), recipe.level_width) if equal else nn.Identity()
        norm = "layer" if recipe.loss == "vicreg" else "batch"
        hidden = recipe.hidden_widths(width)
        self.mlp = Projector(width, hidden, recipe.embedding_width, norm=norm, l2=recipe.normalised)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.mlp(self.widths(vectors))


class PretrainNetwork(nn.Module):
    """A stock network's encoder and decoder with a projector beside them.

    The state dict is every key of the stock network plus ``projector.*``, so the stock trainer accepts it with
    ``-pretrained_weights``. The segmentation layers are kept for that, frozen.
    """

    def __init__(self, backbone: nn.Module, recipe: Any) -> None:
        super().__init__()
        self.channels = pyramid_channels(backbone)
        self.strides = pyramid_strides(backbone)
        self.encoder = backbone.encoder
        self.decoder = backbone.decoder
        if isinstance(backbone, WidenedNetwork):
            self.representation = backbone.representation
        self.read_levels = recipe.read_levels(len(self.channels))
        self.read_channels = self.channels[: self.read_levels]  # of a voxel vector, level by level
        self.projector = VoxelProjector(self.read_channels, recipe)
        self.reading, self.outside = recipe.level_reading, recipe.outside
        # In a tuple, so that it is no second owner of the modules: the keys of the state dict stay the stock ones.
        self._backbone = (backbone,)
        # Statistics of batch normalisation belong to one view (published code: two forward passes).
        self.separate_views = has_batch_norm(backbone)
        self.decoder.seg_layers.requires_grad_(False)

    def levels(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> levels finest first, the bottleneck last."""
        return pyramid_levels(self._backbone[0], x)

    def stock_levels(self, x: Tensor) -> list[Tensor]:
        """The same without the widening of the finest one."""
        backbone = self._backbone[0]
        return backbone.stock_levels(x) if isinstance(backbone, WidenedNetwork) else self.levels(x)

    def vectors(self, levels: Sequence[Tensor], coords: Tensor, valid: Tensor, late: bool = False) -> Tensor:
        """Voxel vectors of the valid points: (M, sum C_l), for coords (B, N, D) and valid (B, N). late: the finest
        level is the stock one and is widened at the points.
        """
        chosen, strides = list(levels)[: self.read_levels], self.strides[: self.read_levels]
        changes: list[Change | None] = [None] * len(chosen)
        if late:
            changes[0] = self.representation.by_voxel(chosen[0])
        return gather(chosen, strides, coords, self.reading, self.outside, changes)[valid]  # (M, sum C)

    def _widens_late(self, points: int, view: Tensor) -> bool:
        """Whether widening the voxels around so many points is less work than widening all voxels of a view."""
        few = points * 2 ** (view.ndim - 2) < math.prod(view.shape[2:])
        return few and isinstance(self._backbone[0], WidenedNetwork)

    def forward(
        self,
        a: Tensor,
        b: Tensor | None = None,
        coords_a: Tensor | None = None,
        coords_b: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views (B, C, *S), coords (B, N, D), valid (B, N) -> z_a, z_b (M, d) and raw_a, raw_b (M, sum C_l)."""
        if b is None or coords_a is None or coords_b is None or valid is None:
            raise UserError(
                "This is a pretraining network: it has no trained segmentation head and cannot predict. Make a plan "
                "for a labelled dataset with `nnunet_ssl adapt`, train one of the downstream trainers, predict with it."
            )
        late = self._widens_late(valid.shape[1], a)
        levels = self.stock_levels if late else self.levels
        if self.separate_views:
            levels_a, levels_b = levels(a), levels(b)
        else:
            halves = [level.chunk(2) for level in levels(torch.cat((a, b)))]
            levels_a, levels_b = [half[0] for half in halves], [half[1] for half in halves]
        raw_a = self.vectors(levels_a, coords_a, valid, late)
        raw_b = self.vectors(levels_b, coords_b, valid, late)
        return self.projector(raw_a), self.projector(raw_b), raw_a, raw_b
