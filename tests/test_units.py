"""What a trainer makes of its plan's numbers: HU of normalised values, and the axial axis of transposed volumes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ssl.nnunet.foreground import foreground
from nnunet_ssl.nnunet.masks import mask_maker
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, in_process

MEAN, STD = 100.0, 250.0
STILL = {**SHORT, "blur_sharpen_p": 0.0, "noise_p": 0.0, "window_p": 0.0}
BLURRED = {**STILL, "blur_sharpen_p": 1.0, "blur_sigma": [1.0, 1.0], "sharpen_sigma": [1.0, 1.0],
           "sharpen_amount": [0.0, 0.0]}  # fmt: skip


def trainer_of(folder: Path, monkeypatch: pytest.MonkeyPatch, ssl: dict[str, Any], transpose: list[int]) -> Any:
    """A trainer whose plan has its own mean and deviation of HU, and an order of axes."""
    tiny: SimpleNamespace = tiny_dataset(folder, cases=2, marked=False, ssl=ssl)
    path = tiny.preprocessed / tiny.dataset_name / f"{tiny.plans_name}.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["foreground_intensity_properties_per_channel"]["0"].update(mean=MEAN, std=STD)
    plans.update(transpose_forward=transpose, transpose_backward=[int(i) for i in np.argsort(transpose)])
    path.write_text(json.dumps(plans), encoding="utf-8")
    return in_process(tiny, monkeypatch)


def test_a_view_that_nothing_happens_to_is_clipped_to_the_widest_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, monkeypatch, STILL, [0, 1, 2])
    hu = torch.tensor([-3000.0, -1350.0, -500.0, 0.0, 40.0, 1000.0, 2500.0, 7.0]).reshape(1, 1, 2, 2, 2)
    found = trainer.enhance((hu - MEAN) / STD, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found * STD + MEAN, hu.clamp(-1350.0, 1000.0), atol=1e-2, rtol=0)


@pytest.mark.parametrize("transpose", [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
def test_an_impulse_is_blurred_in_the_axial_plane_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transpose: list[int]
) -> None:
    trainer = trainer_of(tmp_path, monkeypatch, BLURRED, transpose)
    hu = torch.zeros(9, 9, 9)
    hu[4, 4, 4] = 800.0
    found = trainer.enhance((hu[None, None] - MEAN) / STD, torch.Generator().manual_seed(0))[0, 0] * STD + MEAN
    in_file = found.permute(*np.argsort(transpose).tolist())  # z, y, x
    assert in_file[4, 4, 4] == pytest.approx(800 / (2 * np.pi), rel=0.02)
    assert in_file[4, 5, 4] > 50 and in_file[4, 4, 5] > 50
    assert in_file[[0, 1, 2, 3, 5, 6, 7, 8]].abs().max() < 0.01


@pytest.mark.parametrize("transpose", [[0, 1, 2], [1, 0, 2]])
def test_a_mask_is_that_of_the_file_in_hu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transpose: list[int]
) -> None:
    """A tube of air that runs through the whole body from feet to head is inside; along another axis it is not."""
    trainer = trainer_of(tmp_path, monkeypatch, SHORT, transpose)
    y, x = np.meshgrid(np.arange(40) - 20, np.arange(40) - 20, indexing="ij")
    radius = np.hypot(y, x)
    hu = np.repeat(np.where((radius < 16) & (radius > 4), 40.0, -1000.0)[None], 24, axis=0).astype(np.float32)
    expected = foreground(hu[None], ["CT"], [1.0, 1.0, 1.0])
    assert expected[:, 20, 20].all() and not expected[:, 0, 0].any()
    make = mask_maker(trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json)
    found = make.compute(((hu - MEAN) / STD).transpose(transpose)[None])
    assert (found == np.asarray(expected).transpose(transpose)).all()
