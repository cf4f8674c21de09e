"""Row 8: a whole pretraining step on one core of a CPU: a case opened, views, network, reading, loss, backward, Adam.

    python benchmarks/whole_step.py [--pairs 10] [--base 16] [--repeats 5]

Of a phantom of 250 x 350 x 300 voxels: FPN3d, 1,024 voxels a pair, the published projector. "published" runs in float32
as its authors' code does, "float32" is our step in the same precision, "bfloat16" with ``ssl.amp`` and
``ssl.loss_precision`` reduced. A step at the paper's size (--pairs 10 --base 16) takes minutes of one core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import published
import torch
from loader import PATCH, UNITS, Case
from torch import nn
from torch.nn import functional as F

from nnunet_ssl.intensity import augment
from nnunet_ssl.networks import FPN3dUNet
from nnunet_ssl.nnunet import devices
from nnunet_ssl.nnunet.network import PretrainNetwork
from nnunet_ssl.objectives.vox2vec import Recipe
from nnunet_ssl.step import step
from nnunet_ssl.views import assemble


def network_of(base: int, scales: int, recipe: Recipe) -> PretrainNetwork:
    torch.manual_seed(0)
    return PretrainNetwork(FPN3dUNet(1, 2, False, base_channels=base, num_scales=scales), recipe)


def published_step(case: Case, base: int, scales: int) -> Callable[[], float]:
    network = network_of(base, scales, case.recipe)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=3e-4)

    def run() -> float:
        case.turn += 1
        image, body = common.open_case(case.folder, case.name)
        a, b, in_a, in_b = published.batch(image, body, case.patch, case.pairs, np.random.default_rng(case.turn))
        z = [network.projector(published.read(network.levels(x), v)) for x, v in ((a, in_a), (b, in_b))]
        loss = published.info_nce(*(F.normalize(part, dim=-1) for part in z))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return run


def our_step(case: Case, base: int, scales: int, amp: str) -> Callable[[], float]:
    recipe = Recipe(pairs_per_batch=case.pairs, amp=amp, loss_precision="reduced" if amp == "bf16" else "float32")
    device = torch.device("cpu")
    dtype, scaler = devices.precision(recipe.amp, device)
    network = network_of(base, scales, recipe)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=3e-4)

    def run() -> float:
        generator = torch.Generator().manual_seed(case.turn)
        pair = assemble(case.raw(), case.patch, recipe, lambda views: augment(views, UNITS, recipe, generator))
        optimizer.zero_grad()
        with devices.autocast(device, dtype):
            loss, _, _ = step(network, pair, recipe)
        devices.backward_and_step(loss, network, optimizer, scaler, recipe.clip)
        return float(loss.detach())

    return run


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--base", type=int, default=16)
    args = parser.parse_args()
    shape, patch, scales = (250, 350, 300), PATCH, 6
    if args.quick:
        args.pairs, args.base, args.repeats, scales = 2, 4, 1, 3
        shape, patch = (24, 64, 60), (8, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder), "case", shape, patch, args.pairs)
        steps = {
            "published": published_step(case, args.base, scales),
            "float32": our_step(case, args.base, scales, "off"),
            "bfloat16": our_step(case, args.base, scales, "bf16"),
        }
        rows = common.timed_rows(common.interleave(steps, args.repeats), "published")
    title = f"A pretraining step, {2 * args.pairs} views, {args.base} channels"
    common.report(title, rows, args, volume=shape, patch=patch)


if __name__ == "__main__":
    main()
