"""All similarities of a set of vectors, tile by tile, and the fastest matrix product that torch has for a tile.

Letters: n vectors (rows) of width d; the second half of the rows are the partners of the first, row i of row i + n / 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

# Where torch hands float32 products to MKL, an AMD processor runs at half of what its vectors can do. torch's compiler
# reaches oneDNN's own kernels by this operator, and so can we; a build without it is served by mm.
_ONEDNN: Any = None
if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call,unused-ignore]
    _ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def outer_product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right.T: (n, k) and (m, k) of one floating type -> (n, m) of that type, without a gradient.

    Sums are kept in float32 at least. Autocast changes nothing.

    :param out: (n, m) where the result may be written; it may also be a new tensor
    """
    if _ONEDNN is not None and left.device.type == "cpu" and left.dtype == torch.float32:
        return cast(Tensor, _ONEDNN(left, right, None, "none", [], ""))
    if out is None:
        out = left.new_empty(len(left), len(right))
    return torch.mm(left, right.T, out=out)  # autocast leaves products that have an `out` in their type


class Tiles:
    """Upper-triangle tiles of <e_i, e_j> / temperature, in powers of two: exp of a similarity is ``exp2`` of ours.

    exp2 takes a quarter of the time of exp, and the factor log2(e) is part of the product.
    """

    def __init__(self, joint: Tensor, temperature: float, size: int, half: bool = False) -> None:
        """
        :param joint: (n, d) float32 or float64, n even
        :param size: rows and columns of a tile
        :param half: products of bfloat16 numbers
        """
        self.joint, self.size, self.pairs = joint, min(size, len(joint)), len(joint) // 2
        self.scale = math.log2(math.e) / temperature
        self.right = joint.bfloat16() if half else joint
        # bfloat16 numbers are rounded anyway; float32 ones would lose a digit to the factor
        self.left = (joint * self.scale).bfloat16() if half else joint
        self._product = self.right.new_empty(self.size**2)
        self._wide = joint.new_empty(self.size**2) if half else None
        self._scratch = joint.new_empty(self.size**2)

    def largest(self) -> float:
        """What no exponent exceeds in size: the longest vector with itself. NaN where a vector has one."""
        return self.scale * float((self.joint * self.joint).sum(1).max())

    def partners(self, dtype: torch.dtype) -> Tensor:
        """(n / 2,) exponents of the pairs, computed in `dtype`."""
        parts = []
        for start in range(0, self.pairs, self.size):
            rows = slice(start, min(start + self.size, self.pairs))
            other = slice(rows.start + self.pairs, rows.stop + self.pairs)
            parts.append((self.joint[rows].to(dtype) * self.joint[other].to(dtype)).sum(1))
        return torch.cat(parts) * self.scale

    def _pairs(self, tile: Tensor, rows: slice, columns: slice) -> list[Tensor]:
        """The tile's entries of pairs, as views of its diagonals."""
        offset = rows.start + self.pairs - columns.start
        diagonals = [offset, -self.pairs] if rows == columns else [offset]
        return [tile.diagonal(k) for k in diagonals if -tile.shape[0] < k < tile.shape[1]]

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Rows, columns, exponents, and a scratch tile of the same shape; buffers are used again.

        Exponents of a vector with itself, and of pairs, are -inf.
        """
        count = len(self.joint)
        for start in range(0, count, self.size):
            rows = slice(start, min(start + self.size, count))
            for column in range(start, count, self.size):
                columns = slice(column, min(column + self.size, count))
                tile, scratch = self._tile(rows, columns)
                if start == column:
                    tile.fill_diagonal_(-torch.inf)
                for diagonal in self._pairs(tile, rows, columns):
                    diagonal.fill_(-torch.inf)
                yield rows, columns, tile, scratch

    def _tile(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        number = shape[0] * shape[1]
        tile = outer_product(self.left[rows], self.right[columns], self._product[:number].view(shape))
        tile = tile.mul_(self.scale) if self._wide is None else self._wide[:number].view(shape).copy_(tile)
        return tile, self._scratch[:number].view(shape)

    def add_product(self, total: Tensor, rows: slice, columns: slice, weights: Tensor) -> None:
        """total (n, d) += a symmetric matrix of which `weights` is a tile of the upper triangle, times the vectors."""
        if self._wide is not None:
            weights = weights.to(self.right.dtype)
        total[rows].add_(outer_product(weights, self.right[columns].T))
        if rows != columns:
            total[columns].add_(outer_product(weights.T, self.right[rows].T))
