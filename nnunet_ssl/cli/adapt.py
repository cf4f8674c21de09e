"""``nnunet_ssl adapt``: a labelled dataset's plans file for a pretrained network."""

from __future__ import annotations

import argparse
import json

from nnunet_ssl.cli.plan import add_settings, device_option
from nnunet_ssl.nnunet.settings import SPACINGS

NAME = "adapt"
HELP = "Plan (and preprocess) a labelled dataset for a pretrained network."
TRAINERS = ("SSLLinearProbeTrainer", "SSLNonlinearProbeTrainer", "SSLFrozenTrainer", "SSLFineTuneTrainer")
TWIN = "SSLScratchTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the labelled dataset")
    parser.add_argument("-w", "--weights", required=True, metavar="FILE", help="checkpoint_final.pth of a pretraining")
    parser.add_argument(
        "--spacing", default="auto", choices=SPACINGS,
        help="auto: the pretraining's if within 1.5x of the target's median on every axis, else the target's",
    )
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="what a training step may take (default 8)")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Adapt, print, preprocess if asked to, and say what comes next."""
    from nnunet_ssl.nnunet.adapting import AdaptRequest, make_adapted
    from nnunet_ssl.nnunet.planners import resolved
    from nnunet_ssl.nnunet.preprocessing import is_preprocessed, preprocess
    from nnunet_ssl.nnunet.splits import first_fold

    request = AdaptRequest(
        args.dataset, args.weights, args.name, args.spacing, args.gpu_memory,
        args.overlays, args.settings, args.config, args.inherits_from,
    )
    adapted = make_adapted(request)
    name, plans_name = adapted.configurations[0], adapted.plans["plans_name"]
    configuration = resolved(adapted.plans, name)
    print(f"{adapted.dataset.name}: plan {adapted.path}, configuration {name}")
    print(f"  patch {configuration['patch_size']}, batch size {configuration['batch_size']}")
    chosen = {key: value for key, value in configuration["ssl"].items() if key != "pretrained" and value is not None}
    print("  ssl " + ", ".join(f"{key} {json.dumps(value)}" for key, value in chosen.items()))
    notes = list(adapted.notes)
    if args.preprocess:
        notes += preprocess(adapted.dataset, adapted.plans, args.configurations or [name])
    for note in notes:
        print(f"  {note}")
    print("\nNext:")
    if not is_preprocessed(adapted.dataset, adapted.plans, name):
        print(f"  nnUNetv2_preprocess -d {adapted.dataset.id} -plans_name {plans_name} -c {name}")
    fold = first_fold(adapted.dataset.folder, len(adapted.dataset.cases))
    for trainer in (*TRAINERS, TWIN):
        print(f"  nnUNetv2_train {adapted.dataset.id} {name} {fold} -tr {trainer} -p {plans_name}{device_option()}")
    return 0
