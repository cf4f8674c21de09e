"""InfoNCE on embeddings, exact and symmetric, without ever holding the matrix of similarities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl import fused
from nnunet_ssl.tiles import Tiles

# Rows and columns of a tile. Buffers of 1 MiB stay in the cache of a CPU; a GPU wants larger matrix products.
_TILE = {"cpu": 512, "cuda": 2048}
PRECISIONS = ("float32", "reduced", "fused")
_PLAIN = 64.0
"""Exponents of two up to which sums of their powers, and the quotients of these, are ordinary float32 numbers."""
_REDUCED = 16.0
"""Exponents of two up to which products of short numbers do (unit vectors: a temperature of 0.09)."""


def info_nce(
    z_a: Tensor, z_b: Tensor, temperature: float = 0.1, reduction: str = "mean", precision: str = "float32"
) -> Tensor:
    """Symmetric InfoNCE in which every other embedding of both views is a negative (vox2vec, published code).

    For the pair i, with s(u, v) = <u, v> / temperature and all 2N embeddings e of both views::

        l_i = ( -s(a_i, b_i) + log sum over e != a_i of exp s(a_i, e)
                -s(b_i, a_i) + log sum over e != b_i of exp s(b_i, e) ) / 2

    Only an embedding's similarity to itself is left out: the positive stays in the denominator. Memory is O(N d): the
    2N x 2N similarities are visited in tiles of their upper triangle, once for the sums, and once again, recomputed,
    for the gradient: 16 N^2 d operations, less than the 18 N^2 d of the formula written out with its similarities kept.
    Everything is computed in float32 (float64 for float64 inputs), under autocast too.

    :param z_a: (N, d) embeddings of N points in one view, taken as they are: normalise them before
    :param z_b: (N, d) embeddings of the same points, in the same order, in the other view
    :param temperature: positive; 0.1 in vox2vec, 0.53 in Pix2Rep
    :param reduction: "mean" over pairs, or "none"
    :param precision: "float32", or "reduced": the products of float32 embeddings from bfloat16 numbers, the gradient
        then being off by less than 1 % of its length; or "fused": from float16 numbers, in two kernels, where
        ``fused.usable``, elsewhere as "reduced". What could be off by more (unit vectors at a temperature below
        0.09, longer ones below more) is computed as with "float32"
    :return: scalar, or (N,) for "none"; float32 (float64 for float64 inputs)
    :raises ValueError: shapes differ, no pairs, temperature not positive, unknown reduction or precision
    """
    if z_a.ndim != 2 or z_a.shape != z_b.shape or len(z_a) == 0:
        raise ValueError(f"expected two (N, d) with N >= 1, found {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'none'")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected {' or '.join(map(repr, PRECISIONS))}")
    dtype = torch.promote_types(torch.promote_types(z_a.dtype, z_b.dtype), torch.float32)
    joint = torch.cat([z_a.to(dtype), z_b.to(dtype)])  # (2N, d)
    if dtype != torch.float32:
        precision = "float32"  # at least
    losses: Tensor = _InfoNCE.apply(joint, float(temperature), precision)  # type: ignore[no-untyped-call]
    return losses.mean().to(dtype) if reduction == "mean" else losses.to(dtype)


def _sum_plainly(tiles: Tiles, rest: Tensor) -> None:
    """Add to rest (2N,) every row's powers, own and partner's left out."""
    for rows, columns, tile, _ in tiles:
        tile.exp2_()
        rest[rows] += tile.sum(1)
        if rows != columns:
            rest[columns] += tile.sum(0)


def _sum_shifted(tiles: Tiles, rest: Tensor, shift: Tensor) -> None:
    """The same for exponents of any size: rest is in units of 2^shift; shift (2N,) is raised to the row's largest."""

    def add(shift: Tensor, rest: Tensor, tile: Tensor, scratch: Tensor, dim: int) -> None:
        new = torch.maximum(shift, tile.amax(dim))
        torch.sub(tile, new.unsqueeze(dim), out=scratch).exp2_()
        rest.mul_(torch.exp2((shift - new).to(rest.dtype))).add_(scratch.sum(dim))
        shift.copy_(new)

    for rows, columns, tile, scratch in tiles:
        add(shift[rows], rest[rows], tile, scratch, 1)
        if rows != columns:
            add(shift[columns], rest[columns], tile, scratch, 0)


