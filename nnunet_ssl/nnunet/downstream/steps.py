"""A step of a downstream training: nnU-Net's, with a backbone that may rest and a teacher that may help."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast

from nnunet_ssl.nnunet.downstream.loss import split_target
from nnunet_ssl.nnunet.downstream.network import bare, head_and_backbone

CLIP = 12  # nnU-Net's


def with_body(trainer: Any, batch: dict) -> dict:
    """Under the paper's protocol: take the body out of the target and hand it to the loss."""
    target = batch["target"]
    if not trainer.settings.sigmoid:
        return batch
    if target.shape[1] == 1:  # the dataset came without body masks
        target = torch.cat([target, torch.ones_like(target)], 1)
    manager = trainer.label_manager
    regions = manager.foreground_regions if manager.has_regions else None
    target, body = split_target(target, regions, manager.ignore_label)
    trainer.loss.body = body.to(trainer.device, non_blocking=True)
    return {**batch, "target": target}


def enter(trainer: Any) -> bool:
    """Set rates and modes of this step; True while the head learns alone."""
    step = trainer.current_epoch * trainer.num_iterations_per_epoch + trainer.step_in_epoch
    trainer.step_in_epoch += 1
    trainer.lr_scheduler.at(step)
    head_only: bool = trainer.lr_scheduler.head_only(step)
    network = bare(trainer.network)
    if trainer.protocol.staged and network.encoder.training == head_only:  # resting means eval mode, too
        network.encoder.train(not head_only)
        network.decoder.train(not head_only)
    return head_only


def loss_of(trainer: Any, data: Tensor, target: Any) -> Tensor:
    """nnU-Net's loss and, with a teacher, the consistency on unlabelled patches: one forward pass for both."""
    if trainer.teacher is None:
        loss: Tensor = trainer.loss(trainer.network(data), target)
        return loss
    patches = trainer.teacher.patches()
    output = trainer.network(torch.cat([data, trainer.teacher.noisy(patches)]))
    labelled, unlabelled = (
        [level[part] for level in output] if isinstance(output, list | tuple) else output[part]
        for part in (slice(len(data)), slice(len(data), None))
    )
    loss = trainer.loss(labelled, target)
    return loss + trainer.teacher.consistency(unlabelled, patches, trainer.lr_scheduler.now)


def train_step(trainer: Any, batch: dict) -> dict:
    """One step; {"loss": its loss}."""
    batch, head_only = with_body(trainer, batch), enter(trainer)
    data, target = batch["data"].to(trainer.device, non_blocking=True), batch["target"]
    target = (
        [t.to(trainer.device, non_blocking=True) for t in target]
        if isinstance(target, list)
        else target.to(trainer.device, non_blocking=True)
    )
    trainer.optimizer.zero_grad(set_to_none=True)
    with autocast("cuda") if trainer.device.type == "cuda" else dummy_context():
        loss = loss_of(trainer, data, target)
    scaler = trainer.grad_scaler
    (scaler.scale(loss) if scaler is not None else loss).backward()
    if scaler is not None:
        scaler.unscale_(trainer.optimizer)
    if head_only:
        # Computed and thrown away: DDP waits for every gradient, and --c finds the same parameter groups.
        for parameter in head_and_backbone(trainer.network)[1]:
            parameter.grad = None
    torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), CLIP)
    if scaler is not None:
        scaler.step(trainer.optimizer)
        scaler.update()
    else:
        trainer.optimizer.step()
    if trainer.teacher is not None:
        trainer.teacher.follow(trainer.lr_scheduler.now)
    return {"loss": loss.detach().cpu().numpy()}
