"""Phantoms: seeded, varied, and not solved by a threshold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.nnunet.phantom_dataset import write_dataset
from nnunet_ssl.phantom import ORGANS, PADDING_HU, _body_frame, make_case, organ_names

SHAPE = (32, 48, 48)


def best_interval_dice(image: np.ndarray, organ: np.ndarray) -> float:
    """Dice of the best rule "between two intensities", ends tried at 32 quantiles of the organ."""
    edges = np.unique(np.quantile(image[organ], np.linspace(0, 1, 33)))
    edges[-1] += 1e-3
    hits = np.r_[0, np.cumsum(np.histogram(image[organ], edges)[0])]
    marked = np.r_[0, np.cumsum(np.histogram(image, edges)[0])]
    dice = 2 * (hits[None] - hits[:, None]) / np.maximum(1, marked[None] - marked[:, None] + organ.sum())
    return float(dice.max())


def test_the_interval_rule_finds_an_organ_of_its_own_intensity():
    rng = np.random.default_rng(0)
    organ = np.zeros(SHAPE, bool)
    organ[8:16, 10:20, 10:20] = True
    assert best_interval_dice(np.where(organ, 300.0, 0.0) + rng.normal(0, 20, SHAPE), organ) > 0.9


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_intensity_alone_separates_at_most_half_of_the_organs(modality):
    number = len(ORGANS)
    cases = [make_case(np.random.default_rng(seed), modality, SHAPE, number)[:2] for seed in range(5)]
    dice = np.array([[best_interval_dice(image, labels == o + 1) for o in range(number)] for image, labels in cases])
    separated = int((dice.mean(axis=0) > 0.5).sum())
    assert separated <= number // 2, dice.mean(axis=0)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_seed_gives_one_subject(modality):
    first, again, other = (make_case(np.random.default_rng(seed), modality, SHAPE) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2] == again[2] and first[2] != other[2]
    assert (first[1] != other[1]).mean() > 0.01


def test_shapes_types_and_labels():
    image, labels, spacing = make_case(np.random.default_rng(0), "CT", (20, 30, 40), 2)
    assert image.shape == labels.shape == (20, 30, 40)
    assert image.dtype == np.float32 and labels.dtype == np.uint8 and len(spacing) == 3
    assert set(np.unique(labels)) == {0, 1, 2}
    assert organ_names(2) == ["liver", "spleen"]


def test_every_organ_is_in_every_subject():
    for seed in range(12):
        _, labels, _ = make_case(np.random.default_rng(seed), "CT", SHAPE, len(ORGANS))
        assert (np.bincount(labels.ravel(), minlength=len(ORGANS) + 1)[1:] >= 5).all(), seed


@pytest.fixture(scope="module", params=["CT", "MR"])
def subjects(request: pytest.FixtureRequest) -> tuple[str, list]:
    """The modality, and 16 subjects with all organs labelled."""
    return request.param, [make_case(np.random.default_rng(s), request.param, SHAPE, len(ORGANS)) for s in range(16)]


def organ_levels(subjects: list) -> np.ndarray:
    """(subject, organ): medians."""
    return np.array([[np.median(image[labels == o + 1]) for o in range(len(ORGANS))] for image, labels, _ in subjects])


def test_subjects_vary_in_field_of_view(subjects):
    extents = np.array([spacing for _, _, spacing in subjects[1]]) * SHAPE
    assert (np.ptp(extents, axis=0) > [30.0, 40.0, 40.0]).all()  # of about 300 x 400 x 400 mm


def test_subjects_vary_in_pose_and_size():
    """The body frame is, but for a smooth deformation, an affine map of the voxels."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")).reshape(3, -1)
    known = np.vstack([grid, np.ones(grid.shape[1])]).T
    frames = [_body_frame(np.random.default_rng(seed), SHAPE).reshape(3, -1).T for seed in range(16)]
    maps = np.array([np.linalg.lstsq(known, frame, rcond=None)[0].T for frame in frames])  # (subject, 3, 4)
    turned = maps[:, [0, 0, 1], [1, 2, 2]] - maps[:, [1, 2, 2], [0, 0, 1]]  # twice the rotation, in radians
    assert (turned.std(axis=0) > 2 * np.deg2rad(2.5)).all(), turned.std(axis=0)
    assert (maps[:, :, 3].std(axis=0) > [0.05, 0.04, 0.03]).all(), maps[:, :, 3].std(axis=0)
    relative = maps[:, range(3), range(3)] / maps[:, range(3), range(3)].mean(axis=0)
    assert (np.ptp(relative, axis=0) > 0.12).all(), np.ptp(relative, axis=0)


