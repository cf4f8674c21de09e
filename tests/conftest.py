"""What all tests share: a quiet environment and the folder of real images."""

from __future__ import annotations

import os
from pathlib import Path

# Before numpy and torch are imported, by the tests and by every process that they start.
os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="passive",
    MKL_NUM_THREADS="1",
    nnUNet_def_n_proc="1",
    nnUNet_compile="f",
    MPLBACKEND="Agg",
    LANG="C.UTF-8",
    PYTHONIOENCODING="utf-8",
)

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # torch may have been imported by a plugin before the variables above were set.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; the test is skipped where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real images in {folder}")
    return folder
