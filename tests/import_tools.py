"""What the tests of `nnunet_ssl import` share: small images, and a place for every folder of nnU-Net."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.nnunet.importing import ImportRequest, import_dataset

SIZE = (12, 20, 24)  # z, y, x


def body(seed=0, shape=SIZE):
    """A CT of a bar of tissue in air."""
    image = np.full(shape, -1000, np.int16)
    image[:, 5:-5, 5:-5] = 40
    return image + np.random.default_rng(seed).integers(-15, 15, shape).astype(np.int16)


def write(path, array, spacing=(3.0, 2.0, 2.0), direction=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing[::-1])
        image.SetDirection(direction or (1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.fixture
def places(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "scans").mkdir()
    return tmp_path


def bring_in(places, *sources, **options):
    paths = [str(source) for source in sources or [places / "scans"]]
    request = {"sources": paths, "dataset_id": 901, "name": "T", "channels": ["CT"]} | options
    return import_dataset(ImportRequest(**request))


def commands(*lines: str) -> str:
    """Several of our commands in one fresh process (nnU-Net reads its variables once a process)."""
    calls = [["nnunet_ssl.cli.main:main", *line.split()] for line in lines]
    script = [sys.executable, str(Path(__file__).with_name("entry_points.py")), json.dumps(calls)]
    done = subprocess.run(script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8", errors="replace", timeout=600)  # fmt: skip
    assert done.returncode == 0 and "nnunet_ssl: error" not in done.stdout, done.stdout
    return done.stdout


def cases_of(imported):
    return sorted(imported.report["imported"])


def assert_nothing_left(places):
    assert list((places / "raw").iterdir()) == []
