"""Raw datasets and fingerprints of any size for the tests of planning: the planner reads numbers, hardly an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

INTENSITIES = {"mean": 40.0, "median": 35.0, "std": 120.0, "min": -900.0, "max": 1500.0,
               "percentile_00_5": -700.0, "percentile_99_5": 900.0}  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's three folders under a temporary one."""
    for part in ("raw", "preprocessed", "results"):
        (tmp_path / part).mkdir()
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


def raw_dataset(
    root: Path,
    number: int,
    channels: Sequence[str] = ("CT",),
    labelled: bool = False,
    shape: Sequence[int] = (150, 300, 300),
    spacing: Sequence[float] = (2.0, 1.0, 1.0),
    cases: int = 12,
    written: bool = False,
    listed: bool = True,
    intensities: dict[str, float] | None = None,
    seed: int = 0,
) -> SimpleNamespace:
    """A raw dataset whose fingerprint says ``cases`` images of ``shape`` voxels at ``spacing`` mm (z, y, x).

    The image files are 4^3 voxels, or as the fingerprint says if ``written``; then no fingerprint is made. ``listed``:
    dataset.json names the files, which spares nnU-Net a pool of processes.
    """
    name = f"Dataset{number:03d}_Planned"
    raw, preprocessed = root / "raw" / name, root / "preprocessed" / name
    (raw / "imagesTr").mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    # what else may lie there: nnU-Net's list of folds, a file that somebody broke
    (preprocessed / "splits_final.json").write_text('[{"train": [], "val": []}]')
    (preprocessed / "notes.json").write_text("{")
    rng = np.random.default_rng(seed)
    size = tuple(shape) if written else (4, 4, 4)
    for case in range(cases):
        for channel in range(len(channels)):
            _write(raw / "imagesTr" / f"c{case:03d}_{channel:04d}.nii.gz", _image(rng, size), spacing)
        if labelled:
            (raw / "labelsTr").mkdir(exist_ok=True)
            label = np.zeros(size, np.uint8)
            label[1:-1, 1:-1, 1:-1] = 1
            _write(raw / "labelsTr" / f"c{case:03d}.nii.gz", label, spacing)
    labels: dict[str, Any] = {"labels": {"background": 0, "organ": 1}} if labelled else {}
    content = {"channel_names": {str(i): c for i, c in enumerate(channels)}, "numTraining": cases,
               "file_ending": ".nii.gz", **labels}  # fmt: skip
    if listed and not written:
        files = [f"c{case:03d}" for case in range(cases)]
        content["dataset"] = {
            case: {
                "images": [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in range(len(channels))],
                "label": f"labelsTr/{case}.nii.gz",
            }
            for case in files
        }
    (raw / "dataset.json").write_text(json.dumps(content))
    if not written:
        fingerprint = {
            "spacings": [list(spacing)] * cases,
            "shapes_after_crop": [list(shape)] * cases,
            "foreground_intensity_properties_per_channel": {
                str(i): {**INTENSITIES, **(intensities or {})} for i in range(len(channels))
            },
            "median_relative_size_after_cropping": 1.0,
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        if not labelled:
            _pretend_masks(root, name, cases)
    return SimpleNamespace(name=name, raw=raw, preprocessed=preprocessed, number=number)


def _pretend_masks(root: Path, name: str, cases: int) -> None:
    """What `import` leaves: a mask as the label of every case."""
    raw = root / "raw" / name
    (raw / "labelsTr").mkdir()
    for case in range(cases):
        (raw / "labelsTr" / f"c{case:03d}.nii.gz").write_bytes(b"")
    content = json.loads((raw / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "foreground": 1}, "ssl_foreground": True}
    (raw / "dataset.json").write_text(json.dumps(content))


def _image(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Air with a body of soft tissue in the middle, HU."""
    image = np.full(size, -1000.0, np.float32)
    inner = tuple(slice(max(s // 6, 1), -max(s // 6, 1)) for s in size)
    image[inner] = 40.0
    return image + rng.normal(0, 20, size).astype(np.float32)


def _write(path: Path, array: np.ndarray, spacing: Sequence[float]) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    sitk.WriteImage(image, str(path))


def read_plans(dataset: SimpleNamespace, name: str) -> dict[str, Any]:
    """A plans file of a dataset."""
    return json.loads((dataset.preprocessed / f"{name}.json").read_text(encoding="utf-8"))


def write_checkpoint(
    path: Path, plans: dict[str, Any], configuration: str, channels: Sequence[str], seed: int = 0
) -> Path:
    """A pretraining checkpoint as the trainer writes it, with random weights."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ssl.nnunet.network import build_backbone

    manager = PlansManager(plans).get_configuration(configuration)
    torch.manual_seed(seed)
    network = build_backbone(manager, len(channels), 2)
    block = {
        "format": 1,
        "objective": manager.configuration["ssl"].get("objective", "vox2vec"),
        "recipe": manager.configuration["ssl"],
        "plans": plans,
        "configuration": configuration,
        "dataset_json": {"channel_names": {str(i): c for i, c in enumerate(channels)}},
    }
    weights = {**network.state_dict(), "projector.0.weight": torch.zeros(2, 2)}
    torch.save({"network_weights": weights, "trainer_name": "Vox2VecPretrainTrainer", "ssl": block}, path)
    return path
