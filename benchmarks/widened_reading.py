"""Pix2Rep: points read from a finest level that is widened, forward and backward.

    python benchmarks/widened_reading.py [--views 8] [--points 250] [--width 256] [--repeats 5]

The plain way widens the whole level (a convolution of size 1, instance norm, nonlinearity) and reads the points from
the wide map. The other one widens the voxels around the points alone; the norm's statistics come from the mean and the
covariance of the narrow level. Levels of 16 channels of 24 x 32 x 24 voxels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import common
import torch

from nnunet_ssl.nnunet.widening import Widening
from nnunet_ssl.pyramid import gather

WAYS = ("the whole level", "at the points")


def make_run(way: str, args: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    level = torch.randn(args.views, 16, *args.shape, requires_grad=True)
    widening = Widening(16, args.width, 3)
    points = torch.rand(args.views, args.points, 3) * (torch.tensor(args.shape) - 1)
    weights = torch.randn(args.views, args.points, args.width)

    def run() -> None:
        level.grad = None
        widening.zero_grad()
        if way == WAYS[0]:
            vectors = gather([widening(level)], [(1, 1, 1)], points, "linear")
        else:
            vectors = gather([level], [(1, 1, 1)], points, "linear", changes=[widening.by_voxel(level)])
        vectors.backward(weights)

    return run


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--points", type=int, default=250)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--shape", type=int, nargs=3, default=[24, 32, 24])
    args = parser.parse_args()
    if args.quick:
        args.views, args.points, args.width, args.shape, args.repeats = 2, 20, 8, [8, 8, 8], 1
    seconds = common.interleave({way: make_run(way, args) for way in WAYS}, args.repeats)
    title = f"{args.points} points a view of {args.views}, read from a level widened to {args.width} channels"
    common.report(title, common.timed_rows(seconds, WAYS[0]), args)


if __name__ == "__main__":
    main()
