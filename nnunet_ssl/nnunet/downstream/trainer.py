"""The trainer behind every downstream protocol: stock nnU-Net, with the settings of the plan's ``ssl`` block."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import checkpoints
from nnunet_ssl.nnunet.devices import in_bfloat16, obey_thread_limit
from nnunet_ssl.nnunet.downstream import continuing, reports, starting, steps
from nnunet_ssl.nnunet.downstream.body import DatasetWithBody
from nnunet_ssl.nnunet.downstream.head_init import fold_moments, prepare_head
from nnunet_ssl.nnunet.downstream.loss import Vox2VecLoss
from nnunet_ssl.nnunet.downstream.mean_teacher import MeanTeacher
from nnunet_ssl.nnunet.downstream.network import DownstreamNetwork, bare, build_network, head_and_backbone
from nnunet_ssl.nnunet.downstream.protocols import Protocol
from nnunet_ssl.nnunet.downstream.sampling import (
    case_groups,
    case_subjects,
    choose_cases,
    record_cases,
    seed_generators,
)
from nnunet_ssl.nnunet.downstream.schedule import StagedSchedule, build_optimizer
from nnunet_ssl.nnunet.downstream.settings import read_recipe, resolve
from nnunet_ssl.nnunet.masks import mask_maker
from nnunet_ssl.nnunet.recipe import ssl_block
from nnunet_ssl.nnunet.splits import Split, stock_split
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
        self.teacher: MeanTeacher | None = None
        self.teacher_weights: dict | None = None  # of a checkpoint that is continued
        self.draws_unlabelled = False
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
        obey_thread_limit()  # here, where the predictor comes by as well
        recipe = read_recipe(configuration_manager)
        network = build_network(resolve(recipe, cls.protocol), cls.protocol, configuration_manager, num_input_channels,
                                num_output_channels, recipe.regions, enable_deep_supervision)  # fmt: skip
        return in_bfloat16(network) if recipe.amp == "bf16" else network

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
        if self.recipe.mean_teacher is not None and self.protocol.staged:
            self.teacher = continuing.teacher_of(self)
        if self.local_rank == 0:
            record_cases(self.output_folder, self.recipe.labelled, self.do_split()[0], self.fold, self.resumed)
            for line in reports.opening(self, report):
                self.print_to_log_file(line, add_timestamp=False)

    # ---- data

    def do_split(self) -> tuple[list[str], list[str]]:
        if self.draws_unlabelled:
            return self.unlabelled_cases(), self.unlabelled_cases()
        train, validation = self._stock_split()
        chosen = self._labelled(train)
        return chosen, (chosen if self.fold == "all" else validation)

    def _stock_split(self) -> Split:
        return stock_split(self.fold, super().do_split)

    def _labelled(self, train: list[str]) -> list[str]:
        groups = case_groups(self.preprocessed_dataset_folder_base, self.dataset_json)
        return choose_cases(train, self.recipe.labelled, groups, case_subjects(self.dataset_json))

    def unlabelled_cases(self) -> list[str]:
        """The fold's training cases that ``ssl.labelled`` leaves out."""
        train, _ = self._stock_split()
        return sorted(set(train) - set(self._labelled(train)))

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

    def on_epoch_start(self) -> None:
        seed_generators(self.recipe.seed, self.current_epoch + 1, self.local_rank)
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.step_in_epoch = 0

    def train_step(self, batch: dict) -> dict:
        return steps.train_step(self, batch)

    def validation_step(self, batch: dict) -> dict:
        return super().validation_step(steps.with_body(self, batch))

    # ---- end

    def on_train_end(self) -> None:
        network = bare(self.network)
        if self.teacher is not None:  # its weights are the smoother ones
            network.load_state_dict(self.teacher.network.state_dict())
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
        checkpoints.write(filename, continuing.content(self))

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        if not self.was_initialized:
            self.initialize()
        found = filename_or_checkpoint
        continuing.restore(self, found if isinstance(found, dict) else continuing.read(found))
