"""Pairs from preprocessed volumes: the same physical points, whatever the workers, and clear words for bad files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.b2nd import B2ndVolume
from nnunet_ssl.nnunet.loader import VALIDATION, PairDataset, PairLoader, hold_back, share_of_pairs
from nnunet_ssl.nnunet.masks import ForegroundMasks
from nnunet_ssl.objectives.vox2vec import Recipe
from nnunet_ssl.views import assemble
from tests.tiny_dataset import tiny_dataset

RECIPE = Recipe(pairs_per_batch=4, voxels_per_pair=64, seed=3)


def save_case(folder: Path, case: str, data: np.ndarray, seg: np.ndarray) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    for suffix in (".b2nd", "_seg.b2nd"):
        (folder / f"{case}{suffix}").unlink(missing_ok=True)
    chunks = (1, 8, 8, 8)
    nnUNetDatasetBlosc2.save_case(
        data.astype(np.float32), seg[None].astype(np.int8), {}, str(folder / case), chunks=chunks, blocks=chunks,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return tiny_dataset(tmp_path_factory.mktemp("loader"), cases=3)


def pairs(
    folder: Path, cases: list[str], patch: tuple[int, ...] = (8, 12, 12), recipe: Recipe = RECIPE, **more: object
) -> PairDataset:
    settings = {"pairs": range(recipe.pairs_per_batch or 2), "spacing": (1.0,) * len(patch), **more}
    return PairDataset(folder=str(folder), cases=cases, patch=patch, recipe=recipe, **settings)


def coordinate_case(folder: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """A volume whose channels are its voxel coordinates plus one, so that padding (0) is no coordinate."""
    data = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32) + 1
    mask = np.zeros(shape, bool)
    mask[:, 1:-1, 2:-1] = True
    save_case(folder, "coordinates", data, np.where(mask, 1, 0))
    return mask


def read(view: torch.Tensor, coords: torch.Tensor) -> np.ndarray:
    index = coords.long().numpy()
    return view.numpy()[(slice(None), *index.T)].T  # (n, C)


def test_partial_reading(tiny: SimpleNamespace) -> None:
    volume = B2ndVolume(str(tiny.preprocessed_cases), "case_000")
    assert volume.shape == (20, 24, 28) and volume.num_channels == 1
    whole = volume.image((0, 0, 0), volume.shape)
    np.testing.assert_array_equal(volume.image((2, 3, 4), (5, 6, 7)), whole[:, 2:7, 3:9, 4:11])
    mask = volume.mask((0, 0, 0), volume.shape)
    assert mask.dtype == bool and 0.2 < mask.mean() < 0.95
    np.testing.assert_array_equal(volume.mask((2, 3, 4), (5, 6, 7)), mask[2:7, 3:9, 4:11])


@pytest.mark.parametrize("shape", [(20, 24, 28), (5, 24, 28), (5, 9, 10)])
@pytest.mark.parametrize("patch", [(8, 12, 12), (12, 12)])
def test_shared_points_are_the_same_voxels(tmp_path: Path, shape: tuple[int, int, int], patch: tuple[int, ...]) -> None:
    """Also where the volume is smaller than the patch: padding is never a point."""
    mask = coordinate_case(tmp_path, shape)
    dataset = pairs(tmp_path, ["coordinates"], patch)
    for iteration in range(3):
        batch, cases, _ = dataset[iteration]
        view = assemble(batch, patch, RECIPE)
        assert cases == ["coordinates"] * 4 and view.a.shape == (4, 3, *patch)
        for i in range(4):
            valid = view.valid[i]
            assert valid.sum() >= 2
            a, b = (read(v[i], c[i][valid]) for v, c in ((view.a, view.coords_a), (view.b, view.coords_b)))
            np.testing.assert_array_equal(a, b)
            voxels = a.astype(int) - 1
            assert mask[tuple(voxels.T)].all(), "a point outside the mask or in the padding"
            assert len(np.unique(voxels, axis=0)) == len(voxels)


def test_affine_views_share_points(tmp_path: Path) -> None:
    coordinate_case(tmp_path, (24, 28, 28))
    recipe = Recipe(pairs_per_batch=2, voxels_per_pair=64, spatial="affine", rotation_deg=20.0, reading="linear")
    batch, _, _ = pairs(tmp_path, ["coordinates"], (12, 12, 12), recipe)[0]
    view = assemble(batch, (12, 12, 12), recipe)
    from nnunet_ssl.pyramid import gather

    a = gather([view.a], [(1, 1, 1)], view.coords_a, "linear")[view.valid]
    b = gather([view.b], [(1, 1, 1)], view.coords_b, "linear")[view.valid]
    inside = (a > 1.5).all(1) & (b > 1.5).all(1) & (a < 23).all(1)  # away from the volume's border
    assert inside.sum() > 20
    torch.testing.assert_close(a[inside], b[inside], atol=0.05, rtol=0)


def same(first: tuple, second: tuple) -> bool:
    tensors = [vars(item[0]).values() for item in (first, second)]
    return first[1] == second[1] and all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


def test_random_numbers_depend_on_the_iteration_alone(tiny: SimpleNamespace) -> None:
    folder = tiny.preprocessed_cases
    dataset = pairs(folder, tiny.cases)
    expected = [dataset[i] for i in range(4)]
    assert not same(expected[0], expected[1])
    assert not same(expected[0], pairs(folder, tiny.cases, stream=VALIDATION)[0])
    assert not same(expected[0], pairs(folder, tiny.cases, recipe=Recipe(pairs_per_batch=4, voxels_per_pair=64))[0])
    for workers in (1, 2):
        loader = PairLoader(pairs(folder, tiny.cases), num_workers=workers)
        assert all(same(next(loader), item) for item in expected)
        loader.close()
    late = PairLoader(pairs(folder, tiny.cases), start=2)
    assert same(next(late), expected[2])
    cycle = PairLoader(pairs(folder, tiny.cases), cycle=2)
    assert same([next(cycle) for _ in range(3)][2], expected[0])


def test_processes_share_a_batch(tiny: SimpleNamespace) -> None:
    whole, cases, _ = pairs(tiny.preprocessed_cases, tiny.cases)[5]
    parts = [pairs(tiny.preprocessed_cases, tiny.cases, pairs=share_of_pairs(4, rank, 3))[5] for rank in range(3)]
    assert torch.equal(torch.cat([part.box_a for part, _, _ in parts]), whole.box_a)
    assert [name for _, names, _ in parts for name in names] == cases
    with pytest.raises(UserError, match="at least one pair"):
        share_of_pairs(2, 0, 3)


def test_volumes_per_batch(tiny: SimpleNamespace) -> None:
    recipe = Recipe(pairs_per_batch=4, voxels_per_pair=8, volumes_per_batch=2)
    assert all(len(set(pairs(tiny.preprocessed_cases, tiny.cases)[i][1])) == 1 for i in range(4))
    assert all(len(set(pairs(tiny.preprocessed_cases, tiny.cases, recipe=recipe)[i][1])) == 2 for i in range(4))


def test_hold_back() -> None:
    names = [f"c{i:03d}" for i in range(60)]
    training, held = hold_back(names)
    assert len(held) == 3 and sorted(training + held) == names
    assert hold_back(names[::-1]) == (training, held)
    assert [len(part) for part in hold_back(names[:2])] == [1, 1]
    assert hold_back(["one"]) == (["one"], ["one"])


def test_masks_from_images_read_no_labels(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path, cases=2, labelled=True)
    folder = tiny.preprocessed_cases
    for label in folder.glob("*_seg.b2nd"):
        label.unlink()  # a label that is not there cannot be read
    masks = ForegroundMasks(is_ct=(True,), mean=(0.0,), std=(400.0,), spacing=(1.0, 1.0, 1.0))
    batch, _, _ = pairs(folder, tiny.cases, mask_maker=masks)[0]
    assert batch.valid.any()
    made = list(folder.glob("*_ssl_foreground.npy"))
    assert made and all(0.1 < np.load(path).mean() < 0.95 for path in made)


def test_bad_files(tmp_path: Path) -> None:
    data, body = np.random.default_rng(0).normal(size=(1, 16, 16, 16)), np.ones((16, 16, 16))
    for case, image, mask in (("good", data, body), ("empty", data, body * 0), ("nan", data * np.nan, body)):
        save_case(tmp_path, case, image, mask)
    save_case(tmp_path, "cut", data, body)
    whole = (tmp_path / "cut.b2nd").read_bytes()
    (tmp_path / "cut.b2nd").write_bytes(whole[: len(whole) // 2])
    expected = {"nan": "NaN", "cut": "damaged or truncated", "gone": "missing", "empty": "No two foreground voxels"}
    for case, words in expected.items():
        error = pairs(tmp_path, [case])[0]
        assert isinstance(error, UserError) and words in str(error) and case in str(error)
    for iteration in range(4):  # a volume without foreground is passed over where there is another
        assert set(pairs(tmp_path, ["empty", "good"])[iteration][1]) == {"good"}
    loader = PairLoader(pairs(tmp_path, ["nan"]), num_workers=1)
    with pytest.raises(UserError, match="NaN") as caught:
        next(loader)
    assert "Traceback" not in str(caught.value)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_the_loader(tiny: SimpleNamespace) -> None:
    loader = PairLoader(pairs(tiny.preprocessed_cases, tiny.cases), num_workers=2)
    next(loader)
    pids = [worker.pid for worker in loader._iterator._workers]
    assert len(pids) == 2 and all(alive(pid) and pid != os.getpid() for pid in pids)
    loader.close()
    loader.close()
    deadline = time.monotonic() + 120
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its loader"
        time.sleep(0.05)
