"""Principal components of voxel vectors, and their first three as colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Components:
    """A fitted basis. mean, scale (C,); directions (k, C); low, high (k,): percentiles that become black and white."""

    mean: Tensor
    scale: Tensor
    directions: Tensor
    low: Tensor
    high: Tensor

    def project(self, vectors: Tensor) -> Tensor:
        """(n, C) -> (n, k) coordinates in the basis."""
        return ((vectors.float() - self.mean) * self.scale) @ self.directions.T

    def colours(self, vectors: Tensor) -> Tensor:
        """(n, C) -> (n, k) in [0, 1], percentile-scaled: what an RGB picture shows for k = 3."""
        return ((self.project(vectors) - self.low) / (self.high - self.low).clamp_min(1e-8)).clamp(0, 1)


def fit_components(
    vectors: Tensor,
    k: int = 3,
    percentiles: tuple[float, float] = (1.0, 99.0),
    groups: Sequence[int] | None = None,
) -> Components:
    """Fit `k` components to vectors (n, C), n > 1, every channel standardised first.

    Standardised, because otherwise the level with the largest activations decides alone. groups: widths of parts of the
    vector (its levels) that are to weigh the same, whatever their number of channels. Directions have a fixed sign
    (their largest entry is positive), so that colours do not flip between runs. Components that the data do not have
    (k > rank) are zero. Raises ValueError for vectors that are not finite or fewer than two.
    """
    if len(vectors) < 2 or not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"expected at least two finite vectors, found {len(vectors)}")
    x = vectors.double()
    mean, std = x.mean(0), x.std(0)
    scale = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), 1 / std, torch.zeros_like(std))
    if groups is not None:
        scale = scale / torch.cat([torch.full((width,), float(width)).double().sqrt() for width in groups])
    x = (x - mean) * scale
    variances, basis = torch.linalg.eigh(x.T @ x / (len(x) - 1))  # increasing
    directions = torch.zeros(k, x.shape[1], dtype=torch.float64)
    found = min(k, x.shape[1])
    directions[:found] = basis.flip(1).T[:found]
    directions[:found][variances.flip(0)[:found] < 1e-9] = 0
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    # torch.quantile refuses more than 2 ** 24 values
    limits = torch.stack([torch.quantile((x @ d)[:: max(1, len(x) // 2**20)], torch.tensor(percentiles).double() / 100)
                          for d in directions])  # fmt: skip
    return Components(mean.float(), scale.float(), directions.float(), limits[:, 0].float(), limits[:, 1].float())
