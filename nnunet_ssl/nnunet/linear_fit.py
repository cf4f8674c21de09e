"""A linear classifier fitted to frozen pyramid features in seconds: the start of a head, and the online probe.

Few voxels decide such a fit, and how they are drawn decides whether it is of any use: in a CT a small organ holds less
than 0.1 % of the voxels. `collect_voxels` draws stratified (every class, background near the classes, background
elsewhere) and remembers how many voxels of the volumes each drawn one stands for; `fit_linear` turns these numbers into
weights between a balanced fit (floods the background) and the true prior (misses small organs).
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.windows import LevelsOf, Window, lift, read_window, windows
from nnunet_ssl.pyramid import gather

IGNORED = -1


@dataclass(frozen=True)
class VoxelSample:
    """Drawn voxels. features (n, C) float32; labels (n,) int64; weights (n,) float32, the number of voxels of the
    volumes that each drawn voxel stands for (their sum over a class is the class's number of voxels)."""

    features: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


def strata(labels: np.ndarray, num_classes: int, near: int | Sequence[int], ignore_label: int | None) -> np.ndarray:
    """Map of what to draw apart: 0 background, 1..K-1 the classes, K background within `near` voxels of a class.

    labels (*S) int; negative labels (nnU-Net's "outside the nonzero region") are background. IGNORED where
    `ignore_label` is, or where a label is not below num_classes.
    """
    result = np.where(labels < 0, 0, labels).astype(np.int16)
    reach = [near] * labels.ndim if isinstance(near, int) else list(near)
    close = ndimage.maximum_filter((result > 0).view(np.uint8), size=[2 * r + 1 for r in reach]) > 0
    result[close & (result == 0)] = num_classes
    unknown = labels >= num_classes
    if ignore_label is not None:
        unknown |= labels == ignore_label
    result[unknown] = IGNORED
    return result


def choose_windows(counts: np.ndarray, max_windows: int | None, rng: np.random.Generator) -> np.ndarray:
    """Which windows to visit, (W', ) indices. counts (W, strata): drawable voxels of each stratum in each window.

    Strata take turns in choosing a random window that holds them, so that the rarest class is seen first of all.
    """
    useful = np.flatnonzero(counts.sum(1))
    if max_windows is None or len(useful) <= max_windows:
        return useful
    chosen: list[int] = []
    left = counts.copy()
    while len(chosen) < max_windows:
        for stratum in np.argsort(np.where(counts.sum(0) > 0, counts.sum(0), np.iinfo(np.int64).max)):
            holders = np.flatnonzero(left[:, stratum])
            if len(holders) and len(chosen) < max_windows:
                chosen.append(int(rng.choice(holders)))
                left[chosen[-1]] = 0
    return np.sort(np.asarray(chosen))


def draw_in_windows(strata_map: np.ndarray, cells: Sequence[Window], quota: Sequence[int], max_windows: int | None,
                    rng: np.random.Generator) -> tuple[list[tuple[Window, np.ndarray, np.ndarray]], np.ndarray]:
    """Draw up to quota[s] voxels of every stratum s, uniformly over the owned voxels of the visited windows.

    Returns [(window, coords (n, D) in the window's grid, stratum (n,))] and the number drawn of each stratum.
    """
    num = len(quota)
    counts = np.stack([np.bincount(strata_map[cell.core_slices()].ravel() + 1, minlength=num + 1)[1:]
                       for cell in cells]).astype(np.int64)
    visited = choose_windows(counts, max_windows, rng)
    share = np.stack([rng.multivariate_hypergeometric(counts[visited, s], min(int(quota[s]), counts[visited, s].sum()),
                                                      method="marginals") for s in range(num)], axis=1)
    drawn = []
    for index, wanted in zip(visited, share, strict=True):
        core = strata_map[cells[index].core_slices()]
        picked = [rng.choice(np.flatnonzero(core.ravel() == s), int(n), replace=False)
                  for s, n in enumerate(wanted) if n]
        if picked:
            flat = np.concatenate(picked)
            first = [place.start for place in cells[index].local_slices()]
            coords = np.stack(np.unravel_index(flat, core.shape), axis=1) + first
            drawn.append((cells[index], coords, core.ravel()[flat]))
    return drawn, share.sum(0)


@torch.no_grad()
def collect_voxels(levels_of: LevelsOf, strides: Sequence[Sequence[int]], cases: Iterable[tuple[Any, Any]],
                   patch_size: Sequence[int], num_classes: int, rng: np.random.Generator, *,
                   num_cases: int | None = None, per_class: int = 4000, background: int = 40000,
                   near: int | Sequence[int] = 4, step: float = 0.5, max_windows: int | None = 64,
                   ignore_label: int | None = None, reading: str = "nearest",
                   device: torch.device | str = "cpu") -> VoxelSample:
    """Draw labelled voxels of some cases and read their pyramid vectors.

    levels_of: (1, C, *patch) on `device` -> levels finest first (the frozen network, in eval mode); strides:
    cumulative, one a level. cases: pairs of a preprocessed image (C, z, y, x) and its labels (z, y, x) or
    (1, z, y, x), arrays or blosc2 arrays; num_cases where `cases` has no length. per_class, background: most voxels
    over all cases, shared evenly; half of the background lies within `near` voxels of a class. max_windows: most
    forward passes a case.
    Raises UserError where no labelled voxel was found.
    """
    levels_of, strides, patch = lift(levels_of, strides, patch_size)
    total = num_cases if num_cases is not None else len(cases)  # type: ignore[arg-type]
    quota = [-(-background // (2 * total))] + [-(-per_class // total)] * (num_classes - 1)
    quota.append(-(-background // (2 * total)))
    features, labels, weights = [], [], []
    for image, segmentation in cases:
        segmentation = np.asarray(segmentation[...])
        strata_map = strata(segmentation.reshape(segmentation.shape[-3:]), num_classes, near, ignore_label)
        offsets = [int(rng.integers(0, max(1, int(p * step)))) for p in patch]
        drawn, numbers = draw_in_windows(strata_map, windows(strata_map.shape, patch, step, offsets), quota,
                                         max_windows, rng)
        population = np.bincount(strata_map.ravel() + 1, minlength=num_classes + 2)[1:]
        for window, coords, stratum in drawn:
            levels = levels_of(read_window(image, window, patch)[None].to(device))
            points = torch.from_numpy(coords).to(device=device, dtype=torch.float32)[None]  # (1, n, D)
            features.append(gather([level.float() for level in levels], strides, points, reading)[0].cpu())
            labels.append(np.where(stratum == num_classes, 0, stratum))
            weights.append(population[stratum] / numbers[stratum])
    if not any(bool(part.any()) for part in labels):
        raise UserError(f"no voxel of the classes 1 to {num_classes - 1} was found in the cases given; a linear fit "
                        "needs at least one case that shows a class. Check the labels of these cases")
    return VoxelSample(torch.cat(features), torch.from_numpy(np.concatenate(labels).astype(np.int64)),
                       torch.from_numpy(np.concatenate(weights).astype(np.float32)))


def class_weights(labels: torch.Tensor, weights: torch.Tensor, num_classes: int, balance: float) -> torch.Tensor:
    """Weights (n,) float64 summing to 1 under which class c weighs in proportion to N_c ** balance.

    N_c is the sum of the class's given weights, its number of voxels in the volumes: balance 1 keeps the true prior,
    0 gives every class the same weight. Within a class the given weights keep their proportions.
    """
    weights = weights.double()
    counts = torch.zeros(num_classes, dtype=torch.float64, device=labels.device).index_add_(0, labels, weights)
    result = weights * counts.clamp_min(1e-12)[labels] ** (balance - 1.0)
    return result / result.sum()


def fit_linear(features: torch.Tensor, labels: torch.Tensor, num_classes: int, weights: torch.Tensor | None = None, *,
               balance: float = 0.75, l2: float = 1e-4, max_iter: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression by LBFGS -> W (K, C) float32, b (K) float32, for features as they are.

    features (n, C); labels (n,) int64 in 0..K-1, or (n, K) of 0 and 1 for regions (then K independent sigmoids, each
    weighted as a problem of two classes); weights (n,), the voxels that each row stands for (default 1). Minimises the
    weighted mean cross-entropy + l2 / 2 |W|^2 with W acting on standardised channels; the standardisation is folded in.
    balance: class c weighs N_c ** balance, see `class_weights`. The defaults of balance and l2 were the best of a grid
    on held-out training cases of a CT data set with five small organs (Dice .18; balance 1 gave .10).
    Raises ValueError for features that are not finite.
    """
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold values that are not finite")
    features = features.float()
    weights = torch.ones(len(features), device=features.device) if weights is None else weights.to(features.device)
    if labels.dim() == 2:
        columns = [class_weights(column, weights, 2, balance) for column in labels.long().T]
        rows = torch.stack(columns, 1)  # (n, K)
    else:
        rows = class_weights(labels, weights, num_classes, balance)
    mean = features.mean(0, dtype=torch.float64)
    std = features.var(0, unbiased=False).double().sqrt()
    # A channel that does not vary says nothing; dividing by its rounding noise would make it speak.
    scale = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), 1 / std, torch.zeros_like(std))
    x = (features - mean.float()) * scale.float()
    weight, bias = _minimise(x, labels, rows, num_classes, l2, max_iter)
    folded = weight * scale
    return folded.float(), (bias - folded @ mean).float()


def _minimise(x: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, num_classes: int, l2: float,
              max_iter: int) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """W (K, C) and b (K), float64, for standardised x (n, C); rows: weights (n,), or (n, K) of regions."""
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iter, history_size=20, tolerance_grad=1e-9,
                                  tolerance_change=1e-12, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = functional.linear(x, weight.float()).double() + bias  # (n, K); products in float32, sums in float64
        if labels.dim() == 2:
            rowwise = functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
        else:
            rowwise = functional.cross_entropy(logits, labels, reduction="none")
        loss = (rows * rowwise).sum() + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


@torch.no_grad()
def to_head(weight: torch.Tensor, bias: torch.Tensor, head: torch.nn.Module) -> None:
    """Copy W (K, C), b (K) into a `heads.LinearHead`: a 1^D conv a level, finest first; the finest one has the bias.

    Raises ValueError where the head's classes or channels are others.
    """
    layers: Any = head.seg_layers
    channels = [int(layer.weight.shape[1]) for layer in layers]
    if tuple(weight.shape) != (int(layers[0].weight.shape[0]), sum(channels)):
        raise ValueError(f"the fit is {tuple(weight.shape)}; the head expects ({layers[0].weight.shape[0]}, "
                         f"{sum(channels)})")
    for layer, part in zip(layers, weight.split(channels, dim=1), strict=True):
        layer.weight.copy_(part.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.zero_()
    layers[0].bias.copy_(bias)
