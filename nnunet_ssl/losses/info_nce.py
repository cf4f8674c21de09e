"""InfoNCE on embeddings, exact and symmetric, without ever holding the matrix of similarities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Rows and columns of a tile. Two buffers of 4 MiB stay near the cache of a CPU; a GPU wants larger matrix products.
_TILE = {"cpu": 1024, "cuda": 2048}


def info_nce(z_a: Tensor, z_b: Tensor, temperature: float = 0.1, reduction: str = "mean") -> Tensor:
    """Symmetric InfoNCE in which every other embedding of both views is a negative (vox2vec, published code).

    For the pair i, with s(u, v) = <u, v> / temperature and all 2N embeddings e of both views::

        l_i = ( -s(a_i, b_i) + log sum over e != a_i of exp s(a_i, e)
                -s(b_i, a_i) + log sum over e != b_i of exp s(b_i, e) ) / 2

    Only an embedding's similarity to itself is left out: the positive stays in the denominator. Memory is O(N d): the
    2N x 2N similarities are visited in tiles of their upper triangle, once for the logarithms of the sums, and once
    again, recomputed, for the gradient. Everything is computed in float32 (float64 for float64 inputs), under
    autocast too.

    :param z_a: (N, d) embeddings of N points in one view, taken as they are: normalise them before
    :param z_b: (N, d) embeddings of the same points, in the same order, in the other view
    :param temperature: positive; 0.1 in vox2vec, 0.53 in Pix2Rep
    :param reduction: "mean" over pairs, or "none"
    :return: scalar, or (N,) for "none"; float32 (float64 for float64 inputs)
    :raises ValueError: shapes differ, no pairs, temperature not positive, unknown reduction
    """
    if z_a.ndim != 2 or z_a.shape != z_b.shape or len(z_a) == 0:
        raise ValueError(f"expected two (N, d) with N >= 1, found {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'none'")
    dtype = torch.promote_types(torch.promote_types(z_a.dtype, z_b.dtype), torch.float32)
    joint = torch.cat([z_a.to(dtype), z_b.to(dtype)])  # (2N, d)
    tile = _TILE.get(joint.device.type, 1024)
    losses: Tensor = _InfoNCE.apply(joint, float(temperature), tile)  # type: ignore[no-untyped-call]
    return losses.mean().to(dtype) if reduction == "mean" else losses.to(dtype)


class _Tiles:
    """Upper-triangle tiles of joint @ joint.T / temperature; every tile is made in the same buffer."""

    def __init__(self, joint: Tensor, temperature: float, size: int) -> None:
        self.joint, self.scale, self.size = joint, 1 / temperature, min(size, len(joint))
        self.buffer = joint.new_empty(self.size**2)
        self.scratch_buffer = joint.new_empty(self.size**2)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Rows, columns, similarities (their diagonal -inf), and a scratch tile of the same shape."""
        for start in range(0, len(self.joint), self.size):
            rows = slice(start, start + self.size)
            for column in range(start, len(self.joint), self.size):
                columns = slice(column, column + self.size)
                left, right = self.joint[rows], self.joint[columns]
                tile = self.buffer[: len(left) * len(right)].view(len(left), len(right))
                scratch = self.scratch_buffer[: tile.numel()].view(tile.shape)
                # in place, which autocast leaves in its precision
                tile.addmm_(left, right.T, beta=0, alpha=self.scale)
                if column == start:
                    # a matrix product may round s(u, v) and s(v, u) differently, and a positive must cancel exactly
                    scratch.copy_(tile.triu_(1).T)
                    tile.add_(scratch).fill_diagonal_(-torch.inf)
                yield rows, columns, tile, scratch


def _positives(tile: Tensor, rows: slice, columns: slice, pairs: int) -> tuple[Tensor, slice] | None:
    """The tile's similarities between a_i and b_i, a view of it, and the i; None where it has none."""
    offset = rows.start + pairs - columns.start
    first = rows.start + max(0, -offset)
    if first >= pairs or not -tile.shape[0] < offset < tile.shape[1]:
        return None
    diagonal = tile.diagonal(offset)
    return diagonal, slice(first, first + len(diagonal))


def _add_exponentials(maximum: Tensor, total: Tensor, tile: Tensor, scratch: Tensor, dim: int) -> None:
    """Running maximum and sum of exp(similarity - maximum), in place, over one more tile."""
    new = torch.maximum(maximum, tile.amax(dim))
    torch.sub(tile, new.unsqueeze(dim), out=scratch).exp_()
    total.mul_(torch.exp((maximum - new).to(total.dtype))).add_(scratch.sum(dim))
    maximum.copy_(new)


class _InfoNCE(torch.autograd.Function):
    """(2N, d) -> losses of the N pairs. Its gradient keeps the embeddings and two numbers a row."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, temperature: float, size: int) -> Tensor:
        count, pairs = len(joint), len(joint) // 2
        # sums over tiles and the last subtraction in float64: they cost nothing, and a loss near 0 keeps its digits
        wide = torch.float32 if joint.device.type == "mps" else torch.float64
        maximum = joint.new_full((count,), torch.finfo(joint.dtype).min)
        total = joint.new_zeros(count, dtype=wide)
        positive = joint.new_zeros(pairs)
        for rows, columns, tile, scratch in _Tiles(joint, temperature, size):
            _add_exponentials(maximum[rows], total[rows], tile, scratch, 1)
            if rows != columns:
                _add_exponentials(maximum[columns], total[columns], tile, scratch, 0)
            # from the tile, not computed anew: rounding then cancels against the denominator's
            found = _positives(tile, rows, columns, pairs)
            if found:
                positive[found[1]] = found[0]
        ctx.save_for_backward(joint, maximum, total)
        ctx.temperature, ctx.size = temperature, size
        gap = maximum.to(wide).view(2, pairs) - positive.to(wide)
        return (total.log().view(2, pairs) + gap).mean(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        joint, maximum, total = ctx.saved_tensors
        pairs = len(joint) // 2
        weight = (grad / 2).repeat(2)  # d loss / d row's own term, (2N,)
        factor = (weight / total).to(joint.dtype)
        gradient = torch.zeros_like(joint)
        tiles = _Tiles(joint, ctx.temperature, ctx.size)
        for rows, columns, tile, scratch in tiles:
            # softmax of row i at j and of row j at i: the derivative by the one similarity that both contain
            torch.sub(tile, maximum[rows, None], out=scratch).exp_().mul_(factor[rows, None])
            tile.sub_(maximum[columns]).exp_().mul_(factor[columns]).add_(scratch)
            found = _positives(tile, rows, columns, pairs)
            if found:
                both_terms = (2 * weight[:pairs][found[1]]).to(tile.dtype)
                found[0].sub_(both_terms)
                if rows == columns:
                    tile.diagonal(-pairs).sub_(both_terms)
            gradient[rows].addmm_(tile, joint[columns], alpha=tiles.scale)
            if rows != columns:
                gradient[columns].addmm_(tile.T, joint[rows], alpha=tiles.scale)
        return gradient, None, None
