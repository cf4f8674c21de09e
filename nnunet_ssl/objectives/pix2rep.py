"""Pix2Rep (Seince et al., MIDL 2024, arXiv 2407.20395) and its second version (MICCAI 2026, arXiv 2609.01427): pixel
representations that move with space and do not change with intensity.

Two intensity-augmented views of an image, one of them transformed by phi. The vector that the network gives to a pixel
of the transformed view is compared with the one at the place of the other view that it came from: comparing phi(f(x))
with f(phi(x)), as the paper writes it, is reading f(x) by interpolation where phi's inverse leads. That map, psi, is
what is drawn (``nnunet_ssl.phi``), so nothing is inverted.

The defaults are those of the published code (2D), with these exceptions. It compares what fell outside the image, too:
``mask_invalid`` (default on) leaves that out. It changes intensities before it transforms, here each view is changed as
the network gets it. In 3D, and where the second version's settings are not known (phi beside its crop), they are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from nnunet_ssl import fields
from nnunet_ssl.contrast import augment
from nnunet_ssl.phi import box_size, draw_pair, read_pair
from nnunet_ssl.recipes import BaseRecipe, base_rules
from nnunet_ssl.transformed import assemble, collate

__all__ = ["Recipe", "assemble", "augment", "box_size", "collate", "draw_pair", "read_pair"]


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """All settings of a Pix2Rep pretraining.

    Lengths are in parts of the patch, angles in degrees, intensities in units of the normalised image; gamma and bias
    act on a view stretched to [0, 1]. Pairs of numbers are [least, greatest] of a uniform draw. ``loss``: "info_nce" is
    the paper's NT-Xent, with its temperature of 0.53, "barlow_twins" the second version's; ``flip_axes``: those of phi;
    ``reading``: None is "linear"; ``projector_hidden``: None is one layer of 256, ``projector_out``: None is 256.
    """

    RULES: ClassVar[dict[str, fields.Rule]] = {}
    PATCH_OF_IMAGE: ClassVar[float | None] = None  # a whole image may be a view

    objective: str = "pix2rep"
    volumes_per_batch: int = 8
    voxels_per_pair: int | str = 125  # 1,000 a batch of 8 in the paper; "all": every voxel of the transformed view

    temperature: float = 0.53
    levels: int | str = 1  # how many of the pyramid, finest first, make a voxel vector (1: the paper's); "all"
    representation_channels: int | None = None  # of the widened finest level (1024 in the paper); None: not widened

    # phi
    view_side: list[float] | None = None  # of view a, stretched to the patch; None: a crop at its own scale
    identity_p: float = 0.3
    rotation_deg: float | list[float] | None = None  # U(-r, r) about z, y, x; None: 90 in 2D, [90, 15, 15] in 3D
    crop_side: list[float] = field(default_factory=lambda: [0.33, 0.95])  # of view b in a, stretched to the patch
    elastic_p: float = 0.0
    elastic_amount: list[float] = field(default_factory=lambda: [0.2, 0.8])  # of the strongest that cannot fold
    elastic_spacing: float = 0.25  # between control points
    mask_invalid: bool = True  # false (published code): what is outside the image or its foreground is compared, too

    # intensity
    noise_p: float = 0.3
    noise_std: list[float] = field(default_factory=lambda: [0.0, 0.5])
    blur_p: float = 0.5
    blur_sigma: list[float] = field(default_factory=lambda: [0.0, 1.3])  # voxels
    gamma_p: float = 0.9
    log_gamma: list[float] = field(default_factory=lambda: [-0.05, 0.05])
    bias_p: float = 0.75
    bias_coefficient: float = 0.9  # of a cubic polynomial's terms, U(-c, c)
    inversion_p: float = 0.35

    initial_lr: float = 4.7e-4

    @property
    def outside(self) -> str:
        return "border" if self.mask_invalid or self.level_reading == "nearest" else "zeros"

    @property
    def widened(self) -> int | None:
        return self.representation_channels

    def read_levels(self, count: int) -> int:
        return count if isinstance(self.levels, str) else min(self.levels, count)

    def points(self, patch: Sequence[int]) -> int:
        every = math.prod(patch)
        return every if isinstance(self.voxels_per_pair, str) else min(self.voxels_per_pair, every)

    def hidden_widths(self, vector_width: int) -> list[int]:
        return [256] if self.projector_hidden is None else list(self.projector_hidden)

    @property
    def embedding_width(self) -> int:
        return self.projector_out or 256


def _rules() -> dict[str, fields.Rule]:
    """What each field may be."""
    angle = fields.number(0.0, 180.0)
    shares = "identity_p elastic_p noise_p blur_p gamma_p bias_p inversion_p"
    return {
        **base_rules("pix2rep"),
        **dict.fromkeys(shares.split(), fields.number(0.0, 1.0)),
        "voxels_per_pair": fields.either(fields.choice("all"), fields.whole(2)),
        "levels": fields.either(fields.choice("all"), fields.whole(1)),
        "representation_channels": fields.or_none(fields.whole(1)),
        "view_side": fields.or_none(fields.interval(0.0, above=True)),
        "rotation_deg": fields.or_none(fields.either(angle, fields.list_of(angle))),
        "crop_side": fields.interval(0.0, above=True),
        "elastic_amount": fields.interval(0.0, 1.0),
        "elastic_spacing": fields.number(0.0, 1.0, above=True),
        "mask_invalid": fields.flag(),
        "intensity": fields.choice("auto", "none"),
        "noise_std": fields.interval(0.0),
        "blur_sigma": fields.interval(0.0),
        "log_gamma": fields.interval(),
        "bias_coefficient": fields.number(0.0),
    }


Recipe.RULES.update(_rules())