def _weighted(tiles: Tiles, factor: Tensor, shift: Tensor | None) -> Tensor:
    """(2N, d): every row's sum of the other vectors, own and partner left out, by the softmaxes that contain both."""
    gradient = torch.zeros_like(tiles.joint)
    for rows, columns, tile, scratch in tiles:  # 0 where the exponent is -inf
        # softmax of row i at j and of row j at i: the derivative by the one similarity that both contain
        if shift is None:
            torch.add(factor[rows, None], factor[columns], out=scratch)
            tile.exp2_().mul_(scratch)
        else:
            torch.sub(tile, shift[rows, None], out=scratch).exp2_().mul_(factor[rows, None])
            tile.sub_(shift[columns]).exp2_().mul_(factor[columns]).add_(scratch)
        tiles.add_product(gradient, rows, columns, tile)
    return gradient


class _InfoNCE(torch.autograd.Function):
    """(2N, d) -> losses of the N pairs. Its gradient keeps the embeddings and a few numbers a row."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, temperature: float, precision: str) -> Tensor:
        size = _TILE.get(joint.device.type, 1024)
        tiles = Tiles(joint, temperature, size)
        largest = tiles.largest()
        plain = largest <= _PLAIN  # not so for NaN
        ctx.half = precision != "float32" and largest <= _REDUCED
        ctx.fused = precision == "fused" and ctx.half and fused.usable(joint)
        if ctx.half and not ctx.fused:
            tiles = Tiles(joint, temperature, size, half=True)
        # what is a number a row, in float64: it costs nothing, and a loss near 0 keeps its digits
        wide = torch.float32 if joint.device.type == "mps" else torch.float64
        partner = tiles.partners(wide).repeat(2)
        rest = joint.new_zeros(len(joint), dtype=wide)
        shift = None if plain else partner.to(joint.dtype, copy=True)
        if ctx.fused:
            rest = fused.sums(joint, temperature).to(wide)
        elif shift is None:
            _sum_plainly(tiles, rest)
        else:
            _sum_shifted(tiles, rest, shift)
            partner = partner - shift
        # A row's denominator is rest + 2^partner. The partner is not summed with the others: what the loss and its
        # gradient want is how much of the denominator it is not, and near 0 that would be lost in a difference.
        odds = (rest.log2() - partner) * math.log(2)
        total = torch.logaddexp2(rest.log2(), partner)
        ctx.save_for_backward(joint, shift, total, torch.sigmoid(odds))
        ctx.temperature, ctx.size = temperature, size
        return torch.logaddexp(odds, torch.zeros_like(odds)).view(2, -1).mean(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        joint, shift, total, missing = ctx.saved_tensors
        weight = (grad / 2).repeat(2)  # d loss / d row's own term, (2N,)
        pull = -(weight * missing).view(2, -1).sum(0).to(joint.dtype)  # by the similarity of a pair, (N,)
        factor = (weight * torch.exp2(-total)).to(joint.dtype)
        if ctx.fused:
            gradient = fused.gradients(joint, ctx.temperature, factor)
        else:
            gradient = _weighted(Tiles(joint, ctx.temperature, ctx.size, ctx.half), factor, shift)
        # pairs by themselves: among thousands of small weights in one product their large one would cost digits
        gradient.view(2, len(pull), -1).addcmul_(pull[:, None], joint.view(2, len(pull), -1).flip(0))
        return gradient.div_(ctx.temperature), None, None
