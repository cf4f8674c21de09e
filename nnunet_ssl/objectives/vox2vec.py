"""vox2vec (Goncharov et al., MICCAI 2023, arXiv 2307.14725): the numbers of one pretraining, and what they may be.

The defaults are those of the published code. Where the paper's text and the code differ, the choice is a field:
``volumes_per_batch`` (code: all pairs from one volume; text: one volume a pair) and ``loss`` (text: also VICReg).
How views are drawn from these numbers is in ``nnunet_ssl.drawing`` and ``nnunet_ssl.views`` (space) and
``nnunet_ssl.intensity``; the training step that uses them is in ``nnunet_ssl.step``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from nnunet_ssl import fields
from nnunet_ssl.drawing import box_size, draw_pair
from nnunet_ssl.intensity import augment
from nnunet_ssl.recipes import BaseRecipe, base_rules
from nnunet_ssl.views import assemble, collate, read_pair

__all__ = ["Recipe", "assemble", "augment", "box_size", "collate", "draw_pair", "read_pair"]


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """All settings of a vox2vec pretraining.

    Lengths are in voxels, angles in degrees, intensities in HU (``*_hu``) or in units of the normalised image
    (``noise_z``, ``gain``, ``shift``). Pairs of numbers are [least, greatest] of a uniform draw. ``pairs_per_batch``:
    10 in the preset; ``intensity``: "auto" is "hu" for CT channels, "zscore" for all others; ``flip_axes``: each view
    by itself; ``reading``: None is "nearest", and "linear" for affine views, whose points lie between voxels;
    ``projector_hidden``: None is two layers as wide as the pyramid, and ``projector_out`` 128 (vicreg: 8192 thrice).
    """

    RULES: ClassVar[dict[str, fields.Rule]] = {}
    PATCH_OF_IMAGE: ClassVar[float | None] = 0.75  # two crops of one image must be able to differ

    objective: str = "vox2vec"
    volumes_per_batch: int = 1  # 1: published code; as many as pairs: the paper's text
    voxels_per_pair: int = 1024  # at most: as many as the overlap has

    # views: space
    spatial: str = "none"  # none: crops at integer positions; affine: rotated and scaled in mm, read linearly
    rotation_deg: float | list[float] = 10.0  # angles U(-r, r) about each axis (z, y, x), or one number for all
    scale: list[float] = field(default_factory=lambda: [0.8, 1.25])  # apparent size, drawn uniformly in its logarithm

    # views: intensity
    blur_sharpen_p: float = 0.5
    blur_sigma: list[float] = field(default_factory=lambda: [0.25, 1.5])
    sharpen_sigma: list[float] = field(default_factory=lambda: [0.5, 1.0])
    sharpen_amount: list[float] = field(default_factory=lambda: [10.0, 30.0])
    noise_p: float = 0.5
    noise_hu: list[float] = field(default_factory=lambda: [0.0, 30.0])
    noise_z: list[float] = field(default_factory=lambda: [0.0, 0.1])
    window_p: float = 0.8
    window_lo_hu: list[float] = field(default_factory=lambda: [-1350.0, -1000.0])
    window_hi_hu: list[float] = field(default_factory=lambda: [300.0, 1000.0])
    gain_shift_p: float = 0.8  # what the window is to CT, gain and shift are to the others
    gain: list[float] = field(default_factory=lambda: [0.75, 1.25])
    shift: list[float] = field(default_factory=lambda: [-0.25, 0.25])

    @property
    def level_reading(self) -> str:
        return self.reading or ("linear" if self.spatial == "affine" else "nearest")

    def points(self, patch: Sequence[int]) -> int:
        return self.voxels_per_pair

    def hidden_widths(self, vector_width: int) -> list[int]:
        if self.projector_hidden is not None:
            return list(self.projector_hidden)
        return [8192, 8192] if self.loss == "vicreg" else [vector_width, vector_width]

    @property
    def embedding_width(self) -> int:
        return self.projector_out or (8192 if self.loss == "vicreg" else 128)

    def validate(self) -> None:
        super().validate()
        lo, hi = self.window_lo_hu, self.window_hi_hu
        if lo[1] >= hi[0]:
            raise ValueError(f"window_lo_hu is {lo}; expected to end below the start of window_hi_hu {hi}")


def _rules() -> dict[str, fields.Rule]:
    """What each field may be."""
    angle = fields.number(0.0, 180.0)
    groups: list[tuple[fields.Rule, str]] = [
        (fields.number(0.0, 1.0), "blur_sharpen_p noise_p window_p gain_shift_p"),
        (fields.interval(0.0), "blur_sigma sharpen_sigma sharpen_amount noise_hu noise_z gain"),
        (fields.interval(), "window_lo_hu window_hi_hu shift"),
    ]
    return {
        **base_rules("vox2vec"),
        **{name: rule for rule, names in groups for name in names.split()},
        "voxels_per_pair": fields.whole(1),
        "spatial": fields.choice("none", "affine"),
        "rotation_deg": fields.either(angle, fields.list_of(angle)),
        "scale": fields.interval(0.0, above=True),
    }


Recipe.RULES.update(_rules())
