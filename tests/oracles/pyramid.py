"""Reading of a pyramid, voxel by voxel in float64."""

import itertools

import numpy as np


def nearest(level, stride, point):
    """level (C, *S), point in voxels of the finest level -> (C,)"""
    index = [int(np.floor((c + 0.5) / s)) for c, s in zip(point, stride, strict=True)]
    index = [min(max(i, 0), n - 1) for i, n in zip(index, level.shape[1:], strict=True)]
    return level[(slice(None), *index)]


def linear(level, stride, point):
    position = [(c + 0.5) / s - 0.5 for c, s in zip(point, stride, strict=True)]
    position = [min(max(p, 0), n - 1) for p, n in zip(position, level.shape[1:], strict=True)]
    value = np.zeros(level.shape[0])
    for corner in itertools.product((0, 1), repeat=len(position)):
        index = [int(np.floor(p)) + c for p, c in zip(position, corner, strict=True)]
        weight = np.prod([max(0.0, 1 - abs(p - i)) for p, i in zip(position, index, strict=True)])
        if weight > 0:
            value += weight * level[(slice(None), *index)]
    return value
