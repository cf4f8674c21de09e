"""nnU-Net's own planners, called from Python, and plans files as this package keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nnunet_ssl
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import RawDataset, load_json, publish_dataset_json, quiet_planning
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.fingerprints import fingerprint

MARK = "nnunet_ssl"  # top-level key of every plans file that this package writes
PLANNERS = ("ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL")


def planner_class(name: str) -> Any:
    """A planner of nnU-Net by its class name. UserError if there is none."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    found = recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")
    if found is None or not hasattr(found, "plan_experiment"):
        raise UserError(f"nnU-Net has no planner {name}. Use one of {', '.join(PLANNERS)}.")
    return found


def stock_plan(
    dataset: RawDataset,
    planner: str,
    plans_name: str,
    spacing_mm: Sequence[float] | None = None,
    gpu_memory_gb: float | None = None,
) -> dict[str, Any]:
    """What nnU-Net plans for this dataset, as plain JSON values, without the cascade; only dataset.json is written.

    ``spacing_mm`` (z, y, x of the files) replaces nnU-Net's choice. Makes the fingerprint if there is none.
    """
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    fingerprint(dataset)
    arguments: dict[str, Any] = {} if gpu_memory_gb is None else {"gpu_memory_target_in_gb": gpu_memory_gb}
    if spacing_mm is not None:
        arguments["overwrite_target_spacing"] = [float(s) for s in spacing_mm]
    planner_type = planner_class(planner)
    try:
        with quiet_planning():
            instance = planner_type(dataset.name, plans_name=plans_name, **arguments)
            instance.dataset, instance.dataset_json = dataset.cases, {**dataset.json, "numTraining": len(dataset.cases)}
            instance.lowres_creation_threshold = 0.0  # no 3d_lowres: there is nothing to pretrain in a cascade
            instance.static_estimate_VRAM_usage = partial(_estimate, instance.static_estimate_VRAM_usage)
            instance.save_plans = lambda plans: None  # written once it is complete, see write_plans
            plans = instance.plan_experiment()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"nnU-Net's {planner} could not plan {dataset.name}: {str(error).strip()[:300]}") from error
    recursive_fix_for_json_export(plans)
    publish_dataset_json(dataset)
    plain: dict[str, Any] = json.loads(json.dumps(plans))
    for name, configuration in plain["configurations"].items():
        configuration["data_identifier"] = f"{plans_name}_{name}"
    return plain


def _estimate(stock: Any, *arguments: Any) -> Any:
    """nnU-Net's estimate of a network's memory, with a network that has no memory: the same number, sooner."""
    with torch.device("meta"):
        return stock(*arguments)


def take_order(plans: dict[str, Any], source: Mapping[str, Any]) -> None:
    """Give a plan the order of axes of another one, in place, with nnU-Net's facts that stand in that order."""
    for key in ("original_median_spacing_after_transp", "original_median_shape_after_transp"):
        as_stored = [plans[key][axis] for axis in plans["transpose_backward"]]
        plans[key] = [as_stored[axis] for axis in source["transpose_forward"]]
    for key in ("transpose_forward", "transpose_backward"):
        plans[key] = list(source[key])


def median_shape(dataset: RawDataset, spacing_mm: Sequence[float], transpose: Sequence[int]) -> list[float]:
    """Median image shape (voxels, transposed) of the dataset at a spacing (mm, transposed, all three axes)."""
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    facts = fingerprint(dataset)
    target = [0.0] * 3
    for axis, source in enumerate(transpose):
        target[source] = float(spacing_mm[axis])
    sizes = zip(facts["shapes_after_crop"], facts["spacings"], strict=True)
    shapes = [compute_new_shape(shape, spacing, target) for shape, spacing in sizes]
    return [float(v) for v in np.median(shapes, axis=0)[list(transpose)]]


def median_spacing(dataset: RawDataset, transpose: Sequence[int]) -> list[float]:
    """Median spacing (mm, transposed) of the dataset's images."""
    return [float(v) for v in np.median(fingerprint(dataset)["spacings"], axis=0)[list(transpose)]]


def full_shape(plans: Mapping[str, Any], configuration: Mapping[str, Any], dataset: RawDataset) -> list[float]:
    """Median image size at a configuration's spacing, with as many axes as it has (2d: in-plane)."""
    spacing = [float(s) for s in configuration["spacing"]]
    whole = [*median_spacing(dataset, plans["transpose_forward"])[: 3 - len(spacing)], *spacing]
    return median_shape(dataset, whole, plans["transpose_forward"])[3 - len(spacing) :]


def resolved(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with everything that it inherits."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if name not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise UserError(f"No configuration {name} in {plans['plans_name']}; there: {known}.")
    return deepcopy(PlansManager(deepcopy(dict(plans))).get_configuration(name).configuration)


def plans_path(dataset: RawDataset, plans_name: str) -> Path:
    """Where nnU-Net looks for a plans file."""
    return dataset.folder / f"{plans_name}.json"


def check_plans_name(name: str) -> str:
    """The name if it can be a file name and a part of a results folder."""
    if not name or "__" in name or any(c in name for c in "/\\ ") or name.startswith("."):
        raise UserError(f'"{name}" cannot name a plan: no spaces, slashes or double underscores.')
    return name


def existing_plans(dataset: RawDataset, plans_name: str) -> dict[str, Any] | None:
    """A plans file of ours that is there already, None if there is none. UserError for one that is not ours."""
    path = plans_path(dataset, plans_name)
    if not path.exists():
        return None
    plans = load_json(path)
    if MARK not in plans:
        raise UserError(f"{path} was not written by nnunet_ssl and is not touched. Choose another name with -n NAME.")
    return plans


def write_plans(dataset: RawDataset, plans: dict[str, Any], kept: Mapping[str, Any] | None = None, **mark: Any) -> Path:
    """Write a plans file atomically. Configurations added to an older version (``kept``) stay, as in nnU-Net."""
    for name, configuration in (kept or {}).get("configurations", {}).items():
        if name not in plans["configurations"] and configuration.get("inherits_from") in plans["configurations"]:
            plans["configurations"][name] = configuration
    plans[MARK] = {**plans.get(MARK, {}), **mark, "version": nnunet_ssl.__version__}
    path = plans_path(dataset, plans["plans_name"])
    write_json(path, plans)
    return path
