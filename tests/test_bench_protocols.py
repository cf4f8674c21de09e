"""Protocols of evaluation: what a preset sets, what overrides it, and scores on the grid of a paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.bench.grid import read_grid
from nnunet_ssl.bench.presets import load_preset, preset_names
from nnunet_ssl.bench.specs import TRAINERS
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.protocols import fine_tune, linear_probe
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.downstream.schedule import StagedSchedule, build_optimizer
from nnunet_ssl.nnunet.downstream.settings import resolve
from nnunet_ssl.nnunet.recipe import parse
from nnunet_ssl.nnunet.scoring import on_grid, score_folder

GRID = """
protocol = "vox2vec"
[[datasets]]
id = 4
[[pretrainings]]
name = "v"
checkpoint = "weights.pth"
[[protocols]]
name = "linear"
[[protocols]]
name = "finetune"
settings = {num_epochs = 3, initial_lr = 0.1}
plan = {batch_size = 2}
[[protocols]]
name = "frozen"
protocol = "nnunet"
[[protocols]]
name = "scratch"
label = "mine"
"""


def jobs_of(folder: Path, text: str = GRID) -> dict:
    (folder / "grid.toml").write_text(text)
    return {job.protocol.title: job for job in read_grid(folder / "grid.toml").jobs()}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_used(name: str) -> None:
    preset = load_preset(name)
    recipe = parse(dict(preset.settings), DownstreamRecipe)
    recipe.validate()
    assert preset.name == name and preset.title and preset.source and set(preset.trainers) <= set(TRAINERS)


def test_the_papers_protocol_has_the_papers_numbers() -> None:
    """45,000 steps of 7 patches; fine-tuning frozen for 15,000, then 3e-5 -> 3e-4 over 1,200; Adam, no schedule."""
    import torch

    preset = load_preset("vox2vec")
    recipe = parse(dict(preset.settings), DownstreamRecipe)
    assert recipe.num_epochs * recipe.num_iterations_per_epoch == 45_000 and preset.plan == {"batch_size": 7}
    linear = resolve(recipe, linear_probe.PROTOCOL)
    assert (linear.head, linear.sigmoid, linear.optimizer, linear.schedule) == ("linear", True, "adam", "constant")
    assert (linear.initial_lr, linear.oversample_foreground_percent, linear.standardise) == (3e-4, 0.5, False)
    settings = resolve(recipe, fine_tune.PROTOCOL)
    optimizer = build_optimizer(settings, [torch.nn.Parameter(torch.ones(1))], [torch.nn.Parameter(torch.ones(1))])
    schedule = StagedSchedule(optimizer, settings, recipe.num_epochs, recipe.num_iterations_per_epoch, True)
    assert (schedule.freeze_steps, schedule.ramp_steps) == (15_000, 1_200)
    schedule.step(449)
    schedule.at(44_999)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 3e-4]
    assert (preset.grid, load_preset("nnunet").grid) == ("1 x 1 x 2 mm", None)


def test_what_a_grid_says_overrides_its_preset(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 'settings = {seed = 3}\n' + GRID)
    assert set(jobs) == {"linear-vox2vec", "finetune-vox2vec", "frozen", "mine"}
    linear, tuned = jobs["linear-vox2vec"], jobs["finetune-vox2vec"]
    assert linear.settings["protocol"] == "vox2vec" and linear.settings["seed"] == 3 and linear.plan["batch_size"] == 7
    assert (tuned.settings["num_epochs"], tuned.settings["initial_lr"], tuned.plan) == (3, 0.1, {"batch_size": 2})
    assert tuned.settings["num_iterations_per_epoch"] == 100
    assert jobs["frozen"].settings == {"seed": 3} and jobs["frozen"].plan == {}
    assert jobs["mine"].configuration == "bench_mine_nall_d0" and jobs["mine"].protocol.preset.name == "vox2vec"
    assert linear.configuration == "bench_linear-vox2vec_nall_d0"


def test_grid_wide_plan_fields_lie_under_those_of_a_protocol(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "plan = {batch_size = 3, batch_dice = false}\n" + GRID)
    assert jobs["linear-vox2vec"].plan == {"batch_size": 3, "batch_dice": False}
    assert jobs["finetune-vox2vec"].plan == {"batch_size": 2, "batch_dice": False}


def image(array: np.ndarray, spacing: tuple[float, ...], orientation: str = "LPS") -> sitk.Image:
    made = sitk.GetImageFromArray(array.astype(np.uint8))
    made.SetSpacing(spacing)
    made.SetOrigin((10.0, -20.0, 5.0))
    return sitk.DICOMOrient(made, orientation)


def by_hand(array: np.ndarray, old: tuple[float, ...], new: tuple[float, ...]) -> np.ndarray:
    """Voxel k of the new axis has its centre (k + 1/2) new mm from the border, in old voxel floor of that / old."""
    for axis, (a, b) in enumerate(zip(old, new, strict=True)):
        number = max(1, round(array.shape[axis] * a / b))
        array = np.take(array, [min(int((k + 0.5) * b / a), array.shape[axis] - 1) for k in range(number)], axis)
    return array


@pytest.mark.parametrize("spacing", [(0.71, 0.71, 3.1), (1.0, 1.0, 2.0), (1.7, 2.3, 0.9), (3.0, 3.0, 9.0)])
def test_a_mask_on_another_grid(spacing: tuple[float, float, float]) -> None:
    array = np.random.default_rng(0).integers(0, 4, (9, 14, 12))
    expected = by_hand(array, spacing[::-1], (2.0, 1.0, 1.0))
    found = on_grid(image(array, spacing), (2.0, 1.0, 1.0))
    assert found.GetSpacing() == (1.0, 1.0, 2.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), expected)
    assert spacing != (1.0, 1.0, 2.0) or np.array_equal(expected, array)


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "SLA"])
def test_two_millimetres_are_from_head_to_feet_however_axes_are_stored(orientation: str) -> None:
    array = np.random.default_rng(1).integers(0, 4, (8, 14, 12))
    expected = sitk.GetArrayFromImage(on_grid(image(array, (1.0, 1.0, 1.0)), (2.0, 1.0, 1.0)))
    turned = on_grid(image(array, (1.0, 1.0, 1.0), orientation), (2.0, 1.0, 1.0))
    back = sitk.DICOMOrient(turned, "LPS")
    assert back.GetSpacing() == (1.0, 1.0, 2.0) and sitk.GetArrayFromImage(back).shape == expected.shape == (4, 14, 12)


def test_scores_on_the_grid_of_the_paper(tmp_path: Path) -> None:
    """Planes of 1 mm, every second one survives: a prediction that is wrong in the others alone scores 1."""
    truth = np.zeros((8, 6, 6))
    truth[2:6, 1:5, 1:5] = 1
    guess = truth.copy()
    guess[2], guess[4] = 0, 0  # centres of the new planes lie on the border of two: the higher one counts
    for name, array in (("truth", truth), ("guess", guess)):
        (tmp_path / name).mkdir()
        sitk.WriteImage(image(array, (1.0, 1.0, 1.0)), str(tmp_path / name / "a.nii.gz"))
    description = {"file_ending": ".nii.gz", "labels": {"background": 0, "organ": 1}}
    original = score_folder(tmp_path / "guess", tmp_path / "truth", description, 1.0)
    paper = score_folder(tmp_path / "guess", tmp_path / "truth", description, 1.0, grid_mm=(2.0, 1.0, 1.0))
    assert original["a"]["organ"]["dice"] == pytest.approx(2 * 2 / (4 + 2)) and paper["a"]["organ"]["dice"] == 1.0
    with pytest.raises(UserError, match="for 3D images"):
        on_grid(sitk.Image(4, 4, sitk.sitkUInt8), (2.0, 1.0, 1.0))


def test_presets_are_plain_json() -> None:
    assert json.loads(json.dumps(dict(load_preset("vox2vec").settings))) == load_preset("vox2vec").settings
    with pytest.raises(UserError, match='There is no protocol of evaluation "paper"'):
        load_preset("paper")
