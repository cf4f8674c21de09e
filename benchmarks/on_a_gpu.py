"""What is to be measured on a GPU, in one call: a whole step eager and compiled, its parts, and the loader behind it.

    python benchmarks/on_a_gpu.py [--device cuda] [--pairs 10] [--base 16] [--workers 16] [--repeats 10]

The paper's setting: FPN3d, patches of 32 x 128 x 128 voxels, 1,024 voxels a pair, bfloat16, a phantom of
250 x 350 x 300.
Times are wall milliseconds after the device has finished. "pairs_per_s" are voxel pairs; "of_ceiling" is the share of
the bfloat16 rate of an 8,192^3 matrix product, measured here, counting products and convolutions of forward and
backward pass; "idle" is the share of a step with loader that the same step with its batch on the device does not need.
"l2_error" of a loss is its gradient's difference from the float32 one's in parts of its length.
The loader takes nnU-Net (--workers 0 leaves it out, and all but torch, numpy and scipy with it).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ssl import fused
from nnunet_ssl.intensity import ChannelUnits, augment
from nnunet_ssl.losses import info_nce
from nnunet_ssl.losses.info_nce import PRECISIONS
from nnunet_ssl.networks import FPN3dUNet
from nnunet_ssl.nnunet import devices
from nnunet_ssl.nnunet.network import PretrainNetwork
from nnunet_ssl.objectives import vox2vec
from nnunet_ssl.pyramid import gather
from nnunet_ssl.step import step

UNITS = [ChannelUnits("hu", mean=-1350.0, std=2350.0)]
SPACING = (2.0, 1.0, 1.0)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(function: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Of each of `repeats` calls, after three that are not counted."""
    out = []
    for turn in range(repeats + 3):
        finish(device)
        start = time.perf_counter()
        function()
        finish(device)
        if turn >= 3:
            out.append((time.perf_counter() - start) * 1e3)
    return out


