"""InfoNCE's sums and gradient in two kernels, for devices that run Triton's: ``info_nce(..., precision="fused")``.

Nothing of what a similarity needs goes through the device's memory, and a loss is two launches instead of about a
thousand. ``tiles`` computes the same and is what the kernels are tested against.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WIDEST = 256
"""Vectors up to this width: a block of them has to stay in a multiprocessor's own memory."""


class Launch(NamedTuple):
    """How a kernel is started: rows a program owns, columns a step of its loop, warps, steps loaded ahead."""

    rows: int
    columns: int
    warps: int
    stages: int


# Compiled for compute capability 8.0 and 9.0 neither spills a register: tests/test_fused.py.
NARROW, WIDE = Launch(128, 64, 8, 3), Launch(64, 32, 8, 3)


@cache
def _triton() -> bool:
    try:
        return int(metadata.version("triton").partition(".")[0]) >= 3  # torch 2.3 on
    except metadata.PackageNotFoundError:
        return False


def usable(vectors: Tensor) -> bool:
    """Whether the kernels run on (n, d) float32 vectors where they are: CUDA, compute capability 8.0, d <= 256."""
    if vectors.device.type != "cuda" or vectors.dtype != torch.float32 or vectors.shape[1] > WIDEST or not _triton():
        return False
    return torch.cuda.get_device_capability(vectors.device) >= (8, 0)


def _prepared(joint: Tensor, temperature: float) -> tuple[Tensor, float]:
    """(n, w) float16 vectors whose products are similarities in powers of two, w a power of two; what they were
    multiplied by."""
    scale = math.sqrt(math.log2(math.e) / temperature)
    width = max(16, 1 << (joint.shape[1] - 1).bit_length())
    # float16 has an eighth of bfloat16's rounding error; the longest vector that is let in here has a length of 4
    return F.pad(joint * scale, (0, width - joint.shape[1])).half(), scale


def _launch(kernel: Any, vectors: Tensor, *others: Tensor) -> None:
    count, width = vectors.shape
    how = NARROW if width <= 128 else WIDE
    with torch.cuda.device_of(vectors):  # type: ignore[no-untyped-call]
        kernel[(-(-count // how.rows),)](
            vectors, *others, count, count // 2, WIDTH=width, ROWS=how.rows, COLUMNS=how.columns,
            num_warps=how.warps, num_stages=how.stages,
        )  # fmt: skip


def sums(joint: Tensor, temperature: float) -> Tensor:
    """(n, d) float32, row i the partner of row i + n / 2 -> (n,) float32: every row's sum of exp(<e_i, e_j> /
    temperature) over all j but itself and its partner, from products of float16 numbers."""
    from nnunet_ssl import kernels

    vectors, _ = _prepared(joint, temperature)
    rest = joint.new_empty(len(joint))
    _launch(kernels.sums, vectors, rest)
    return rest


def gradients(joint: Tensor, temperature: float, factor: Tensor) -> Tensor:
    """(n, d) float32 and (n,) -> (n, d): sums of exp(<e_i, e_j> / temperature) (factor_i + factor_j) e_j over j.

    The same j as in ``sums``.
    """
    from nnunet_ssl import kernels

    vectors, scale = _prepared(joint, temperature)
    largest = factor.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    total = torch.empty_like(vectors, dtype=torch.float32)
    _launch(kernels.gradients, vectors, factor / largest, total)
    return total[:, : joint.shape[1]] * (4 * largest / scale)  # 4: the kernel's exponents are less by two
