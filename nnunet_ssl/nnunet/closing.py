"""What a pretraining leaves when it ends, besides its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ssl.nnunet import progress
from nnunet_ssl.nnunet.files import write_json


def write_summary(trainer: Any) -> None:
    """validation/summary.json, which nnU-Net's export to zip expects: the last epoch's numbers, and no Dice."""
    rows = progress.history(trainer.logger)
    last = {key: progress.json_value(value) for key, value in rows[-1].items()} if rows else {}
    write_json(
        Path(trainer.output_folder) / "validation" / "summary.json",
        {
            "foreground_mean": {},
            "mean": {},
            "metric_per_case": [],
            "ssl_metrics": last,
            "note": "self-supervised pretraining: nothing was segmented",
        },
    )


def next_command(trainer: Any) -> str:
    """The command that uses the weights."""
    target = (trainer.recipe.probe or {}).get("dataset", "LABELLED_DATASET_ID")
    weights = Path(trainer.output_folder) / "checkpoint_final.pth"
    return f"\nNext: nnunet_ssl adapt -d {target} -w {weights} --preprocess"
