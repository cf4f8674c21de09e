"""VICReg: embeddings of a pair agree, every dimension varies, no two dimensions say the same."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ssl.collectives import all_reduce_sum


def vicreg(
    z_a: Tensor, z_b: Tensor, sim: float = 25.0, var: float = 25.0, cov: float = 1.0, eps: float = 1e-4
) -> Tensor:
    """Weighted sum of ``vicreg_terms`` (Bardes et al., ICLR 2022; weights as there and in vox2vec's published code).

    :param z_a: (N, d) embeddings of N points in one view, not normalised
    :param z_b: (N, d) embeddings of the same points, in the same order, in the other view
    :param sim: weight of the similarity term
    :param var: weight of the variance term
    :param cov: weight of the covariance term
    :param eps: added to variances under the root
    :return: scalar, float32 (float64 for float64 inputs)
    :raises ValueError: shapes differ, or fewer than two pairs in all
    """
    terms = vicreg_terms(z_a, z_b, eps)
    return sim * terms["similarity"] + var * terms["variance"] + cov * terms["covariance"]


def vicreg_terms(z_a: Tensor, z_b: Tensor, eps: float = 1e-4) -> dict[str, Tensor]:
    """The three terms without their weights; moments are unbiased, and those of the rows of all processes together.

    similarity: mean squared difference. variance: max(0, 1 - sqrt(var + eps)), mean over dimensions. covariance:
    squared off-diagonal covariances, summed, by d. The last two are averaged over the views, as in vox2vec's
    published code; the VICReg paper adds up the two views' covariance terms instead (cov=2 here).

    :param z_a: (N, d); N may differ between processes
    :param z_b: (N, d)
    :param eps: added to variances under the root
    :return: scalars under "similarity", "variance", "covariance"
    :raises ValueError: shapes differ, or fewer than two pairs in all
    """
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        raise ValueError(f"expected two (N, d), found {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    dtype = torch.promote_types(torch.promote_types(z_a.dtype, z_b.dtype), torch.float32)
    z_a, z_b = z_a.to(dtype), z_b.to(dtype)
    count = all_reduce_sum(z_a.new_tensor(float(len(z_a))))
    if count < 2:
        raise ValueError(f"a variance needs at least 2 pairs, found {int(count)}")
    with torch.autocast(z_a.device.type, enabled=False):  # a covariance in half precision is noise
        similarity = all_reduce_sum((z_a - z_b).square().sum()) / (count * z_a.shape[1])
        spreads = [_variance_and_covariance(z, count, eps) for z in (z_a, z_b)]
    variance, covariance = (torch.stack(pair).mean() for pair in zip(*spreads, strict=True))
    return {"similarity": similarity, "variance": variance, "covariance": covariance}


def _variance_and_covariance(z: Tensor, count: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    centred = z - all_reduce_sum(z.sum(0)) / count
    covariance = all_reduce_sum(centred.T @ centred) / (count - 1)  # (d, d)
    variances = covariance.diagonal()
    hinge = torch.relu(1 - torch.sqrt(variances + eps)).mean()
    off_diagonal = covariance - torch.diag(variances)
    return hinge, off_diagonal.square().sum() / z.shape[1]
