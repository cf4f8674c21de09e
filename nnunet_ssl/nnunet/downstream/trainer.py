"""The trainer behind every downstream protocol: stock nnU-Net, with the settings of the plan's ``ssl`` block."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from torch import autocast, nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import checkpoints
from nnunet_ssl.nnunet.downstream import continuing, reports, starting
from nnunet_ssl.nnunet.downstream.body import DatasetWithBody
from nnunet_ssl.nnunet.downstream.head_init import fold_moments, prepare_head
from nnunet_ssl.nnunet.downstream.loss import Vox2VecLoss, split_target
from nnunet_ssl.nnunet.downstream.network import DownstreamNetwork, bare, build_network, head_and_backbone
from nnunet_ssl.nnunet.downstream.protocols import Protocol
from nnunet_ssl.nnunet.downstream.sampling import choose_cases, record_cases, seed_generators
from nnunet_ssl.nnunet.downstream.schedule import StagedSchedule, build_optimizer
from nnunet_ssl.nnunet.downstream.settings import read_recipe, resolve
from nnunet_ssl.nnunet.masks import mask_maker
from nnunet_ssl.nnunet.recipe import ssl_block
from nnunet_ssl.nnunet.stopping import show_user_errors_plainly

NAMES = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every")


class DownstreamTrainer(nnUNetTrainer):
    """Trains a segmentation from pretrained weights as its ``protocol`` says; a subclass sets nothing else.

    Losses, augmentation, region-based labels, ignore label, validation and prediction are nnU-Net's. Cascades are
    refused. Works with a plan without ``ssl`` block too (all defaults).
    """

    protocol: Protocol

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):  # noqa: B008 (nnU-Net's signature)
        show_user_errors_plainly()
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise UserError(
                f"Configuration {configuration} is the second stage of a cascade, which {type(self).__name__} does not "
                "train: pretrained weights know no segmentation as input. Use 3d_fullres or 3d_lowres."
            )
        self.recipe = read_recipe(self.configuration_manager)
        self.settings = resolve(self.recipe, self.protocol)
        for name in NAMES:
            setattr(self, name, getattr(self.recipe, name))
        self.initial_lr, self.weight_decay = self.settings.initial_lr, self.settings.weight_decay
        self.oversample_foreground_percent = self.settings.oversample_foreground_percent
        self.enable_deep_supervision = self.settings.head == "stock"
        self.resumed = False
        self.hash_before = ""
        self.step_in_epoch = 0
        if self.settings.sigmoid and self.label_manager.has_regions:
            self._note_regions()

    def _note_regions(self) -> None:
        # The predictor builds the network from the plan alone, which does not know whether labels are regions.
        for configuration in (self.configuration_manager.configuration,
                              self.plans_manager.plans["configurations"][self.configuration_name]):  # fmt: skip
            configuration["ssl"] = {**ssl_block(self.configuration_manager), "regions": True}
        self.recipe = read_recipe(self.configuration_manager)

    @classmethod
    def build_network_architecture(cls, plans_manager: Any, configuration_manager: Any, num_input_channels: int,
                                   num_output_channels: int, enable_deep_supervision: bool = True
                                   ) -> nn.Module:  # fmt: skip
        """nnU-Net's factory, called on the class (the predictor has no instance): plan + protocol decide the head."""
        recipe = read_recipe(configuration_manager)
        return build_network(resolve(recipe, cls.protocol), cls.protocol, configuration_manager, num_input_channels,
                             num_output_channels, recipe.regions, enable_deep_supervision)  # fmt: skip

    # ---- start

    def initialize(self) -> None:
        seed_generators(self.recipe.seed, 0, 0)
        super().initialize()
        self.hash_before = starting.backbone_hash(self.network)

    def configure_optimizers(self) -> tuple[Any, Any]:
        optimizer = build_optimizer(self.settings, *head_and_backbone(self.network))
        schedule = StagedSchedule(optimizer, self.settings, self.num_epochs, self.num_iterations_per_epoch,
                                  self.protocol.staged)  # fmt: skip
        return optimizer, schedule

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        report = None
        if not self.resumed:
            folder = self.output_folder if self.local_rank == 0 else None
            report = starting.start_weights(self.network, self.hash_before, self.recipe, self.protocol.pretrained,
                                            folder, type(self).__name__)  # fmt: skip
        super().on_train_start()
        checkpoints.tidy(self)
        if not self.resumed:
            prepare_head(self)
        if self.local_rank == 0:
            record_cases(self.output_folder, self.recipe.labelled, self.do_split()[0], self.fold, self.resumed)
            for line in reports.opening(self, report):
                self.print_to_log_file(line, add_timestamp=False)

    # ---- data

    def do_split(self) -> tuple[list[str], list[str]]:
        train, validation = super().do_split()
        chosen = choose_cases(train, self.recipe.labelled)
        return chosen, (chosen if self.fold == "all" else validation)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        datasets = super().get_tr_and_val_datasets()
        make_mask = mask_maker(self.plans_manager, self.configuration_manager, self.dataset_json)
        if self.settings.sigmoid and make_mask is not None:
            return DatasetWithBody(datasets[0], make_mask), DatasetWithBody(datasets[1], make_mask)
        return datasets

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        found = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        rotation, dummy_2d, initial_patch_size, mirror = found
        if self.recipe.mirror_axes is not None:
            if any(axis >= len(self.configuration_manager.patch_size) for axis in self.recipe.mirror_axes):
                raise UserError(f"ssl.mirror_axes is {self.recipe.mirror_axes}, expected axes of the patch "
                                f"{self.configuration_manager.patch_size}, counted from 0.")  # fmt: skip
            mirror = tuple(sorted(self.recipe.mirror_axes)) or None
        if self.settings.sigmoid:  # no augmentation: patches are cut at their final size
            mirror, initial_patch_size = None, self.configuration_manager.patch_size
        self.inference_allowed_mirroring_axes = mirror
        return rotation, dummy_2d, initial_patch_size, mirror

    def get_training_transforms(self, patch_size: Any, rotation_for_DA: Any, deep_supervision_scales: Any, *args: Any,
                                **kwargs: Any) -> Any:  # fmt: skip
        if self.settings.sigmoid:
            return self.get_validation_transforms(deep_supervision_scales)
        return super().get_training_transforms(patch_size, rotation_for_DA, deep_supervision_scales, *args, **kwargs)

    def get_validation_transforms(self, deep_supervision_scales: Any, *args: Any, **kwargs: Any) -> Any:
        if self.settings.sigmoid:
            return super().get_validation_transforms(deep_supervision_scales)  # regions are split with the body, later
        return super().get_validation_transforms(deep_supervision_scales, *args, **kwargs)

    # ---- steps

    def _build_loss(self) -> nn.Module:
        if not self.settings.sigmoid:
            return super()._build_loss()
        manager = self.label_manager
        return Vox2VecLoss(manager.num_segmentation_heads, manager.has_regions, manager.ignore_label)

    def _batch(self, batch: dict) -> dict:
        """Under the paper's protocol: take the body out of the target and hand it to the loss."""
        target = batch["target"]
        if not self.settings.sigmoid:
            return batch
        if target.shape[1] == 1:  # the dataset came without body masks
            target = torch.cat([target, torch.ones_like(target)], 1)
        manager = self.label_manager
        regions = manager.foreground_regions if manager.has_regions else None
        target, body = split_target(target, regions, manager.ignore_label)
        self.loss.body = body.to(self.device, non_blocking=True)
        return {**batch, "target": target}

    def on_epoch_start(self) -> None:
        seed_generators(self.recipe.seed, self.current_epoch + 1, self.local_rank)
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.step_in_epoch = 0

    def _enter_step(self) -> bool:
        """Set rates and modes of this step; True while the head learns alone."""
        step = self.current_epoch * self.num_iterations_per_epoch + self.step_in_epoch
        self.step_in_epoch += 1
        self.lr_scheduler.at(step)
        head_only = self.lr_scheduler.head_only(step)
        network = bare(self.network)
        if self.protocol.staged and network.encoder.training == head_only:  # resting means eval mode, too
            network.encoder.train(not head_only)
            network.decoder.train(not head_only)
        return head_only

    def train_step(self, batch: dict) -> dict:
        batch, head_only = self._batch(batch), self._enter_step()
        data, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        target = ([t.to(self.device, non_blocking=True) for t in target] if isinstance(target, list)
                  else target.to(self.device, non_blocking=True))  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        with autocast("cuda") if self.device.type == "cuda" else dummy_context():
            loss = self.loss(self.network(data), target)
        (self.grad_scaler.scale(loss) if self.grad_scaler is not None else loss).backward()
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        if head_only:
            # Computed and thrown away: DDP waits for every gradient, and --c finds the same parameter groups.
            for parameter in head_and_backbone(self.network)[1]:
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)  # nnU-Net's
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: dict) -> dict:
        return super().validation_step(self._batch(batch))

    # ---- end

    def on_train_end(self) -> None:
        network = bare(self.network)
        if isinstance(network, DownstreamNetwork) and network.standardise and self.settings.head == "linear":
            fold_moments(network)
        super().on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        self.print_to_log_file(reports.next_command(self), add_timestamp=False)

    # ---- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's entries plus ``ssl_downstream``; the file is whole or the earlier one, and safe to load."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoints.write(filename, {
            "network_weights": bare(self.network).state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "ssl_downstream": reports.summary(self),
        })  # fmt: skip

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        if not self.was_initialized:
            self.initialize()
        found = filename_or_checkpoint
        continuing.restore(self, found if isinstance(found, dict) else continuing.read(found))
