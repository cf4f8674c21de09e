"""Foreground masks: synthetic bodies with known parts, phantoms, and the organs of real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.nnunet.foreground import ct_body, dark_border_foreground, foreground
from nnunet_ssl.phantom import make_case

SHAPE, SPACING = (24, 48, 48), (4.0, 4.0, 4.0)


def grid(shape):
    return np.meshgrid(*(np.arange(s) for s in shape), indexing="ij", sparse=True)


def trunk(shape=SHAPE, padding=-1024.0, seed=0, scale=1.0):
    """CT with parts: body (with lungs that the last slice and an airway that both ends cut), table."""
    rng = np.random.default_rng(seed)
    z, y, x = grid(shape)
    cy, cx = shape[1] * 0.45, shape[2] / 2
    body = np.broadcast_to(((y - cy) / (13 * scale)) ** 2 + ((x - cx) / (19 * scale)) ** 2 <= 1, shape)
    lungs = np.zeros(shape, bool)
    for side in (-8, 8):
        inside = ((y - cy) / (7 * scale)) ** 2 + ((x - cx - side * scale) / (5 * scale)) ** 2 <= 1
        lungs |= inside & (z > shape[0] / 2)
    airway = np.broadcast_to((abs(y - cy + 9 * scale) <= scale) & (abs(x - cx) <= scale), shape)
    table = np.zeros(shape, bool)
    back = int(cy + 16 * scale)
    table[:, back:back + max(1, int(scale)), 4:-4] = True
    image = np.full(shape, -1000.0)
    image[body], image[lungs], image[airway], image[table] = 40.0, -850.0, -1000.0, 0.0
    image += rng.normal(0, 15, shape)
    corners = np.broadcast_to(np.hypot(y - shape[1] / 2 + 0.5, x - shape[2] / 2 + 0.5) > shape[1] / 2, shape)
    image[corners] = padding
    return image.astype(np.float32), body | lungs | airway, lungs, table


@pytest.mark.parametrize("padding", [-1000.0, -1024.0, -2048.0, -3024.0])
def test_body_holds_lungs_and_airway_but_no_table_and_no_air(padding):
    image, body, lungs, table = trunk(padding=padding)
    mask = ct_body(image, SPACING)
    assert mask.shape == image.shape and mask.dtype == bool
    assert mask[body].mean() > 0.99 and mask[lungs].mean() > 0.99
    assert mask[table].mean() < 0.01
    assert mask[~body].sum() < 0.05 * body.sum()


def test_a_fine_image_is_worked_on_coarsely_and_outlined_finely():
    image, body, lungs, table = trunk((36, 120, 120), scale=2.5)
    mask = ct_body(image, (2.0, 1.4, 1.4))
    assert mask[body].mean() > 0.99 and mask[lungs].mean() > 0.99
    assert mask[table].mean() < 0.01
    assert mask[~body].sum() < 0.05 * body.sum()


def test_empty_slices_beyond_the_body_do_not_open_the_lungs():
    image, _, lungs, _ = trunk()
    image[-4:] = -1024.0
    lungs = lungs.copy()
    lungs[-4:] = False
    assert ct_body(image, SPACING)[lungs].mean() > 0.99


def test_lungs_that_the_field_of_view_cuts_stay_inside():
    image, body, lungs, _ = trunk()
    cut = (slice(None), slice(None), slice(14, 40))  # through both lungs
    assert lungs[cut][:, :, 0].any() or lungs[cut][:, :, -1].any()
    assert ct_body(image[cut], SPACING)[body[cut]].mean() > 0.98


def test_axial_axis():
    image, *_ = trunk()
    expected = ct_body(image, (3.0, 4.0, 5.0))
    turned = ct_body(np.moveaxis(image, 0, 2), (4.0, 5.0, 3.0), axial_axis=2)
    np.testing.assert_array_equal(np.moveaxis(turned, 2, 0), expected)


def test_two_legs_are_both_body():
    _, y, x = grid(SHAPE)
    legs = [np.broadcast_to((y - 24) ** 2 + (x - c) ** 2 <= 49, SHAPE) for c in (13, 35)]
    image = np.where(legs[0] | legs[1], 50.0, -1000.0)
    mask = ct_body(image, SPACING)
    assert all(mask[leg].mean() > 0.98 for leg in legs)
    assert mask[:, :, 23:26].mean() < 0.1


@pytest.mark.parametrize(("shape", "spacing"), [(SHAPE, SPACING), ((36, 120, 120), (2.0, 1.4, 1.4))])
def test_air_and_a_table_alone_have_no_body(shape, spacing):
    image = np.random.default_rng(0).normal(-1000.0, 20.0, shape)
    assert not ct_body(image, spacing).any()
    back = shape[1] - 8
    image[:, back:back + int(6.0 / spacing[1]), 5:-5] = 0.0
    assert not ct_body(image, spacing).any()
    image[:, back - 20:back, 20:-20] = 40.0
    assert ct_body(image, spacing)[:, back - 20:back, 20:-20].all()


def test_ct_without_air_is_all_body():
    image = np.random.default_rng(0).normal(40.0, 30.0, SHAPE)
    assert ct_body(image, SPACING).all()


def test_ct_that_was_clipped_to_a_window():
    image, body, _, _ = trunk()
    for low in (-930.0, -900.0, -600.0, -200.0):
        mask = ct_body(np.clip(image, low, 300.0), SPACING)
        # below about -900 HU nothing tells lung from air, but tissue has to stay and most of the air has to go
        assert mask[body & (image > -200)].mean() > 0.99
        assert mask[~body].mean() < 0.2, low


def head(seed=0, noise=0.02, air=0.0):
    rng = np.random.default_rng(seed)
    z, y, x = grid((32, 40, 40))
    r = np.sqrt(((z - 16) / 14) ** 2 + ((y - 20) / 17) ** 2 + ((x - 20) / 15) ** 2)
    inside = r <= 1
    image = np.where(inside, 0.6 + 0.25 * np.sin(z / 3) * np.cos(y / 4), air)
    image[(r < 0.4)] = 0.05  # dark fluid inside
    return np.hypot(image + rng.normal(0, noise, r.shape), rng.normal(0, noise, r.shape)), inside


@pytest.mark.parametrize("scale", [1.0, 4000.0])
def test_dark_background_of_mr_is_dropped_and_dark_fluid_inside_is_kept(scale):
    image, inside = head()
    mask = dark_border_foreground(image * scale, (2.0, 2.0, 2.0))
    assert mask[inside].mean() > 0.98
    assert mask[~inside].mean() < 0.25


def test_constant_padding_is_background_whatever_its_value():
    image, inside = head()
    for value in (0.0, -1000.0, 50.0):
        padded = np.where(inside, image, value)
        mask = dark_border_foreground(padded, (2.0, 2.0, 2.0))
        assert mask[inside].mean() > 0.98 and mask[~inside].mean() < 0.25, value


def test_without_a_dark_border_everything_is_foreground():
    rng = np.random.default_rng(0)
    image = rng.normal(100.0, 20.0, (20, 24, 28))
    image[8:12, 8:12, 8:12] = 0.0  # dark, but not at the border
    assert dark_border_foreground(image).all()
    assert dark_border_foreground(np.full((8, 8, 8), 3)).all()


def test_channels():
    ct, body, _, _ = trunk()
    mr = np.where(body, 100.0, 0.0)
    mr[:, :, :24] = 0.0
    both = foreground(np.stack([mr, ct]), ["MRI", "ct"], SPACING)
    np.testing.assert_array_equal(both, ct_body(ct, SPACING))  # CT decides
    mirrored = mr[:, :, ::-1]
    union = foreground(np.stack([mr, mirrored]), ["T1", "T2"], SPACING)
    np.testing.assert_array_equal(
        union, dark_border_foreground(mr, SPACING) | dark_border_foreground(mirrored, SPACING))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_organs_of_phantoms_are_inside(modality):
    for seed in range(3):
        image, labels, spacing = make_case(np.random.default_rng(seed), modality, (32, 48, 48), 6)
        mask = foreground(image[None], [modality], spacing)
        assert mask[labels > 0].mean() > 0.99
        assert mask.mean() < 0.75


def check_labels(images: list[Path], labels_of, channel: str) -> None:
    for path in images:
        image, labels = sitk.ReadImage(str(path)), sitk.ReadImage(str(labels_of(path)))
        mask = foreground(sitk.GetArrayFromImage(image)[None], [channel], image.GetSpacing()[::-1])
        inside = mask[sitk.GetArrayFromImage(labels) > 0].mean()
        assert inside >= 0.95, f"{path.name}: {inside:.3f} of the label voxels"


def test_labels_of_head_and_neck_ct_are_inside(shared_data):
    folder = shared_data / "OpenKBP"
    hardest = [151, 173, 197, 149]  # cut-outs with thin tails; all 99 were checked once
    images = [folder / "images" / f"kbp_{n:03d}.nii.gz" for n in hardest]
    check_labels(images, lambda p: folder / "labels" / p.name, "CT")


def test_little_air_is_in_the_masks_of_head_and_neck_ct(shared_data):
    for number in (2, 51, 143):  # a table; cut-outs
        image = sitk.ReadImage(str(shared_data / "OpenKBP" / "images" / f"kbp_{number:03d}.nii.gz"))
        array = sitk.GetArrayFromImage(image)
        mask = ct_body(array, image.GetSpacing()[::-1])
        solid = array >= -500
        assert 0.85 < mask[solid].mean() <= 1.0
        assert mask.sum() < 1.3 * solid.sum()


def test_labels_of_hippocampus_mr_are_inside(shared_data):
    folder = shared_data / "Task04_Hippocampus"
    images = sorted((folder / "imagesTr").glob("hippocampus_*.nii.gz"))[::24]
    assert len(images) > 5
    check_labels(images, lambda p: folder / "labelsTr" / p.name, "MRI")
