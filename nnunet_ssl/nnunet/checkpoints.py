"""Checkpoints that anybody can load safely: whole or absent, CPU tensors, plain Python values."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import remove_leftovers, replacing
from nnunet_ssl.nnunet.import_report import REPORT
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_strides
from nnunet_ssl.nnunet.recipe import to_block

FORMAT = 1
CITATIONS = {
    "vox2vec": "Goncharov et al., vox2vec: A Framework for Self-supervised Contrastive Learning of Voxel-Level "
    "Representations in Medical Images, MICCAI 2023, arXiv 2307.14725",
    "pix2rep": "Seince et al., Dense Self-Supervised Learning for Medical Image Segmentation, MIDL 2024, "
    "arXiv 2407.20395; version 2: MICCAI 2026, arXiv 2609.01427",
    "nnunet": "Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image "
    "segmentation, Nature Methods 18, 2021",
}


def write(path: str | os.PathLike[str], checkpoint: Mapping[str, Any]) -> None:
    """Write ``checkpoint`` so that ``torch.load(path, weights_only=True)`` reads it.

    The file at ``path`` is replaced only by a complete one: after a full disk or a kill the earlier file is intact.
    Raises UserError where it cannot be written, TypeError for a value that is neither tensor nor plain.
    """
    values = plain(checkpoint)
    try:
        with replacing(path) as beside:
            torch.save(values, beside)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        kept = "The earlier file of that name is intact." if Path(path).exists() else "Nothing was left behind."
        raise UserError(
            f"Could not write the checkpoint {path}: {_first_line(error)}. {kept} Free some space or mend the "
            "permissions, then continue the training with --c."
        ) from error


def tidy(trainer: Any) -> None:
    """Delete the unfinished checkpoints that a kill during a save left in the trainer's output folder."""
    if trainer.local_rank == 0:
        remove_leftovers(trainer.output_folder, "checkpoint_*.pth")


def plain(value: Any, where: str = "checkpoint") -> Any:
    """A copy with tensors on the CPU and numpy scalars, devices and paths as plain values."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.device | os.PathLike):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain values only")


def read(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this package; unpickles nothing but tensors and plain values. Raises UserError."""
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint of this package ({_first_line(error)}). It is damaged or was "
            "written by something else; expected a checkpoint of a pretraining."
        ) from error
    if not isinstance(checkpoint, dict) or "ssl" not in checkpoint or "network_weights" not in checkpoint:
        raise UserError(
            f"{path} is not a pretraining checkpoint (it has no ssl block); expected one that a "
            "pretraining of this package wrote."
        )
    return checkpoint


def of_trainer(trainer: Any, outputs: list[list[dict[str, Any]]], seconds: float) -> dict[str, Any]:
    """A trainer's state as stock nnU-Net lays it out, plus ``ssl`` and, under ``running_epoch``, what of it is done.

    outputs: per process, one dict an iteration of the running epoch; seconds: spent in it.
    """
    return {
        "network_weights": trainer.bare_network().state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": trainer.grad_scaler.state_dict() if trainer.grad_scaler is not None else None,
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch,
        "running_epoch": {"iteration": trainer.iteration_in_epoch, "outputs": outputs, "seconds": float(seconds)},
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        "ssl": describe(trainer),
    }


def restore(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Put a trainer where ``checkpoint`` was written, under the settings of its own recipe.

    Raises UserError, with the trainer untouched, where the network or the optimiser is another one.
    """
    network = trainer.bare_network()
    require_same_optimizer(checkpoint["ssl"]["recipe"]["optimizer"], trainer.recipe.optimizer)
    require_same_tensors(network.state_dict(), checkpoint["network_weights"])
    network.load_state_dict(checkpoint["network_weights"])
    load_optimizer(trainer, checkpoint, trainer.recipe.weight_decay)
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.current_epoch = checkpoint["current_epoch"]
    running = checkpoint["running_epoch"]
    trainer.iteration_in_epoch, trainer.seconds_before = running["iteration"], running["seconds"]
    rank, everywhere = trainer.local_rank, running["outputs"]
    trainer.epoch_outputs = list(everywhere[rank if rank < len(everywhere) else 0])
    for line in _changes(checkpoint["ssl"]["recipe"], to_block(trainer.recipe)):
        trainer.print_to_log_file(line)


def require_same_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise UserError that names the first tensor in which two networks differ."""
    for key in [*expected, *found]:
        shapes = [tuple(w[key].shape) if key in w else "absent" for w in (expected, found)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"The checkpoint is of another network: {key} is {shapes[1]} there and {shapes[0]} in the plan's. "
                "Use the plan that it was trained with, or start a new training without --c."
            )


def require_same_optimizer(before: str, now: str) -> None:
    """Raise UserError for another optimiser: the moments of one kind mean nothing to another."""
    if before != now:
        raise UserError(
            f'ssl.optimizer was "{before}" when this training began and is "{now}" now: a training goes on with the '
            "optimiser that it began with. Set it back in the plan, or start a new training without --c."
        )


def load_optimizer(trainer: Any, checkpoint: Mapping[str, Any], weight_decay: float) -> None:
    """Restore the optimiser's moments and the gradient scaler. Rates are set at every step, the decay here."""
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = weight_decay
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = [key for key in now if key in before and before[key] != now[key]]
    return [f"WARNING: ssl.{k} was {before[k]!r} when this training began and is {now[k]!r} now." for k in changed]


def describe(trainer: Any) -> dict[str, Any]:
    """The ``ssl`` entry of a checkpoint: all that is needed to use the weights without the training's folders."""
    network = trainer.bare_network()
    return {
        "format": FORMAT,
        "objective": trainer.recipe.objective,
        "recipe": to_block(trainer.recipe),
        "plans": trainer.plans_manager.plans,
        "configuration": trainer.configuration_name,
        "dataset_name": trainer.plans_manager.dataset_name,
        "dataset_json": trainer.dataset_json,
        "channels": pyramid_channels(network),
        "strides": [list(stride) for stride in pyramid_strides(network)],
        "kept": ["encoder", "decoder", *(["representation"] if hasattr(network, "representation") else [])],
        "dropped": ["projector"],
        "volumes": volume_hashes(trainer.plans_manager.dataset_name),
        "versions": versions(),
        "citation": [CITATIONS[key] for key in (trainer.recipe.objective, "nnunet") if key in CITATIONS],
    }


def versions() -> dict[str, str]:
    """Versions of what the weights depend on."""
    found = {"python": platform.python_version()}
    for package in ("nnunet_ssl", "nnunetv2", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def volume_hashes(dataset_name: str, which: str = "volumes") -> dict[str, str]:
    """Content hash of every volume of a raw dataset, from the report of its import; empty where there is none.

    :param which: "volumes", those of imagesTr, or "test_volumes", which `bench prepare` records as well.
    """
    from nnunetv2.paths import nnUNet_raw

    if not nnUNet_raw.is_set():
        return {}
    report = Path(str(nnUNet_raw)) / dataset_name / REPORT
    if not report.is_file():
        return {}
    try:
        volumes = json.loads(report.read_text(encoding="utf-8"))[which]
        return {str(volume): str(value) for volume, value in volumes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # what a dataset was made of is good to know, not needed


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
