"""Going on with a downstream training (``--c``, ``--val``) from a file of which nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.checkpoints import load_optimizer, require_same_optimizer, require_same_tensors
from nnunet_ssl.nnunet.downstream import reports
from nnunet_ssl.nnunet.downstream.mean_teacher import MeanTeacher, MeanTeacherSettings
from nnunet_ssl.nnunet.downstream.network import bare
from nnunet_ssl.nnunet.reading import load_safely

NEEDED = ("network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch",
          "init_args", "inference_allowed_mirroring_axes", "ssl_downstream")  # fmt: skip


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint that a downstream trainer wrote. Raises UserError for any other file."""
    content = load_safely(path)
    missing = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    if missing or not all(isinstance(value, Tensor) for value in content["network_weights"].values()):
        raise UserError(
            f"{path} is no checkpoint of a downstream training of this package (no {', '.join(missing) or 'tensors'}); "
            "expected a file that the same trainer wrote. Remove it to start a new training without --c."
        )
    return content


def content(trainer: Any) -> dict[str, Any]:
    """What a checkpoint holds: nnU-Net's entries, ``ssl_downstream`` and, where there is one, the teacher's weights."""
    scaler, teacher = trainer.grad_scaler, trainer.teacher
    return {
        "network_weights": bare(trainer.network).state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": scaler.state_dict() if scaler is not None else None,
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        "ssl_downstream": reports.summary(trainer),
        **({"mean_teacher_weights": teacher.network.state_dict()} if teacher is not None else {}),
    }


def teacher_of(trainer: Any) -> MeanTeacher:
    """The teacher that ``ssl.mean_teacher`` asks for: a copy of the student, or as the checkpoint left it."""
    teacher = MeanTeacher(MeanTeacherSettings.parse(trainer.recipe.mean_teacher), trainer)
    if trainer.teacher_weights is not None:
        teacher.network.load_state_dict(trainer.teacher_weights)
    return teacher


def restore(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Put a trainer where ``checkpoint`` was written, as nnU-Net does, under the settings of its own plan.

    Raises UserError, with the trainer untouched, where the network or the optimiser is another one.
    """
    network = bare(trainer.network)
    require_same_tensors(network.state_dict(), checkpoint["network_weights"])
    require_same_optimizer(checkpoint["ssl_downstream"]["settings"]["optimizer"], trainer.settings.optimizer)
    network.load_state_dict(checkpoint["network_weights"])
    load_optimizer(trainer, checkpoint, trainer.settings.weight_decay)
    trainer.my_init_kwargs = checkpoint["init_args"]
    trainer.current_epoch = checkpoint["current_epoch"]
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
    trainer.teacher_weights = checkpoint.get("mean_teacher_weights")
    trainer.resumed = True
