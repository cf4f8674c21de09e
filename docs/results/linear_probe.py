"""A linear fit on frozen voxel vectors, measured on other training cases: what windows and labels do to it.

    python docs/results/linear_probe.py PLANS.json PREPROCESSED_CASES -w checkpoint_final.pth --cases 5 --step 0.5
    python docs/results/linear_probe.py PLANS.json PREPROCESSED_CASES --cases 5 --step 0.5   # untrained

Prints one JSON object. Cases are drawn once (seed 5): the first five to fit, the next six to measure; no test case is
among preprocessed training cases.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.heads import LinearHead
from nnunet_ssl.nnunet.linear_fit import collect_voxels, fit_linear, to_head
from nnunet_ssl.nnunet.network import build_backbone, pyramid_channels, pyramid_levels, pyramid_strides
from nnunet_ssl.nnunet.online_probe import dice_per_class, predict_labels

FIT, MEASURED = 5, 6


def backbone(plans: Path, checkpoint: Path | None) -> tuple[torch.nn.Module, list[int]]:
    """The network of the plan's 3d_fullres, random (seed 0) without a checkpoint, and its patch."""
    configuration = PlansManager(str(plans)).get_configuration("3d_fullres")
    torch.manual_seed(0)
    network = build_backbone(configuration, 1, 2, False).eval()
    if checkpoint is not None:
        weights = torch.load(checkpoint, weights_only=True)["network_weights"]
        network.load_state_dict({key: value for key, value in weights.items() if not key.startswith("projector")})
    return network, [int(p) for p in configuration.patch_size]


@torch.no_grad()
def collect(network, cases, patch, classes, step):
    """Voxels of the cases with their vectors."""
    return collect_voxels(lambda x: pyramid_levels(network, x), pyramid_strides(network), cases, patch, classes,
                          np.random.default_rng(0), per_class=3000, background=30000, step=step,
                          max_windows=40)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("-w", "--checkpoint", type=Path)
    parser.add_argument("--cases", type=int, default=FIT, choices=range(1, FIT + 1))
    parser.add_argument("--classes", type=int, default=6, help="with the background")
    parser.add_argument("--step", type=float, default=0.5)
    args = parser.parse_args()
    network, patch = backbone(args.plans, args.checkpoint)
    names = sorted(nnUNetDatasetBlosc2.get_identifiers(str(args.data)))
    order = [names[i] for i in np.random.default_rng(5).permutation(len(names))]
    dataset = nnUNetDatasetBlosc2(str(args.data), names)

    def load(case: str) -> tuple[np.ndarray, np.ndarray]:
        image, labels, *_ = dataset.load_case(case)
        return np.asarray(image[:]), np.asarray(labels[:])[0]

    sample = collect(network, [load(case) for case in order[: args.cases]], patch, args.classes, args.step)
    head = LinearHead(pyramid_channels(network), pyramid_strides(network), args.classes)
    to_head(*fit_linear(sample.features, sample.labels, args.classes, sample.weights, max_iter=150), head)
    measured = order[FIT : FIT + MEASURED]
    with torch.no_grad():
        dice = np.stack([dice_per_class(predict_labels(network, head, image, patch, args.step, "cpu"), labels,
                                        args.classes) for image, labels in map(load, measured)])  # fmt: skip
    print(json.dumps({
        "network": "pretrained" if args.checkpoint else "untrained", "n": args.cases, "step": args.step,
        "dice": round(float(np.nanmean(np.nanmean(dice, 1))), 4), "per_class": np.nanmean(dice, 0).round(3).tolist(),
        "per_case": np.nanmean(dice, 1).round(3).tolist(), "fit": order[: args.cases], "measured": measured,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
