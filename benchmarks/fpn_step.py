"""Row 7: vox2vec's FPN3d, forward and backward on a CPU: float32 as published, bfloat16 autocast, channels last.

    python benchmarks/fpn_step.py [--views 2] [--base 16] [--repeats 5]

Views are 32 x 128 x 128. bfloat16 runs with the convolutions that a training gets (``devices.suit``), channels last or
not. "finest level" is how far it is off the float32 one, in parts of its length.
"""

from __future__ import annotations

from collections.abc import Callable

import common
import torch
from torch import Tensor

from nnunet_ssl.networks import FPN3d
from nnunet_ssl.nnunet import devices

WAYS = {  # bfloat16, channels last
    "float32": (False, False),
    "bfloat16": (True, False),
    "bfloat16, channels last": (True, True),
}


def make_run(way: str, views: int, base: int, scales: int, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    half, last = WAYS[way]
    torch.manual_seed(0)
    network, x = FPN3d(1, base, scales), torch.rand(views, 1, *shape)
    if half:
        devices.suit(network, torch.device("cpu"), torch.bfloat16)
        network.to(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    seeds: list[Tensor] = []

    def run() -> Tensor:
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            levels = network(x)
        if not seeds:  # in each level's own type and layout, as reading voxels gives it
            seeds.extend(torch.randn_like(level) for level in levels)
        torch.autograd.backward(levels, seeds)
        return levels[0].detach().float()

    return run


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--base", type=int, default=16)
    args = parser.parse_args()
    scales, shape = 6, (32, 128, 128)
    if args.quick:
        args.views, args.base, args.repeats, scales, shape = 1, 4, 1, 3, (8, 16, 16)
    runs = {way: make_run(way, args.views, args.base, scales, shape) for way in WAYS}
    rows = common.timed_rows(common.interleave(runs, args.repeats), "float32")
    exact = runs["float32"]()
    for row in rows:
        row["finest level"] = float((runs[row["what"]]() - exact).norm() / exact.norm())
    title = f"FPN3d with {args.base} channels, {args.views} views, forward and backward"
    common.report(title, rows, args, view=shape)


if __name__ == "__main__":
    main()
