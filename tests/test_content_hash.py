"""The hash by which a volume is known again: against its oracle, for every way to store the same volume."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.nnunet.volumes import content_hash, read_volumes
from tests.oracles import content_hash as oracle

AXES = [(order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)]


def stored(path: Path, order: tuple[int, ...], flips: tuple[int, ...], dtype: type = np.int16) -> Path:
    """One and the same volume, its axes in another order and direction in the file."""
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.integers(-1000, 1000, (3, 4, 5)).astype(dtype), np.diag([0.7, 0.8, 2.5, 1]))
    target = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
    nibabel.save(image.as_reoriented(target), path)
    return path


def hash_of(path: Path) -> str:
    (image,) = read_volumes([str(path)])
    return content_hash(image)


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64])
def test_a_volume_has_one_hash_however_its_axes_are_stored(kind: type, tmp_path: Path) -> None:
    paths = [stored(tmp_path / f"{i}.nii.gz", *how, kind) for i, how in enumerate(AXES)]
    assert len({nibabel.load(path).shape for path in paths}) == 6  # the files do differ
    expected = oracle.content_hash(paths[0])
    assert {hash_of(path) for path in paths} == {oracle.content_hash(path) for path in paths} == {expected}


def test_the_format_of_the_file_does_not_matter(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.nii", (0, 1, 2), (1, 1, 1))
    for ending in ("nii.gz", "nrrd", "mha"):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / f"b.{ending}"))
        assert hash_of(tmp_path / f"b.{ending}") == hash_of(path)


def test_another_volume_has_another_hash(tmp_path: Path) -> None:
    (image,) = read_volumes([str(stored(tmp_path / "a.nii.gz", (0, 1, 2), (1, 1, 1)))])
    mirrored = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, :, ::-1].copy())  # the patient, not the file
    mirrored.CopyInformation(image)
    near, far = sitk.Image(image), sitk.Image(image)
    near.SetSpacing((0.7003, 0.8, 2.5))
    far.SetSpacing((0.701, 0.8, 2.5))
    assert content_hash(near) == content_hash(image)
    assert len({content_hash(i) for i in (image, mirrored, far, image[1:], image + 1)}) == 5
