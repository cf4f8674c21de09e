"""Volumes that tests draw views from."""

import numpy as np

from nnunet_ssl import views
from nnunet_ssl.objectives.vox2vec import Recipe

GRIDS = {  # volume, patch, spacing in mm
    "3d": ((20, 26, 30), (12, 16, 16), (1.0, 1.0, 1.0)),
    "anisotropic": ((14, 40, 36), (6, 20, 16), (5.0, 0.8, 1.1)),
    "one axis shorter": ((7, 26, 30), (12, 16, 16), (2.0, 1.0, 1.0)),
    "all axes shorter": ((7, 9, 10), (12, 16, 17), (2.0, 1.0, 1.0)),
    "as large as the patch": ((12, 16, 16), (12, 16, 16), (1.0, 1.0, 1.0)),
    "2d": ((40, 36), (20, 16), (0.8, 1.5)),
    "2d, shorter": ((11, 36), (20, 16), (0.8, 1.5)),
}
CROP = Recipe(voxels_per_pair=64)
FLIP = Recipe(voxels_per_pair=64, flip_axes=[0, 1])
AFFINE = Recipe(voxels_per_pair=64, spatial="affine", rotation_deg=25.0, scale=[0.8, 1.25], flip_axes=[1])


class Volume:
    """A volume with a random foreground, which refuses to be read outside."""

    def __init__(self, shape, share=0.5, seed=0):
        self.shape = shape
        self.foreground = np.random.default_rng(seed).random(shape) < share
        # channels: the voxel's coordinates, counted from 1 so that 0 is padding alone; then the foreground
        self.image = np.stack([*(np.indices(shape) + 1.0), self.foreground])

    def box(self, start, size):
        assert all(f >= 0 and n > 0 and f + n <= s for f, n, s in zip(start, size, self.shape, strict=True))
        return tuple(slice(f, f + n) for f, n in zip(start, size, strict=True))

    def read_mask(self, start, size):
        return self.foreground[self.box(start, size)]

    def read_image(self, start, size):
        return self.image[(slice(None), *self.box(start, size))]


def draw(name, recipe, seed, volume=None):
    shape, patch, spacing = GRIDS[name]
    volume = volume or Volume(shape)
    rng = np.random.default_rng(seed)
    return volume, patch, views.draw_pair(rng, shape, patch, spacing, recipe, None, volume.read_mask)