def test_subjects_vary_in_contrast(subjects):
    modality, cases = subjects
    levels = organ_levels(cases)
    if modality == "CT":  # of liver, spleen and kidneys at once: each alone varies by itself, too
        assert levels[:, :4].mean(axis=1).std() > 10.0
        assert (levels.std(axis=0) > 8.0).all()
    else:  # units are arbitrary, and so is which organ is the brighter one
        assert np.ptp(np.log10(levels.mean(axis=1))) > 1.0
        ratios = np.log(levels) - np.log(levels).mean(axis=1, keepdims=True)
        assert ratios.std(axis=0).mean() > 0.15  # a coil's sensitivity alone makes it 0.11


def test_subjects_vary_in_noise(subjects):
    """CT: between neighbours inside organs, in HU. MR: in the air before the body, in parts of the bright voxels."""
    modality, cases = subjects
    noise = []
    for image, labels, _ in cases:
        if modality == "CT":
            pairs = (labels[:, :, 1:] > 0) & (labels[:, :, 1:] == labels[:, :, :-1])
            noise.append(float(np.median(np.abs(np.diff(image, axis=2)[pairs]))))
        else:
            air = image[:, :4][image[:, :4] > 0]
            noise.append(float(np.percentile(air, 20) / np.percentile(image, 90)))
    # a coil's sensitivity alone makes a ratio of 1.5
    assert max(noise) > (1.6 if modality == "CT" else 2.0) * min(noise), noise


def test_subjects_vary_in_padding_and_table():
    images = [make_case(np.random.default_rng(seed), "CT", SHAPE)[0] for seed in range(16)]
    corners = [float(image[0, 0, 0]) for image in images]
    assert len(set(corners) & set(PADDING_HU)) >= 2
    assert any(corner not in PADDING_HU for corner in corners)  # no padding: plain air
    behind = [(image[:, 36:] > -500).mean(axis=(0, 2)) for image in images]
    tables = [bool((row > 0.5).any()) for row in behind]
    assert any(tables) and not all(tables)


@pytest.mark.parametrize(("arguments", "word"), [
    (("PET",), "PET"), (("CT", (8, 32, 32)), "16"), (("CT", SHAPE, 0), "organs"), (("CT", SHAPE, 99), "organs"),
])
def test_wrong_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        make_case(np.random.default_rng(0), *arguments)


def test_written_dataset(tmp_path):
    names = write_dataset(tmp_path / "Dataset004_P", 2, "MR", seed=3, shape=(16, 24, 24), organs=3, num_test=1)
    content = json.loads((tmp_path / "Dataset004_P" / "dataset.json").read_text())
    assert content["numTraining"] == 2 and content["channel_names"] == {"0": "MRI"} and len(content["labels"]) == 4
    parts = {"Tr": names[:2], "Ts": names[2:]}
    for part, cases in parts.items():
        folder = tmp_path / "Dataset004_P"
        assert sorted(p.name for p in (folder / f"images{part}").iterdir()) == [f"{c}_0000.nii.gz" for c in cases]
        assert sorted(p.name for p in (folder / f"labels{part}").iterdir()) == [f"{c}.nii.gz" for c in cases]
    image, _, spacing = make_case(np.random.default_rng([3, 0]), "MR", (16, 24, 24), 3)
    read = sitk.ReadImage(str(tmp_path / "Dataset004_P" / "imagesTr" / f"{names[0]}_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), image)
    np.testing.assert_allclose(read.GetSpacing()[::-1], spacing)


def test_unlabelled_scans(tmp_path):
    names = write_dataset(tmp_path, 2, shape=(16, 24, 24), labelled=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.nii.gz" for name in names]
