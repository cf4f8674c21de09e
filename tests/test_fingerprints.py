"""A fingerprint is taken of whole images only: nnU-Net's readers fill what a damaged file lacks by 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import fingerprints
from nnunet_ssl.nnunet.datasets import open_dataset
from nnunet_ssl.nnunet.planning import PlanRequest, make_plan
from tests.plan_datasets import folders, raw_dataset

__all__ = ["folders"]


def test_a_damaged_image_gets_no_fingerprint_and_no_plan(folders: Path) -> None:
    dataset = raw_dataset(folders, 4, labelled=True, shape=(24, 28, 26), cases=2, written=True)
    path = dataset.raw / "imagesTr" / "c001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"damaged images. c001: {path} is unreadable.*Mend or remove") as caught:
        make_plan(PlanRequest(4, preset="tiny"))
    assert "c000" not in str(caught.value)
    assert not [*dataset.preprocessed.glob("*fingerprint*"), *dataset.preprocessed.glob("*Plans.json")]


def test_images_are_read_once_for_damage(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_dataset(folders, 4, labelled=True, shape=(12, 14, 13), cases=1, written=True)
    looked: list[str] = []
    monkeypatch.setattr(fingerprints, "damage", lambda case: looked.append(case[0]))
    dataset = open_dataset(4)
    assert len(fingerprints.fingerprint(dataset)["spacings"]) == 1
    fingerprints.check_images(dataset)  # as before preprocessing
    assert looked == ["c000"]
