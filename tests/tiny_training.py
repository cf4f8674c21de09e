"""Pretraining on a tiny dataset: by nnU-Net's command, or in this process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

TRAINER = "Vox2VecPretrainTrainer"
SHORT = {"pairs_per_batch": 2, "voxels_per_pair": 32, "projector_hidden": [16], "projector_out": 8, "num_epochs": 2,
         "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 2, "initial_lr": 1e-3}  # fmt: skip


def command(tiny: SimpleNamespace, *arguments: str, fold: str = "all", trainer: str = TRAINER) -> list[str]:
    """``nnUNetv2_train`` on this dataset, on the CPU."""
    script = str(Path(sys.executable).with_name("nnUNetv2_train"))
    where = [script, str(tiny.dataset_id), tiny.configuration, fold]
    return [*where, "-tr", trainer, "-p", tiny.plans_name, "-device", "cpu", *arguments]


def run(tiny: SimpleNamespace, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        command(tiny, *arguments, **more), env=tiny.env, stdin=subprocess.DEVNULL, capture_output=True,
        encoding="utf-8", errors="replace", timeout=600, check=False,
    )  # fmt: skip


def output_folder(tiny: SimpleNamespace, fold: str = "all", trainer: str = TRAINER) -> Path:
    name = f"{trainer}__{tiny.plans_name}__{tiny.configuration}"
    return Path(tiny.results) / tiny.dataset_name / name / f"fold_{fold}"


def in_process(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, fold: Any = "all", configuration: str | None = None,
    workers: int = 0, going_on: bool = False, trainer: str = TRAINER, **ssl: Any,
) -> Any:  # fmt: skip
    """A pretraining in this process, as with --c if ``going_on``; ``ssl`` overrides fields of the block."""
    found = getattr(importlib.import_module(f"nnunet_ssl.trainers.{trainer}"), trainer)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(getattr(tiny, name)))
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    base = Path(tiny.preprocessed) / tiny.dataset_name
    plans = json.loads((base / f"{tiny.plans_name}.json").read_text())
    if ssl:
        plans["configurations"][tiny.configuration].setdefault("ssl", {}).update(ssl)
    plans["continue_training"] = going_on
    dataset_json = json.loads((base / "dataset.json").read_text())
    configuration = configuration or tiny.configuration
    return found(plans, configuration, fold, dataset_json, torch.device("cpu"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