def row(what: str, function: Callable[[], Any], args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Median, least and greatest of a function's times, and the most memory that the device held for it."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = milliseconds(function, args.repeats, device)
    out = {"what": what, "ms": statistics.median(times), "least": min(times), "greatest": max(times), **more}
    if device.type == "cuda":
        out["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return out


class Step:
    """The trainer's step: views made on the device from raw crops, network, loss, backward, clipping, Adam."""

    def __init__(self, args: argparse.Namespace, compiled: bool) -> None:
        self.patch, self.device = args.patch, torch.device(args.device)
        self.recipe = vox2vec.Recipe(pairs_per_batch=args.pairs, amp="bf16", loss_precision=args.loss_precision)
        self.dtype, self.scaler = devices.precision(self.recipe.amp, self.device)
        torch.manual_seed(0)
        backbone = FPN3dUNet(1, 2, False, base_channels=args.base, num_scales=args.scales)
        network = PretrainNetwork(backbone, self.recipe).to(self.device)
        self.network = devices.suit(network, self.device, self.dtype)
        if compiled:
            self.network.levels = torch.compile(self.network.levels)  # as the trainer does
        self.optimizer = torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], lr=3e-4)
        self.generator = torch.Generator(self.device).manual_seed(0)

    def views(self, batch: Any) -> Any:
        """The two views of a batch of the loader, on the device."""
        enhance = partial(augment, channels=UNITS, recipe=self.recipe, generator=self.generator)
        return vox2vec.assemble(batch.to(self.device, non_blocking=True), self.patch, self.recipe, enhance)

    def __call__(self, batch: Any) -> None:
        pair = self.views(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with devices.autocast(self.device, self.dtype):
            loss, _, _ = step(self.network, pair, self.recipe)
        devices.backward_and_step(loss, self.network, self.optimizer, self.scaler, self.recipe.clip)

    def operations(self, batch: Any) -> int:
        """Of products and convolutions in a step; a multiplication and its addition are two."""
        with FlopCounterMode(display=False) as counter:
            self(batch)
        return int(counter.get_total_flops())


def batch_of(args: argparse.Namespace, image: np.ndarray, body: np.ndarray) -> Any:
    """Raw crops of a volume in memory, on the device: what the loader would send."""
    recipe = vox2vec.Recipe(pairs_per_batch=args.pairs)
    box, shape = vox2vec.box_size(args.patch, SPACING, recipe), image.shape

    def part(array: np.ndarray, start: Any, size: Any) -> np.ndarray:
        return array[tuple(slice(int(s), int(s) + int(n)) for s, n in zip(start, size, strict=True))]

    def read_image(start: Any, size: Any) -> np.ndarray:
        return part(image, start, size)[None]

    read_mask = partial(part, body)
    samples = []
    for g in range(args.pairs):
        drawn = vox2vec.draw_pair(np.random.default_rng(g), shape, args.patch, SPACING, recipe, None, read_mask)
        samples.append(vox2vec.read_pair(drawn, shape, box, read_image, read_mask))
    return vox2vec.collate(samples).to(args.device)


def ceiling(args: argparse.Namespace) -> float:
    """Operations a second of a large product in bfloat16."""
    side = 256 if args.quick else 8192
    left, right = torch.randn(2, side, side, device=args.device).bfloat16()
    times = milliseconds(lambda: left @ right, args.repeats, torch.device(args.device))
    return 2 * side**3 / (statistics.median(times) * 1e-3)


def loss_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    def gradient(z: Tensor, precision: str) -> Tensor:
        parts = [part.detach().requires_grad_() for part in z]
        info_nce(*parts, precision=precision).backward()
        return torch.cat([part.grad for part in parts])

    rows = []
    for pairs in (args.pairs * args.voxels, 128 if args.quick else 65536):
        z = torch.nn.functional.normalize(torch.randn(2, pairs, 128, device=args.device), dim=-1)
        exact = gradient(z, "float32")
        for kind in PRECISIONS:
            what = f"InfoNCE, {pairs} pairs, {kind}"
            try:
                error = float((gradient(z, kind) - exact).norm() / exact.norm())
                kernels = kind == "fused" and fused.usable(z[0])
                rows.append(row(what, partial(gradient, z, kind), args, l2_error=error, kernels=kernels))
            except Exception as e:  # a kernel that a device refuses does not cost the rows before it
                rows.append({"what": what, "failed": repr(e)})
    return rows


def reading_row(args: argparse.Namespace) -> dict[str, Any]:
    """Row 6's pyramid, read and differentiated."""
    views, size = 2 * args.pairs, args.patch
    levels = [torch.rand(views, args.base * 2**i, *(-(-n // 2**i) for n in size), device=args.device).requires_grad_()
              for i in range(args.scales)]  # fmt: skip
    points = [torch.randint(n, (views, args.voxels), device=args.device) for n in size]
    coords = torch.stack(points, -1).float()
    strides = [(2**i,) * 3 for i in range(args.scales)]

    def run() -> None:
        for level in levels:
            level.grad = None
        gather(levels, strides, coords).sum().backward()

    return row(f"pyramid read, {views} views x {args.voxels} voxels", run, args)


def loader_row(args: argparse.Namespace, run: Step, case: Sequence[np.ndarray], alone: float) -> dict[str, Any]:
    """A step with the trainer's own loader in front of it; alone: milliseconds without."""
    from nnunet_ssl.nnunet.loader import PairDataset, PairLoader

    with tempfile.TemporaryDirectory() as folder:
        common.store(Path(folder), "case", *case, args.patch)
        data = PairDataset(folder, ["case"], args.patch, SPACING, run.recipe, range(args.pairs))
        loader = PairLoader(data, num_workers=args.workers, pin=run.device.type == "cuda")
        try:
            found = row(f"step, loader with {args.workers} workers", lambda: run(next(loader)[0]), args)
        finally:
            loader.close()
    return {**found, "pairs_per_s": args.pairs * args.voxels / found["ms"] * 1e3, "idle": 1 - alone / found["ms"]}


def main() -> None:
    parser = common.parser(__doc__, repeats=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--workers", type=int, default=16, help="of the loader; 0: no loader")
    parser.add_argument("--loss-precision", choices=PRECISIONS, default="reduced", help="of the steps")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args()
    args.patch, args.scales, args.voxels, shape = (32, 128, 128), 6, 1024, (250, 350, 300)
    if args.quick:
        args.patch, args.scales, args.voxels, shape = (8, 32, 32), 3, 32, (24, 64, 60)
        args.pairs, args.base, args.repeats, args.workers, args.no_compile = 2, 4, 1, 1, True
    case = common.make_ct(shape)
    batch, most = batch_of(args, *case), ceiling(args)
    rows = []
    for compiled in (False,) if args.no_compile else (True, False):
        run = Step(args, compiled)
        found = row("step, compiled" if compiled else "step", partial(run, batch), args)
        found["pairs_per_s"] = args.pairs * args.voxels / found["ms"] * 1e3
        if not compiled:
            operations = run.operations(batch)
        rows.append(found)
    for found in rows:
        found["of_ceiling"] = operations / (found["ms"] * 1e-3) / most
    if args.workers:
        rows.append(loader_row(args, run, case, rows[-1]["ms"]))
    rows += [row(f"augmentation, {2 * args.pairs} views", partial(run.views, batch), args), reading_row(args)]
    rows += loss_rows(args)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    common.report(f"A pretraining step and its parts on {name}", rows, args, volume=shape, patch=args.patch,
                  bfloat16_tflops=round(most / 1e12, 1), step_gflop=round(operations / 1e9, 1))  # fmt: skip


if __name__ == "__main__":
    main()
