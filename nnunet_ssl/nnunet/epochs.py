"""An epoch of a pretraining: its iterations, its measurements, what it writes, and where it may stop."""

from __future__ import annotations

import time
from os.path import join
from typing import Any, NoReturn

from nnunet_ssl.nnunet import devices, progress
from nnunet_ssl.nnunet.stopping import StopRequest
from nnunet_ssl.nnunet.watching import average, gather_objects, smoothed

SECONDS_BETWEEN_PLOTS = 20.0


def run(trainer: Any, stop: StopRequest) -> None:
    """Run the rest of the trainer's current epoch, from ``iteration_in_epoch`` on."""
    began = time.monotonic() - trainer.seconds_before
    trainer.network.train()
    while trainer.iteration_in_epoch < trainer.num_iterations_per_epoch:
        output = trainer.train_step(next(trainer.dataloader_train))
        trainer.iteration_in_epoch += 1
        trainer.epoch_outputs.append(output)
        if devices.any_process(stop.signum is not None, trainer.device):
            stop_here(trainer, stop, time.monotonic() - began)
    finish(trainer, began)
    if devices.any_process(stop.signum is not None, trainer.device) and trainer.current_epoch < trainer.num_epochs:
        stop_here(trainer, stop, 0.0)


def stop_here(trainer: Any, stop: StopRequest, seconds: float) -> NoReturn:
    """Save everything that ``--c`` needs to go on at the next iteration, and end the process."""
    trainer.save_checkpoint(join(trainer.output_folder, "checkpoint_latest.pth"), seconds)
    if trainer.local_rank == 0:
        _plot(trainer, progress.history(trainer.logger), now=True)
    trainer.print_to_log_file(
        f"{stop.name or 'Another process'} asked to stop: saved in epoch {trainer.current_epoch} after iteration "
        f"{trainer.iteration_in_epoch} of {trainer.num_iterations_per_epoch}. Continue with the same command and --c."
    )
    raise SystemExit(stop.exit_code)


def finish(trainer: Any, began: float) -> None:
    """Measure, log, save. The trainer already stands at the start of the next epoch when anything is written."""
    epoch = trainer.current_epoch
    metrics = {"epoch": epoch, **average(gather_objects(average(trainer.epoch_outputs))), **trainer.validate()}
    before = trainer.logger.local_logger.my_fantastic_logging.get("ema_retrieval_at_1", [None])[-1]
    metrics["ema_retrieval_at_1"] = smoothed(before, metrics.get("retrieval_at_1"))
    metrics["probe_dice"] = probe_dice(trainer)
    metrics["lr"] = float(trainer.optimizer.param_groups[0]["lr"])
    metrics["seconds"] = time.monotonic() - began
    progress.record(trainer.logger, metrics, epoch)
    trainer.epoch_outputs, trainer.seconds_before, trainer.iteration_in_epoch = [], 0.0, 0
    trainer.current_epoch += 1
    show_and_save(trainer)


def probe_dice(trainer: Any) -> float | None:
    """Dice of the online probe where this epoch has one (every ``probe.every`` epochs, and the last)."""
    last = trainer.current_epoch == trainer.num_epochs - 1
    if trainer.probe is None or ((trainer.current_epoch + 1) % int(trainer.recipe.probe.get("every", 10)) and not last):
        return None
    dice = float(trainer.probe.measure(trainer.bare_network())["dice"]) if trainer.local_rank == 0 else None
    found: float | None = gather_objects(dice)[0]
    return found


def show_and_save(trainer: Any) -> None:
    """The epoch's line, metrics.jsonl and progress.png; checkpoints where they are due."""
    rows = progress.history(trainer.logger)
    trainer.print_to_log_file(f"Epoch {rows[-1]['epoch']}: {progress.epoch_line(rows[-1])}")
    warning = progress.collapse_warning(rows[-1], trainer.recipe.min_effective_rank)
    if warning:
        trainer.print_to_log_file(warning)
    if trainer.local_rank == 0:
        progress.write_metrics(trainer.output_folder, rows)
        _plot(trainer, rows, now=trainer.current_epoch == trainer.num_epochs)
    ema = rows[-1]["ema_retrieval_at_1"]
    # Before checkpoint_latest: what that one holds is then all that an uninterrupted run would know.
    if ema is not None and (trainer._best_ema is None or ema > trainer._best_ema):
        trainer._best_ema = ema
        trainer.save_checkpoint(join(trainer.output_folder, "checkpoint_best.pth"))
    if trainer.current_epoch % trainer.save_every == 0 and trainer.current_epoch < trainer.num_epochs:
        trainer.save_checkpoint(join(trainer.output_folder, "checkpoint_latest.pth"))


def _plot(trainer: Any, rows: list[dict[str, Any]], now: bool) -> None:
    # Drawing takes about a second: epochs may be shorter.
    if now or time.monotonic() - trainer.plotted_at > SECONDS_BETWEEN_PLOTS:
        progress.plot(trainer.output_folder, rows)
        trainer.plotted_at = time.monotonic()
