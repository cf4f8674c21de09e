"""Rows 3 and 4: InfoNCE forward and backward, in float32 and with reduced-precision products; errors of the gradient.

    python benchmarks/loss_speed.py [--pairs 10240] [--width 128] [--error-pairs 2048] [--repeats 5]

Errors are those against the published formula in float64, on --error-pairs pairs: the gradient's l2 error in parts of
its length, and the largest of an entry. The formula written out takes about 4.4 GiB at 10,240 pairs.
"""

from __future__ import annotations

from functools import partial

import common
import published
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_ssl.losses import info_nce

LOSSES = {
    "published": published.info_nce,
    "float32": info_nce,
    "reduced": partial(info_nce, precision="reduced"),
}


def embeddings(pairs: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit vectors, those of a pair closer than chance."""
    a, b = torch.randn(2, pairs, width, generator=torch.Generator().manual_seed(0))
    return F.normalize(a, dim=-1), F.normalize(a + b, dim=-1)


def gradient(name: str, z_a: Tensor, z_b: Tensor) -> Tensor:
    z_a, z_b = (z.detach().clone().requires_grad_() for z in (z_a, z_b))
    LOSSES[name](z_a, z_b, 0.1).backward()
    return torch.cat([z_a.grad, z_b.grad])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=10240)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--error-pairs", type=int, default=2048)
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.error_pairs, args.repeats = 256, 128, 1
    z = embeddings(args.pairs, args.width)
    rows = common.timed_rows(
        common.interleave({name: partial(gradient, name, *z) for name in LOSSES}, args.repeats), "published"
    )
    few = embeddings(args.error_pairs, args.width)
    exact = gradient("published", *(part.double() for part in few))
    for row in rows:
        error = gradient(row["what"], *few) - exact
        row["l2_error"] = float(error.norm() / exact.norm())
        row["largest_error"] = float(error.abs().max())
    common.report(f"InfoNCE, forward and backward, {args.pairs} pairs of width {args.width}", rows, args)


if __name__ == "__main__":
    main()
