"""Row 2: peak memory of a loader worker above its interpreter while it makes a batch, and as it opens more cases.

    python benchmarks/worker_memory.py [--slices 250] [--pairs 10] [--cases 200]

In a worker process of torch's DataLoader; what it had imported before the first batch does not count. Shared memory and
pages of mapped files count in the peak; the latter belong to the page cache, which frees them when memory is short.
"more" is what opening each of --cases leaves in the worker. Linux.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import common
import numpy as np
import published
import torch
from loader import PATCH
from torch.utils.data import DataLoader, Dataset

from nnunet_ssl.nnunet.b2nd import open_b2nd
from nnunet_ssl.nnunet.loader import PairDataset
from nnunet_ssl.objectives.vox2vec import Recipe

WAYS = ("published", "ours")


def memory(field: str) -> float:
    """MiB of a field of this process's status: VmHWM the peak, VmRSS and RssAnon now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


class Measured(Dataset):
    """Batches, and MiB of their worker: the peak above its start; mapped files above its start; its own."""

    def __init__(self, way: str, data: PairDataset) -> None:
        self.way, self.data, self.start, self.files = way, data, 0.0, 0.0

    def __getitem__(self, turn: int) -> tuple[object, float, float, float]:
        if not self.start:
            # libraries' own workspaces are no cost of a batch
            open_b2nd(Path(self.data.folder) / "case_0.b2nd")[0, 0, 0, 0]
            torch.zeros(1).share_memory_()
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
            self.start, self.files = memory("VmRSS"), memory("RssFile")
        if self.way == "cases":
            self.data._volume(self.data.cases[turn]).mask((0, 0, 0), (1, 1, 1))
            batch: object = None
        else:
            batch = vars(self.data[turn][0]) if self.way == "ours" else self.published(turn)
        return batch, memory("VmHWM") - self.start, memory("RssFile") - self.files, memory("RssAnon")

    def published(self, turn: int) -> object:
        image, body = common.open_case(Path(self.data.folder), self.data.cases[0])
        pairs = len(self.data.pairs)
        return published.batch(image, body, self.data.patch, pairs, np.random.default_rng(turn))


def measure(way: str, folder: Path, patch: tuple[int, ...], pairs: int, cases: int) -> dict[str, float | str]:
    """The peak of a few batches, and what more cases leave behind."""

    def worker(way: str, names: list[str], items: int) -> list[tuple[float, float, float]]:
        recipe = Recipe(pairs_per_batch=pairs)
        data = PairDataset(str(folder), names, patch, (2.0, 1.0, 1.0), recipe, range(pairs))
        loader = DataLoader(Measured(way, data), batch_size=None, sampler=range(items), num_workers=1,
                            collate_fn=lambda item: item)  # fmt: skip
        return [tuple(numbers) for _, *numbers in loader]

    peak, files, _ = worker(way, ["case_0"], 4)[-1]
    row: dict[str, float | str] = {"what": way, "peak_mib": peak, "of_it_mapped_files_mib": files}
    if way == "ours":
        held = worker("cases", [f"case_{i}" for i in range(cases)], cases)
        row[f"more_after_{cases}_cases_mib"] = held[-1][-1] - held[0][-1]
    return row


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--slices", type=int, default=250)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--here", nargs=2, help="a way and the folder of the cases")
    args = parser.parse_args()
    patch, plane = PATCH, (350, 300)
    if args.quick:
        args.slices, args.pairs, args.cases, patch, plane = 24, 2, 4, (8, 32, 32), (64, 60)
    if args.here:
        print(json.dumps(measure(args.here[0], Path(args.here[1]), patch, args.pairs, args.cases)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        common.store(Path(folder), "case_0", *common.make_ct((args.slices, *plane)), patch)
        for i in range(1, args.cases):
            for ending in (".b2nd", "_seg.b2nd"):
                Path(folder, f"case_{i}{ending}").symlink_to(Path(folder, f"case_0{ending}"))
        for way in WAYS:
            arguments = ["--here", way, folder, "--cases", str(args.cases), "--pairs", str(args.pairs)]
            rows.append(common.in_fresh_process(__file__, [*arguments, *(["--quick"] if args.quick else [])]))
    shape = (args.slices, *plane)
    common.report(f"Memory of a worker for {args.pairs} pairs", rows, args, volume=shape, patch=patch)


if __name__ == "__main__":
    main()
