"""Foreground masks of datasets that `import` did not make: from the images alone, whatever the plan's window clips."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.nnunet.b2nd import open_b2nd
from nnunet_ssl.nnunet.foreground import ct_body
from nnunet_ssl.nnunet.masks import ForegroundMasks, mask_maker
from nnunet_ssl.nnunet.phantom_dataset import write_dataset
from nnunet_ssl.phantom import make_case
from tests.tiny_dataset import tiny_dataset

CASE = "phantom_000"


def preprocessed(root: Path, monkeypatch: pytest.MonkeyPatch, low: float) -> SimpleNamespace:
    """A phantom CT preprocessed by nnU-Net with a window that starts at ``low`` HU, other axes and another spacing."""
    tiny = tiny_dataset(root, cases=2, labelled=True)
    raw = tiny.raw / tiny.dataset_name
    for part in ("imagesTr", "labelsTr"):
        for file in (raw / part).iterdir():
            file.unlink()
    write_dataset(raw, 1, seed=3)
    monkeypatch.setenv("nnUNet_raw", str(tiny.raw))
    plans = json.loads((tiny.preprocessed / tiny.dataset_name / "nnsslTestPlans.json").read_text())
    plans |= {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    plans["foreground_intensity_properties_per_channel"]["0"] |= {"mean": 60.0, "std": 80.0, "percentile_00_5": low}
    spacing = make_case(np.random.default_rng([3, 0]))[2]
    plans["configurations"]["3d_fullres"]["spacing"] = [1.25 * spacing[1], spacing[0], spacing[2]]
    manager, dataset_json = PlansManager(plans), json.loads((raw / "dataset.json").read_text())
    configuration = manager.get_configuration("3d_fullres")
    folder = root / "data"
    folder.mkdir()
    image, label = raw / "imagesTr" / f"{CASE}_0000.nii.gz", raw / "labelsTr" / f"{CASE}.nii.gz"
    DefaultPreprocessor(verbose=False).run_case_save(
        str(folder / CASE), [str(image)], str(label), manager, configuration, dataset_json)  # fmt: skip
    return SimpleNamespace(folder=folder, image=image, masks=mask_maker(manager, configuration, dataset_json))


def organs_and_body(found: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """The labels as nnU-Net resampled them; the body in the raw image, its axes in the plan's order, by zooming."""
    from scipy import ndimage

    organs = np.asarray(open_b2nd(found.folder / f"{CASE}_seg.b2nd")[:])[0] > 0
    image, _, spacing = make_case(np.random.default_rng([3, 0]))
    body = ct_body(image, spacing).transpose(1, 0, 2)
    with open(found.folder / f"{CASE}.pkl", "rb") as stream:
        box = pickle.load(stream)["bbox_used_for_cropping"]
    body = body[tuple(slice(*side) for side in box)].astype(float)
    zoomed = ndimage.zoom(body, np.divide(organs.shape, body.shape), order=1, grid_mode=True, mode="nearest")
    return organs, zoomed > 0.5


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("low", [-17.0, -96.0, -700.0])
def test_the_body_is_found_whatever_the_plan_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: float) -> None:
    found = preprocessed(tmp_path, monkeypatch, low)
    mask = np.load(found.masks(str(found.folder), CASE))
    organs, body = organs_and_body(found)
    assert mask.shape == organs.shape
    assert mask[organs].mean() > 0.995
    assert dice(mask, body) > 0.97
    assert ("raw images" in found.masks.describe()) == (low > -500)


def test_without_the_raw_image_everything_is_foreground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = preprocessed(tmp_path, monkeypatch, -17.0)
    found.image.unlink()
    assert np.load(found.masks(str(found.folder), CASE)).all()
    alone = ForegroundMasks((True,), (60.0,), (80.0,), (1.0, 1.0, 1.0), clipped=True)
    assert "all of an image is foreground" in alone.describe()
