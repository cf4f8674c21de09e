"""Row 6: voxel vectors read from a pyramid, forward and backward.

    python benchmarks/pyramid_reading.py [--patches 20] [--voxels 1024] [--repeats 5]

vox2vec's levels: 16 to 512 channels at strides 1 to 32 of 32 x 128 x 128 voxels, 1,008 numbers a voxel. The published
way indexes patch by patch, level by level. With --memory also the peak above the levels, in a fresh
process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import common
import published
import torch
from torch import Tensor

from nnunet_ssl.pyramid import gather

WAYS = ("published", "ours", "ours, channels last")


def make_levels(patches: int, shape: Sequence[int], base: int, scales: int, last: bool) -> list[Tensor]:
    layout = torch.channels_last_3d if last else torch.contiguous_format
    levels = []
    for number in range(scales):
        size = [-(-n // 2**number) for n in shape]
        empty = torch.empty(patches, base * 2**number, *size, memory_format=layout)
        levels.append(empty.uniform_(generator=torch.Generator().manual_seed(number)).requires_grad_())
    return levels


def make_run(way: str, args: argparse.Namespace, patches: int) -> Callable[[], None]:
    shape, base, scales = ((8, 32, 32), 4, 4) if args.quick else ((32, 128, 128), 16, 6)
    levels = make_levels(patches, shape, base, scales, way.endswith("last"))
    draw = torch.Generator().manual_seed(0)
    voxels = torch.stack([torch.randint(n, (patches, args.voxels), generator=draw) for n in shape], -1)  # (B, N, 3)
    weights = torch.randn(patches * args.voxels, base * (2**scales - 1), generator=draw)

    def run() -> None:
        for level in levels:
            level.grad = None
        if way == "published":
            vectors = published.read(levels, list(voxels))
        else:
            vectors = gather(levels, [(2**i,) * 3 for i in range(scales)], voxels.float()).flatten(0, 1)
        vectors.backward(weights)

    return run


def memory(way: str, args: argparse.Namespace) -> float:
    """MiB, by this script in another process."""
    arguments = ["--here", way, "--patches", str(args.patches), "--voxels", str(args.voxels)]
    return float(common.in_fresh_process(__file__, [*arguments, *(["--quick"] if args.quick else [])]))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--patches", type=int, default=20)
    parser.add_argument("--voxels", type=int, default=1024)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--here", choices=WAYS, help="measure the memory of one run in this process")
    args = parser.parse_args()
    if args.quick:
        args.patches, args.voxels, args.repeats = 4, 32, 1
    if args.here:
        run, before = make_run(args.here, args, args.patches), common.peak_bytes()
        run()
        print(json.dumps((common.peak_bytes() - before) / 2**20))
        return
    seconds = common.interleave({way: make_run(way, args, args.patches) for way in WAYS}, args.repeats)
    rows = common.timed_rows(seconds, WAYS[0])
    half = common.timed_rows(common.interleave({way: make_run(way, args, args.patches // 2) for way in WAYS[1:]},
                                               args.repeats))  # fmt: skip
    for row, few in zip(rows[1:], half, strict=True):
        row["half_the_patches_s"] = few["cpu_s"]
    if args.memory:
        for row in rows:
            row["peak_mib"] = memory(row["what"], args)
    common.report(f"A pyramid read at {args.patches} x {args.voxels} voxels, forward and backward", rows, args)


if __name__ == "__main__":
    main()
