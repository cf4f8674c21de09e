"""Row 1: a case opened, pairs of views with their voxels read from nnU-Net's .b2nd, with and without augmentation.

    python benchmarks/loader.py [--slices 250] [--fewer-slices 130] [--pairs 10] [--repeats 5]

Views per CPU second of one core, from a phantom of --slices x 350 x 300 voxels. "raw" are the crops that a worker of
ours sends (the training device augments them, batched); "augmented" does that on the same core as well.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import numpy as np
import published
import torch

from nnunet_ssl.intensity import ChannelUnits, augment
from nnunet_ssl.nnunet.loader import PairDataset
from nnunet_ssl.objectives.vox2vec import Recipe
from nnunet_ssl.views import assemble

PATCH = (32, 128, 128)
UNITS = [ChannelUnits("hu", mean=-1350.0, std=2350.0)]


class Case:
    """One volume on disk and the ways to make a batch of it."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], patch: tuple[int, ...], pairs: int) -> None:
        image, body = common.make_ct(shape)
        common.store(folder, name, image, body, patch)
        self.body_share = round(float(body.mean()), 2)
        self.folder, self.name, self.patch, self.pairs, self.turn = folder, name, patch, pairs, 0
        self.recipe = Recipe(pairs_per_batch=pairs)

    def published(self) -> None:
        self.turn += 1
        image, body = common.open_case(self.folder, self.name)
        published.batch(image, body, self.patch, self.pairs, np.random.default_rng(self.turn))

    def raw(self) -> object:
        self.turn += 1
        spacing = (2.0, 1.0, 1.0)
        data = PairDataset(str(self.folder), [self.name], self.patch, spacing, self.recipe, range(self.pairs))
        return data[self.turn][0]

    def augmented(self) -> None:
        generator = torch.Generator().manual_seed(self.turn)
        assemble(self.raw(), self.patch, self.recipe, lambda views: augment(views, UNITS, self.recipe, generator))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--slices", type=int, default=250)
    parser.add_argument("--fewer-slices", type=int, default=130)
    parser.add_argument("--pairs", type=int, default=10)
    args = parser.parse_args()
    patch, plane = PATCH, (350, 300)
    if args.quick:
        args.slices, args.fewer_slices, args.pairs, args.repeats = 40, 24, 2, 1
        patch, plane = (8, 32, 32), (64, 60)
    with tempfile.TemporaryDirectory() as temporary:
        cases = [Case(Path(temporary), f"case_{n}", (n, *plane), patch, args.pairs)
                 for n in (args.slices, args.fewer_slices)]  # fmt: skip
        functions = {"published": cases[0].published, "augmented": cases[0].augmented, "raw": cases[0].raw,
                     "raw, fewer slices": cases[1].raw, "augmented, fewer slices": cases[1].augmented}  # fmt: skip
        rows = common.timed_rows(common.interleave(functions, args.repeats), "published")
    for row in rows:
        row["views_per_s"] = 2 * args.pairs / row["cpu_s"]
    shape = (args.slices, *plane)
    common.report(f"A case opened and {args.pairs} pairs of views", rows, args, volume=shape, patch=patch,
                  body_share=cases[0].body_share)  # fmt: skip


if __name__ == "__main__":
    main()
