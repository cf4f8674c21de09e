"""Barlow Twins: the cross-correlation of two views' embeddings is driven to the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ssl.collectives import all_reduce_sum

_EPS = 1e-5


def barlow_twins(z_a: Tensor, z_b: Tensor, lambda_off: float = 5e-3) -> Tensor:
    """sum_i (C_ii - 1)^2 + lambda_off * sum_{i != j} C_ij^2 (Zbontar et al., ICML 2021; over pixels in Pix2Rep).

    C = Z_a' Z_b / N, where Z are the embeddings standardised per dimension: less their mean, by the root of the biased
    variance plus 1e-5. Moments are those of the rows of all processes together.

    :param z_a: (N, d) embeddings of N points in one view, not normalised; N may differ between processes
    :param z_b: (N, d) embeddings of the same points, in the same order, in the other view
    :param lambda_off: weight of the off-diagonal entries; 5e-3 in both papers
    :return: scalar, float32 (float64 for float64 inputs)
    :raises ValueError: shapes differ, or fewer than two pairs in all
    """
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        raise ValueError(f"expected two (N, d), found {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    dtype = torch.promote_types(torch.promote_types(z_a.dtype, z_b.dtype), torch.float32)
    z_a, z_b = z_a.to(dtype), z_b.to(dtype)
    count = all_reduce_sum(z_a.new_tensor(float(len(z_a))))
    if count < 2:
        raise ValueError(f"a correlation needs at least 2 pairs, found {int(count)}")
    with torch.autocast(z_a.device.type, enabled=False):  # a correlation in half precision is noise
        correlation = all_reduce_sum(_standardise(z_a, count).T @ _standardise(z_b, count)) / count  # (d, d)
        diagonal = correlation.diagonal()
        off_diagonal = correlation - torch.diag(diagonal)
        return (diagonal - 1).square().sum() + lambda_off * off_diagonal.square().sum()


def _standardise(z: Tensor, count: Tensor) -> Tensor:
    centred = z - all_reduce_sum(z.sum(0)) / count
    variance = all_reduce_sum(centred.square().sum(0)) / count
    return centred * torch.rsqrt(variance + _EPS)
