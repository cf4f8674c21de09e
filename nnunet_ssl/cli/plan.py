"""``nnunet_ssl plan``: a plans file for pretraining."""

from __future__ import annotations

import argparse

NAME = "plan"
HELP = "Plan (and preprocess) a dataset for pretraining."


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that plan and adapt share."""
    parser.add_argument("-n", "--name", help="name of the plan")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the configuration, e.g. ssl.num_epochs=100 or patch_size=[32,64,64]; may be repeated",
    )
    parser.add_argument(
        "--overlay", dest="overlays", action="append", default=[], metavar="FILE",
        help="JSON file with changes, e.g. {\"ssl\": {\"temperature\": 0.07}}; may be repeated",
    )
    parser.add_argument(
        "--config", metavar="NAME", help="put the changes into a new configuration NAME beside the others of the plan"
    )
    parser.add_argument("--inherits-from", metavar="NAME", help="with --config: its parent (default: 3d_fullres)")
    parser.add_argument("--preprocess", action="store_true", help="run nnU-Net's preprocessing afterwards")
    parser.add_argument("-c", dest="configurations", nargs="+", metavar="NAME", help="with --preprocess: only these")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset with the images")
    parser.add_argument(
        "--preset", default="vox2vec", help="vox2vec (default), pix2rep, pix2rep_v2, pix2rep_3d, nnunet, portable, tiny"
    )
    parser.add_argument(
        "--like",
        metavar="ID",
        help="network and data of this labelled dataset's plan; the preset then only says how to pretrain",
    )
    parser.add_argument("--like-plans", default="nnUNetPlans", metavar="NAME", help="its plan (default nnUNetPlans)")
    parser.add_argument("--planner", help="nnU-Net's planner: ExperimentPlanner, nnUNetPlannerResEncM, ...L or ...XL")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="what a training step may take (default: any)")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Plan, print, preprocess if asked to, and say what comes next."""
    from nnunet_ssl.nnunet.planners import resolved
    from nnunet_ssl.nnunet.planning import PlanRequest, describe, make_plan
    from nnunet_ssl.nnunet.preprocessing import is_preprocessed, preprocess
    from nnunet_ssl.nnunet.settings import pretrain_trainer

    request = PlanRequest(
        args.dataset, args.preset, args.like, args.like_plans, args.planner, args.name, args.gpu_memory,
        args.overlays, args.settings, args.config, args.inherits_from,
    )
    planned = make_plan(request)
    print(f"{planned.dataset.name}: {len(planned.dataset.cases)} cases, plan {planned.path}")
    for name in planned.configurations:
        print(f"\n{name}")
        for line in describe(planned, name):
            print(f"  {line}")
    for note in planned.notes:
        print(f"note: {note}")
    first = planned.configurations[0]
    wanted = args.configurations or [first]
    if args.preprocess:
        for note in preprocess(planned.dataset, planned.plans, wanted):
            print(f"note: {note}")
        first = wanted[0]
    plans_name = planned.plans["plans_name"]
    trainer = pretrain_trainer(resolved(planned.plans, first)["ssl"]["objective"])
    print("\nNext:")
    if not is_preprocessed(planned.dataset, planned.plans, first):
        stock = f"nnUNetv2_preprocess -d {planned.dataset.id} -plans_name {plans_name} -c {first}"
        masked = "this command with --preprocess (nnU-Net's own needs label files, these images have none)"
        print(f"  {masked if planned.dataset.masked else stock}")
    print(f"  nnUNetv2_train {planned.dataset.id} {first} all -tr {trainer} -p {plans_name}{device_option()}")
    return 0


def device_option() -> str:
    """What has to follow nnU-Net's commands on a machine without a GPU."""
    import torch

    return "" if torch.cuda.is_available() else " -device cpu"
