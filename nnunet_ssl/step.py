"""The training step, the same for every objective: views -> levels -> vectors at shared points -> loss.

What differs between objectives is in their recipes (how views are drawn, which loss) and in the network that a recipe
builds. A network here is anything that maps (a, b, coords_a, coords_b, valid) to (z_a, z_b, raw_a, raw_b): embeddings
(M, d) and pyramid vectors (M, w) of the M valid points, in the order of ``ViewPair.flat``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nnunet_ssl import losses
from nnunet_ssl.collectives import world_size
from nnunet_ssl.losses.vicreg import vicreg_terms
from nnunet_ssl.recipes import BaseRecipe
from nnunet_ssl.views import ViewPair

Terms = dict[str, Tensor]
Criterion = Callable[[Tensor, Tensor], tuple[Tensor, Terms]]


class Embeddings(NamedTuple):
    """Of the M valid points of a batch, in float32; row i of a and of b is the same point."""

    z_a: Tensor  # (M, d) after the projector
    z_b: Tensor
    raw_a: Tensor  # (M, w) pyramid vectors before it
    raw_b: Tensor

    def detach(self) -> Embeddings:
        """The same without a graph."""
        return Embeddings(*(x.detach() for x in self))


def embed(network: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], pair: ViewPair) -> Embeddings:
    """Embeddings of the valid points alone. Raises ValueError where the network's four answers differ in their rows."""
    out = Embeddings(*network(pair.a, pair.b, pair.coords_a, pair.coords_b, pair.valid))
    rows = {len(x) for x in out}
    if len(rows) != 1:
        raise ValueError(f"the network returned {sorted(rows)} rows; expected one number, that of the valid points")
    return Embeddings(*(x.float() for x in out))


def _info_nce(recipe: BaseRecipe) -> Criterion:
    def loss(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Terms]:
        if recipe.gather == "all":
            z_a, z_b = gather_with_gradient(z_a), gather_with_gradient(z_b)
        value = losses.info_nce(z_a, z_b, temperature=recipe.temperature, precision=recipe.loss_precision)
        return value, {"info_nce": value.detach()}

    return loss


def _vicreg(recipe: BaseRecipe) -> Criterion:
    weights = {"similarity": recipe.vicreg_sim, "variance": recipe.vicreg_var, "covariance": recipe.vicreg_cov}

    def loss(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Terms]:
        terms = vicreg_terms(z_a, z_b)
        value = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        return value, {name: term.detach() for name, term in terms.items()}

    return loss


def _barlow_twins(recipe: BaseRecipe) -> Criterion:
    def loss(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Terms]:
        value = losses.barlow_twins(z_a, z_b, lambda_off=recipe.lambda_off)
        return value, {"barlow_twins": value.detach()}

    return loss


CRITERIA: dict[str, Callable[[BaseRecipe], Criterion]] = {
    "info_nce": _info_nce,
    "vicreg": _vicreg,
    "barlow_twins": _barlow_twins,
}


def criterion(recipe: BaseRecipe) -> Criterion:
    """(z_a, z_b) (M, d) float -> (loss, its unweighted terms, detached), for the loss that the recipe names.

    Raises ValueError for an unknown loss.
    """
    if recipe.loss not in CRITERIA:
        raise ValueError(f"loss is {recipe.loss!r}; expected one of {', '.join(map(repr, CRITERIA))}")
    return CRITERIA[recipe.loss](recipe)


def step(
    network: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], pair: ViewPair, recipe: BaseRecipe
) -> tuple[Tensor, Terms, Embeddings]:
    """Loss of a batch (float32, scalar), its terms, and the embeddings of this process for watching.

    With several processes the loss is that of all points of all processes: the same number on each, and after the
    averaging of gradients over processes (DistributedDataParallel) the gradient of that number. info_nce gathers the
    embeddings for it (``gather = "none"``: each process compares its own alone), the others sum their moments.
    """
    found = embed(network, pair)
    with torch.autocast(pair.a.device.type, enabled=False):
        loss, terms = criterion(recipe)(found.z_a, found.z_b)
    return loss, terms, found.detach()


def gather_with_gradient(z: Tensor) -> Tensor:
    """(M, d) of this process -> rows of all processes in the order of their ranks; M may differ between them.

    The gradient of a row is the sum over all processes of what their losses send back to it. Without a process group,
    or in a group of one, z itself.
    """
    if world_size() == 1:
        return z
    rows: Tensor = _Gather.apply(z)  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        world, rank = dist.get_world_size(), dist.get_rank()
        counts = torch.zeros(world, dtype=torch.int64, device=z.device)
        counts[rank] = len(z)
        dist.all_reduce(counts)
        sizes: list[int] = counts.tolist()
        padded = z.new_zeros(max(sizes), *z.shape[1:])  # all_gather wants one shape
        padded[: len(z)] = z
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.start, ctx.length = sum(sizes[:rank]), len(z)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.length]
