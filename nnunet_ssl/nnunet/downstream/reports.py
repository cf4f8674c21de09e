"""What a downstream training says about itself: at its start, in its checkpoints, and at its end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_ssl.nnunet import checkpoints
from nnunet_ssl.nnunet.downstream.network import bare, head_and_backbone
from nnunet_ssl.nnunet.downstream.starting import REPORT
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.recipe import ssl_block, to_block

FILE_NAME = "downstream.json"


def summary(trainer: Any) -> dict[str, Any]:
    """Protocol, settings, where the weights came from and how many parameters learn; plain values only."""
    head, backbone = head_and_backbone(trainer.network)
    schedule = trainer.lr_scheduler
    pretrained = None
    transfer = Path(trainer.output_folder) / REPORT
    if trainer.protocol.pretrained and transfer.is_file():
        content = json.loads(transfer.read_text(encoding="utf-8"))
        names = ("source", "sha256", "transferred", "backbone_sha256", "overridden")
        pretrained = {key: content.get(key) for key in names}
    return {
        "trainer": type(trainer).__name__,
        "protocol": trainer.protocol.name,
        "loss_and_augmentation": trainer.recipe.protocol,
        "settings": asdict(trainer.settings),
        "head_init": trainer.settings.head_init,
        "recipe": to_block(trainer.recipe),
        "pretrained": pretrained,
        "trainable_parameters": {"head": _count(head), "backbone": _count(backbone)},
        "all_parameters": _count(bare(trainer.network).parameters()),
        "steps": trainer.num_epochs * trainer.num_iterations_per_epoch,
        "head_only_steps": schedule.freeze_steps,
        "ramp_steps": schedule.ramp_steps,
        "mirror_axes": _as_list(trainer.inference_allowed_mirroring_axes),
        "versions": checkpoints.versions(),
    }


def opening(trainer: Any, report: Any) -> list[str]:
    """Lines for the log; also writes downstream.json into the output folder."""
    facts = summary(trainer)
    write_json(Path(trainer.output_folder) / FILE_NAME, facts)
    settings, learning = trainer.settings, facts["trainable_parameters"]
    head = f"{settings.head} head, started {'by a linear fit' if facts['head_init'] == 'probe' else 'at random'}"
    name, protocol = type(trainer).__name__, trainer.protocol.name
    lines = [f"{name}: {protocol}, {head}; loss and augmentation: {trainer.recipe.protocol}"]
    if not ssl_block(trainer.configuration_manager):
        lines.append(f"Configuration {trainer.configuration_name} has no ssl block: all fields have their defaults.")
    lines += _remarks(trainer)
    lines.append("Weights: " + (report.summary() if report is not None else "of the checkpoint that is continued"
                                if trainer.resumed else "random, none are loaded"))  # fmt: skip
    lines.append(
        f"Trainable parameters: {learning['head']:,} in the head, {learning['backbone']:,} in the backbone, of "
        f"{facts['all_parameters']:,}"
    )
    lines.append(
        f"{settings.optimizer}, initial_lr {settings.initial_lr:g}, weight_decay {settings.weight_decay:g}, schedule "
        f"{settings.schedule}, {facts['steps']} steps" + _stages(trainer)
    )
    mirrored = trainer.inference_allowed_mirroring_axes
    lines.append(f"Mirrored axes in training and at test time: {list(mirrored) if mirrored else 'none'}")
    return lines


def _remarks(trainer: Any) -> list[str]:
    lines = []
    if trainer.recipe.labelled is not None:
        counted = "subjects" if trainer.dataset_json.get("subjects") else "cases"
        lines.append(f"Training on {trainer.recipe.labelled['n']} of this fold's {counted} (draw "
                     f"{trainer.recipe.labelled['draw']}); they are in labelled_cases.json.")  # fmt: skip
    share, patches = trainer.settings.oversample_foreground_percent, int(trainer.configuration_manager.batch_size)
    if share > 0 and round(patches * (1 - share)) >= patches:  # as nnU-Net's loader counts
        lines.append(f"WARNING: no patch is drawn around a label: nnU-Net rounds {share:g} of a batch of {patches} to "
                     "none. Set batch_size to 2, or ssl.oversample_foreground_percent above 0.5.")  # fmt: skip
    if trainer.recipe.head_init == "probe" and trainer.settings.head == "nonlinear":
        lines.append("ssl.head_init=probe does not apply to a non-linear head, which starts at random.")
    if trainer.settings.sigmoid and trainer.protocol.head is None and trainer.recipe.head == "stock":
        lines.append("ssl.protocol=vox2vec trains a linear head on the pyramid; ssl.head=stock does not apply.")
    if not trainer.protocol.pretrained and trainer.recipe.pretrained is not None:
        lines.append("The weights that ssl.pretrained names are not loaded: this is the training from scratch.")
    return lines


def _stages(trainer: Any) -> str:
    if not trainer.protocol.staged:
        return ""
    schedule, settings = trainer.lr_scheduler, trainer.settings
    return (f": {schedule.freeze_steps} with the head alone, then a ramp of {schedule.ramp_steps} to "
            f"{settings.backbone_lr_factor:g} x for the backbone")  # fmt: skip


def next_command(trainer: Any) -> str:
    """The command that a user runs after this training."""
    dataset = int(trainer.plans_manager.dataset_name[7:10])
    device = "" if trainer.device.type == "cuda" else f" -device {trainer.device.type}"
    return (
        f"\nNext: nnUNetv2_predict -d {dataset} -i INPUT_FOLDER -o OUTPUT_FOLDER -f {trainer.fold} -tr "
        f"{type(trainer).__name__} -c {trainer.configuration_name} -p {trainer.plans_manager.plans_name}{device}"
    )


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _as_list(axes: Any) -> list[int] | None:
    return None if axes is None else [int(a) for a in axes]
