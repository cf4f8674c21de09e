"""Row 9: how soon a training with thousands of preprocessed cases makes its first batch, and what a case takes on disk.

    python benchmarks/startup.py [--cases 6500] [--slices 250] [--repeats 5]

One phantom of --slices x 350 x 300 voxels, linked under --cases names. "names" lists the folder, holds cases back and
builds the loader, as a training does; no case is opened (a folder of empty files would do, and does). The published
code opens and checks every case before it starts; that is timed on --opened of them and multiplied.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import numpy as np
from loader import PATCH
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ssl.nnunet.b2nd import open_b2nd
from nnunet_ssl.nnunet.loader import PairDataset, PairLoader, hold_back
from nnunet_ssl.objectives.vox2vec import Recipe


def start(folder: Path, patch: tuple[int, ...]) -> PairLoader:
    """What a training does before its first batch."""
    training, _ = hold_back(nnUNetDatasetBlosc2.get_identifiers(str(folder)))
    recipe = Recipe(pairs_per_batch=2, voxels_per_pair=64)
    return PairLoader(PairDataset(str(folder), training, patch, (2.0, 1.0, 1.0), recipe, range(2)))


def open_and_list(folder: Path, cases: int) -> None:
    """What the published code does to each: the volume is read, its body listed."""
    for i in range(cases):
        image = np.asarray(open_b2nd(folder / f"case_{i:05d}.b2nd")[0])
        body = np.asarray(open_b2nd(folder / f"case_{i:05d}_seg.b2nd")[0]) > 0
        if min(image.shape) > 1:
            np.argwhere(body)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cases", type=int, default=6500)
    parser.add_argument("--opened", type=int, default=2)
    parser.add_argument("--slices", type=int, default=250)
    args = parser.parse_args()
    patch, plane = PATCH, (350, 300)
    if args.quick:
        args.cases, args.opened, args.slices, args.repeats, patch, plane = 20, 1, 24, 1, (8, 32, 32), (64, 60)
    with tempfile.TemporaryDirectory() as real, tempfile.TemporaryDirectory() as hollow:
        common.store(Path(real), "case_00000", *common.make_ct((args.slices, *plane)), patch)
        sizes = {path.name: path.stat().st_size / 2**20 for path in sorted(Path(real).iterdir())}
        for i in range(args.cases):
            for ending in (".b2nd", "_seg.b2nd", ".pkl"):
                name = f"case_{i:05d}{ending}"
                Path(hollow, name).touch()
                if i:
                    Path(real, name).symlink_to(Path(real, f"case_00000{ending}"))
        functions = {
            "published": lambda: open_and_list(Path(real), args.opened),
            "names": lambda: start(Path(hollow), patch),
            "names and the first batch": lambda: next(start(Path(real), patch)),
        }
        seconds = common.interleave(functions, args.repeats)
    seconds["published"] = [s * args.cases / args.opened for s in seconds["published"]]
    rows = common.timed_rows(seconds, "published")
    on_disk = {name: round(size, 3) for name, size in sizes.items()}
    common.report(f"Starting with {args.cases} cases", rows, args, mib_on_disk=on_disk)


if __name__ == "__main__":
    main()
