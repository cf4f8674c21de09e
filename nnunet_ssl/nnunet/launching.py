"""nnU-Net's training command as one of torchrun's processes, on one machine or on several."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import distributed as dist

from nnunet_ssl.errors import UserError

NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TrainRequest:
    """What nnUNetv2_train is told."""

    dataset: str
    configuration: str
    fold: str
    trainer: str
    plans: str
    pretrained_weights: str | None = None
    continue_training: bool = False
    only_validation: bool = False
    device: str = "cuda"


def train(request: TrainRequest) -> None:
    """Train in this process with the others that torchrun has started. Raises UserError outside of torchrun, and for
    trainers that do not know several machines.
    """
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise UserError(
            f"{', '.join(missing)} is not set, which torchrun sets. Start it as `torchrun --nproc_per_node GPUS -m "
            "nnunet_ssl.cli.main train ...`; on one GPU, or several of one machine, nnUNetv2_train does."
        )
    if request.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if request.device == "cuda" else "gloo")
    try:
        _run(request)
    finally:
        dist.destroy_process_group()


def _run(request: TrainRequest) -> None:
    """As ``nnunetv2.run.run_training.run_ddp`` does, which counts GPUs by the global rank."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    fold = request.fold if request.fold == "all" else _number(request.fold)
    trainer = get_trainer_from_args(
        request.dataset, request.configuration, fold, request.trainer, request.plans, request.continue_training,
        torch.device(request.device),
    )  # fmt: skip
    if not getattr(trainer, "several_machines", False) and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise UserError(
            f"{request.trainer} takes the number of a process for that of a GPU, as nnU-Net's trainers do, which is "
            "right on one machine alone. Pretraining trainers know several; train this one on one of them."
        )
    maybe_load_checkpoint(trainer, request.continue_training, request.only_validation, request.pretrained_weights)
    if request.device == "cuda":
        torch.backends.cudnn.benchmark = True
    if not request.only_validation:
        trainer.run_training()
    trainer.perform_actual_validation(False)


def _number(fold: str) -> int:
    if not fold.isdigit():
        raise UserError(f'The fold is "{fold}"; expected a number or all.')
    return int(fold)
