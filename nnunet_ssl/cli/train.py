"""``torchrun ... -m nnunet_ssl.cli.main train``: nnUNetv2_train for several machines."""

from __future__ import annotations

import argparse

NAME = "train"
HELP = "nnUNetv2_train as one of torchrun's processes, for GPUs of several machines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of nnUNetv2_train, as far as they make sense here."""
    parser.add_argument("dataset", help="name or id")
    parser.add_argument("configuration")
    parser.add_argument("fold", help="a number or all")
    parser.add_argument("-tr", required=True, metavar="TRAINER")
    parser.add_argument("-p", required=True, metavar="PLANS")
    parser.add_argument("-pretrained_weights", metavar="FILE")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--c", action="store_true", help="continue from the latest checkpoint")
    group.add_argument("--val", action="store_true", help="only what follows a training")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda")


def run(args: argparse.Namespace) -> int:
    """Train."""
    from nnunet_ssl.nnunet.launching import TrainRequest, train

    train(
        TrainRequest(args.dataset, args.configuration, args.fold, args.tr, args.p, args.pretrained_weights, args.c,
                     args.val, args.device)
    )  # fmt: skip
    return 0
