"""A tiny preprocessed dataset with its plan, written directly: what stock preprocessing would leave, in a second."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[1]
CT = {"mean": 0.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0,
      "min": -1000.0, "max": 1000.0, "median": 0.0}  # fmt: skip
ARCHITECTURES = {
    "plain": ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "n_conv_per_stage"),
    "resenc": ("dynamic_network_architectures.architectures.unet.ResidualEncoderUNet", "n_blocks_per_stage"),
}


def tiny_dataset(
    root: Path | str,
    ndim: int = 3,
    channels: int = 1,
    cases: int = 4,
    labelled: bool = False,
    network: str = "plain",
    ssl: dict[str, Any] | None = None,
    configuration: str | None = None,
    *,
    dataset_id: int = 901,
    modality: str = "CT",
    shape: tuple[int, int, int] = (20, 24, 28),
    patch: tuple[int, ...] | None = None,
    batch_size: int = 2,
    features: tuple[int, ...] = (8, 12, 16),
    strides: list[list[int]] | None = None,
    norm: str = "instance",
    marked: bool = True,
    seed: int = 0,
) -> SimpleNamespace:
    """Write raw images, preprocessed ``.b2nd`` and ``nnsslTestPlans.json`` under ``root`` (nnU-Net's three folders).

    ndim       : 3 -> ``3d_fullres``, 2 -> ``2d`` (the images stay volumes, as in nnU-Net's own 2d configuration)
    labelled   : labels body and organ (splits_final.json with two folds); otherwise the body mask as label 1,
                 with ``ssl_foreground`` in dataset.json unless ``marked`` is False
    ssl        : the configuration's ssl block; None leaves it out
    modality   : "CT" (CTNormalization, HU) or anything else (ZScoreNormalization)
    Gives raw, preprocessed, results, dataset_id, dataset_name, plans_name, configuration, patch, env (for subprocess).
    """
    root = Path(root)
    name = f"Dataset{dataset_id:03d}_Tiny"
    configuration = configuration or ("3d_fullres" if ndim == 3 else "2d")
    patch = tuple(patch or (16,) * ndim)
    folders = {part: root / f"nnUNet_{part}" for part in ("raw", "preprocessed", "results")}
    identifier = f"nnsslTestPlans_{configuration}"
    base, raw = folders["preprocessed"] / name, folders["raw"] / name
    for folder in (base / identifier, base / "gt_segmentations", raw / "imagesTr", raw / "labelsTr",
                   folders["results"]):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = [f"case_{index:03d}" for index in range(cases)]
    for case in names:
        images, organs = _subject(rng, shape, channels)
        _write_case(case, images, organs if labelled else (organs > 0).astype(np.int8), base, raw, identifier, modality)
    labels = {"background": 0, "body": 1, "organ": 2} if labelled else {"background": 0, "foreground": 1}
    dataset = {"channel_names": {str(c): modality for c in range(channels)}, "labels": labels, "numTraining": cases,
               "file_ending": ".nii.gz", "name": name}  # fmt: skip
    if marked and not labelled:
        dataset["ssl_foreground"] = True
    plan = {
        "batch_size": batch_size,
        "patch_size": list(patch),
        "architecture": _architecture(network, ndim, features, strides, norm),
    }
    plans = _plans(name, configuration, identifier, plan, shape, channels, modality)
    if ssl is not None:
        plans["configurations"][configuration]["ssl"] = ssl
    _write(base / "nnsslTestPlans.json", plans)
    _write(base / "dataset.json", dataset)
    _write(raw / "dataset.json", dataset)
    _write(base / "dataset_fingerprint.json", _fingerprint(shape, cases, channels))
    if cases > 1:
        halves = names[: cases // 2], names[cases // 2 :]
        splits = [{"train": halves[1], "val": halves[0]}, {"train": halves[0], "val": halves[1]}]
        _write(base / "splits_final.json", splits)
    return SimpleNamespace(
        **folders, dataset_id=dataset_id, dataset_name=name, plans_name="nnsslTestPlans", patch=patch, cases=names,
        configuration=configuration, preprocessed_cases=base / identifier, env=environment(**folders),
    )  # fmt: skip


def environment(raw: Path, preprocessed: Path, results: Path) -> dict[str, str]:
    """The environment of a test's subprocess: nnU-Net's folders, one thread, no compilation, our trainers found."""
    return {
        **os.environ,
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(preprocessed),
        "nnUNet_results": str(results),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "nnUNet_extTrainer": str(REPOSITORY / "nnunet_ssl" / "discovery"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }


def _subject(rng: np.random.Generator, shape: tuple[int, ...], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """One body with two organs: images (C, z, y, x) in HU-like numbers, organs (z, y, x) 0 air 1 body ..."""
    zyx = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    centre = rng.uniform(-0.1, 0.1, 3)[:, None, None, None]
    radius = np.sqrt((((zyx - centre) / np.array([1.6, 0.85, 0.85])[:, None, None, None]) ** 2).sum(0))
    organ = np.sqrt((((zyx - centre - np.array([0, 0.1, -0.35])[:, None, None, None]) / 0.35) ** 2).sum(0))
    organs = np.where(radius < 1, 1, 0).astype(np.int8)
    organs[organ < 1] = 2
    images = np.empty((channels, *shape), np.float32)
    for channel in range(channels):
        value = np.choose(organs, [-1000.0, 40.0 + 100 * channel, 160.0])
        images[channel] = value + rng.normal(0, 20, shape) + 60 * np.sin(4 * zyx[channel % 3] + 2 * zyx[2])
    return images, organs


def _write_case(
    case: str, images: np.ndarray, seg: np.ndarray, base: Path, raw: Path, identifier: str, modality: str
) -> None:
    import SimpleITK as sitk
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    for channel, image in enumerate(images):
        sitk.WriteImage(sitk.GetImageFromArray(image), str(raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz"))
    label = sitk.GetImageFromArray(seg.astype(np.uint8))
    sitk.WriteImage(label, str(raw / "labelsTr" / f"{case}.nii.gz"))
    sitk.WriteImage(label, str(base / "gt_segmentations" / f"{case}.nii.gz"))
    if modality == "CT":
        data = (np.clip(images, CT["percentile_00_5"], CT["percentile_99_5"]) - CT["mean"]) / CT["std"]
    else:
        axes = (1, 2, 3)
        data = (images - images.mean(axes, keepdims=True)) / images.std(axes, keepdims=True)
    shape = seg.shape
    properties = {
        "sitk_stuff": {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0),
                       "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)},
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
        "shape_after_cropping_and_before_resampling": shape,
        "class_locations": {k: np.argwhere(seg[None] == k) for k in (1, 2) if (seg == k).any()},
    }  # fmt: skip
    block = (1, 8, 8, 8)
    nnUNetDatasetBlosc2.save_case(
        data.astype(np.float32), seg[None].astype(np.int8), properties, str(base / identifier / case),
        chunks=(len(data), 16, 16, 16), blocks=block, chunks_seg=(1, 16, 16, 16), blocks_seg=block,
    )  # fmt: skip


def _architecture(network: str, ndim: int, features: tuple[int, ...], strides: Any, norm: str) -> dict[str, Any]:
    stages = len(features)
    strides = strides or [[1] * ndim] + [[2] * ndim] * (stages - 1)
    if network == "fpn":
        kwargs = {"base_channels": 4, "num_scales": len(strides), "strides": strides}
        return {"network_class_name": "nnunet_ssl.networks.fpn.FPN3dUNet", "arch_kwargs": kwargs,
                "_kw_requires_import": []}  # fmt: skip
    class_name, blocks = ARCHITECTURES[network]
    norm_op = {"instance": "instancenorm.InstanceNorm", "batch": "batchnorm.BatchNorm"}[norm]
    kwargs = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
        "kernel_sizes": [[3] * ndim] * stages,
        "strides": strides,
        blocks: [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.{norm_op}{ndim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {"network_class_name": class_name, "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}  # fmt: skip


def _plans(
    name: str, configuration: str, identifier: str, plan: dict[str, Any], shape: tuple[int, ...], channels: int,
    modality: str,
) -> dict[str, Any]:  # fmt: skip
    dimensions = len(plan["patch_size"])
    kwargs = {"order": 1, "order_z": 0, "force_separate_z": None, "is_seg": False}
    return {
        "dataset_name": name,
        "plans_name": "nnsslTestPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(shape),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): dict(CT) for c in range(channels)},
        "configurations": {
            configuration: {
                "data_identifier": identifier,
                "preprocessor_name": "DefaultPreprocessor",
                **plan,
                "median_image_size_in_voxels": [float(n) for n in shape[-dimensions:]],
                "spacing": [1.0] * dimensions,
                "normalization_schemes": ["CTNormalization" if modality == "CT" else "ZScoreNormalization"] * channels,
                "use_mask_for_norm": [False] * channels,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": kwargs,
                "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": kwargs,
                "batch_dice": False,
            }
        },
    }


def _fingerprint(shape: tuple[int, ...], cases: int, channels: int) -> dict[str, Any]:
    return {
        "spacings": [[1.0, 1.0, 1.0]] * cases,
        "shapes_after_crop": [list(shape)] * cases,
        "foreground_intensity_properties_per_channel": {str(c): dict(CT) for c in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }


def _write(path: Path, obj: Any) -> None:
    path.write_text(json.dumps(obj, indent=1), encoding="utf-8")
