"""The trainer that pretrains: stock nnU-Net's run, folders and command line around another batch, step and report."""

from __future__ import annotations

import time
from dataclasses import fields
from os.path import join
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssl.nnunet import checkpoints, closing, devices, epochs, preparing, settings
from nnunet_ssl.nnunet.loader import PairLoader
from nnunet_ssl.nnunet.network import PretrainNetwork, build_backbone
from nnunet_ssl.nnunet.optimisation import Schedule, build_optimizer
from nnunet_ssl.nnunet.recipe import parse, ssl_block
from nnunet_ssl.nnunet.stopping import StopRequest, show_user_errors_plainly
from nnunet_ssl.nnunet.watching import Metrics, average, gather_objects, measure
from nnunet_ssl.objectives import objective_of
from nnunet_ssl.recipes import BaseRecipe
from nnunet_ssl.step import step
from nnunet_ssl.views import ViewPair

STOCK_FIELDS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr", "weight_decay",
                "save_every")  # fmt: skip


class PretrainTrainer(nnUNetTrainer):
    """Pretrains the plan's network by the Recipe in the plan's ``ssl`` block.

    An epoch's numbers, the two losses apart, come from held-back volumes. ``checkpoint_latest.pth`` is written every
    ``save_every`` epochs (10 by default: what a kill costs at most), ``checkpoint_best.pth`` when the smoothed
    retrieval@1 is highest. SIGTERM and Ctrl-C finish the iteration, save, and end; ``--c`` goes on there.
    """

    several_machines: ClassVar[bool] = True  # LOCAL_RANK is the GPU, the global rank does input and output
    recipe_class: ClassVar[type[BaseRecipe]]  # of the subclass that has the objective's name

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        show_user_errors_plainly()
        preparing.require_folders()
        # Before the stock constructor makes folders: a plan that cannot be used leaves nothing behind.
        self.recipe = preparing.checked_recipe(PlansManager(plans), configuration, self.recipe_class)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.device = devices.local_device(device)
        for name in STOCK_FIELDS:
            setattr(self, name, getattr(self.recipe, name))
        self.enable_deep_supervision = False
        self.iteration_in_epoch = 0
        self.epoch_outputs: list[Metrics] = []
        self.seconds_before = 0.0
        self.plotted_at = time.monotonic()
        self.enhance = preparing.enhancer(self)
        self.probe: Any = None

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        show_user_errors_plainly()  # the stock predictor comes here without the constructor
        block = ssl_block(configuration_manager)
        recipe = parse(block, settings.recipe_class(block) if "objective" in block else cls.recipe_class)
        channels = (num_input_channels, num_output_channels)
        return PretrainNetwork(build_backbone(configuration_manager, *channels, enable_deep_supervision), recipe)

    def initialize(self) -> None:
        """As stock, but seeded, on the local device, and able to run without CUDA in several processes."""
        if self.was_initialized:
            raise RuntimeError("initialize was called twice")
        preparing.require_preprocessed(self)
        devices.obey_thread_limit()
        self._set_batch_size_and_oversample()
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        torch.manual_seed(self.recipe.seed)
        network = self.build_network_architecture(
            self.plans_manager, self.configuration_manager, self.num_input_channels,
            self.label_manager.num_segmentation_heads, self.enable_deep_supervision,
        )  # fmt: skip
        preparing.check_patch(self.configuration_manager.patch_size, network)
        self.autocast_dtype, self.grad_scaler = devices.precision(self.recipe.amp, self.device)
        self.network = devices.suit(network.to(self.device), self.device, self.autocast_dtype)
        if self._do_i_compile():
            for name in ("levels", "stock_levels"):  # what has fixed shapes: points differ in number between batches
                setattr(self.network, name, torch.compile(getattr(self.network, name)))
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = devices.distribute(self.network, self.device)
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.loss = self._build_loss()
        self.was_initialized = True
        self.logger.update_config({"hparas": {f.name: getattr(self.recipe, f.name) for f in fields(self.recipe)}})

    def _set_batch_size_and_oversample(self) -> None:
        self.batch_size = self.recipe.pairs_per_batch or self.configuration_manager.batch_size

    def _build_loss(self) -> None:
        return None  # the criterion is part of nnunet_ssl.step

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = build_optimizer(self.network, self.recipe)
        return optimizer, Schedule(optimizer, self.recipe)

    def bare_network(self) -> PretrainNetwork:
        """The network without the wrapper for several processes."""
        network = self.network
        return network.module if isinstance(network, DistributedDataParallel) else network  # type: ignore[return-value]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        self.bare_network().decoder.deep_supervision = enabled

    def plot_network_architecture(self) -> None:
        """Nothing: stock draws it with a package that no longer works."""

    def do_split(self) -> tuple[list[str], list[str]]:
        return preparing.split(self, super().do_split)

    def get_dataloaders(self) -> tuple[PairLoader, PairLoader | None]:
        return preparing.loaders(self, start=self.global_iteration)

    def close_loaders(self) -> None:
        """End the worker processes."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if loader is not None:
                loader.close()

    @property
    def global_iteration(self) -> int:
        """Training iterations done since the start, over all epochs."""
        return self.current_epoch * self.num_iterations_per_epoch + self.iteration_in_epoch

    def views(self, batch: Any, stream: int, iteration: int) -> ViewPair:
        """The two views of a batch of the loader, on the device, with their intensities."""
        generator = devices.seeded(self.device, self.recipe.seed, stream, iteration, self.local_rank)
        return objective_of(self.recipe).assemble(
            batch.to(self.device, non_blocking=True), self.configuration_manager.patch_size, self.recipe,
            lambda views: self.enhance(views, generator), generator,
        )  # fmt: skip

    def forward_step(self, batch: Any, stream: int, iteration: int) -> tuple[torch.Tensor, Metrics, Any, Any]:
        """A batch of the loader -> loss, its terms, embeddings, ViewPair."""
        pair = self.views(batch, stream, iteration)
        with devices.autocast(self.device, self.autocast_dtype):
            loss, terms, embeddings = step(self.network, pair, self.recipe)
        return loss, {f"term_{key}": float(value) for key, value in terms.items()}, embeddings, pair

    def train_step(self, batch: Any) -> Metrics:
        self.lr_scheduler.at(self.global_iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms, _, _ = self.forward_step(batch[0], 0, self.global_iteration)
        value = float(loss.detach())
        devices.require_finite(value, batch[1], self.grad_scaler)
        norm = devices.backward_and_step(loss, self.network, self.optimizer, self.grad_scaler, self.recipe.clip)
        return {"train_loss": value, **terms, "grad_norm": norm, "redrawn": float(batch[2])}

    def validation_step(self, batch: Any, index: int = 0) -> Metrics:
        loss, _, embeddings, pair = self.forward_step(batch[0], 1, index)
        return {"val_loss": float(loss), **measure(embeddings, pair.valid, batch[1], self.bare_network().read_channels)}

    @torch.no_grad()
    def validate(self) -> Metrics:
        """Means over the held-back pairs, the same in every epoch; {} where num_val_iterations_per_epoch is 0."""
        if self.dataloader_val is None:
            _, self.dataloader_val = preparing.loaders(self, start=0, only_validation=True)
        self.network.eval()
        outputs = [self.validation_step(next(self.dataloader_val), i) for i in range(self.num_val_iterations_per_epoch)]
        return average(gather_objects(average(outputs))) if outputs else {}

    # the run

    def on_train_start(self) -> None:
        super().on_train_start()
        checkpoints.tidy(self)
        for line in preparing.announcement(self):
            self.print_to_log_file(line, add_timestamp=False)
        if self.recipe.probe is not None:
            from nnunet_ssl.nnunet.online_probe import OnlineProbe

            self.probe = OnlineProbe(self.recipe.probe, self)

    def run_training(self) -> None:
        with StopRequest() as stop:
            try:
                self.on_train_start()
                while self.current_epoch < self.num_epochs:
                    epochs.run(self, stop)
                self.on_train_end()
            finally:
                self.close_loaders()
            if stop.signum is not None:
                self.print_to_log_file("Asked to stop: no report. Write it with the same command and --val.")
                raise SystemExit(stop.exit_code)

    def on_train_end(self) -> None:
        self.save_checkpoint(join(self.output_folder, "checkpoint_final.pth"))
        if self.local_rank == 0:
            Path(self.output_folder, "checkpoint_latest.pth").unlink(missing_ok=True)
        self.print_to_log_file("Training done.")

    def save_checkpoint(self, filename: str, seconds: float = 0.0) -> None:
        """Write a checkpoint as stock lays it out, plus ``ssl`` and the running epoch (``seconds`` old)."""
        outputs = gather_objects(self.epoch_outputs)
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoints.write(filename, checkpoints.of_trainer(self, outputs, seconds))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        if not self.was_initialized:
            self.initialize()
        checkpoint = filename_or_checkpoint
        checkpoints.restore(self, checkpoint if isinstance(checkpoint, dict) else checkpoints.read(checkpoint))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """The representation report in place of predictions: this network has no segmentation to score."""
        self.network.eval()
        if self.local_rank == 0:
            from nnunet_ssl.nnunet.report import write_report

            try:
                write_report(self)
            finally:
                self.close_loaders()
            closing.write_summary(self)
            self.print_to_log_file(closing.next_command(self), add_timestamp=False)
        if self.is_ddp:
            dist.barrier()
