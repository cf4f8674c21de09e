"""vox2vec's intensity steps for one view, voxel by voxel, in float64."""

import math

import numpy as np


def blur_line(line: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    weights = [math.exp(-(t**2) / (2 * sigma**2)) for t in range(-radius, radius + 1)]
    out = np.zeros(len(line))
    for i in range(len(line)):
        for t, weight in zip(range(-radius, radius + 1), weights, strict=True):
            out[i] += weight / sum(weights) * line[min(max(i + t, 0), len(line) - 1)]
    return out


def blur(view: np.ndarray, sigma: float, axes: list[int], radius: int) -> np.ndarray:
    for axis in axes:
        view = np.apply_along_axis(blur_line, axis, view, sigma, radius)
    return view


def sharpen(view: np.ndarray, first: float, amount: float, axes: list[int], radius: int) -> np.ndarray:
    blurred = blur(view, first, axes, radius)
    return blurred + amount * (blurred - blur(blurred, 0.5, axes, 2))


def window(view: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """The result in HU, the drawn window stretched to [-1350, 1000]."""
    return -1350 + 2350 * np.clip((view - lo) / (hi - lo), 0, 1)
