"""Linear reading of an image at one point, written out."""

import itertools
import math

import numpy as np


def read_linear(image: np.ndarray, point: np.ndarray) -> float:
    """Value of `image` (*S) at `point` (D,) in voxels: the 2^D neighbours, weighted; zero outside."""
    total = 0.0
    for corner in itertools.product((0, 1), repeat=image.ndim):
        voxel = [math.floor(p) + c for p, c in zip(point, corner, strict=True)]
        weight = math.prod(abs(1 - c - (p - math.floor(p))) for p, c in zip(point, corner, strict=True))
        if all(0 <= v < s for v, s in zip(voxel, image.shape, strict=True)):
            total += weight * float(image[tuple(voxel)])
    return total
