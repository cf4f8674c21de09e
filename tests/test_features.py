"""Dense features: every voxel's vector, pictures of them, and files that lie where the image lies."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from nnunet_ssl.cli import main as cli
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import features
from nnunet_ssl.nnunet.dense import dense_features, dense_map, pick_levels, vectors_at
from nnunet_ssl.nnunet.network import build_backbone, pyramid_channels, pyramid_levels, pyramid_strides
from nnunet_ssl.nnunet.pca import fit_components
from nnunet_ssl.nnunet.windows import read_window, windows
from nnunet_ssl.pyramid import gather
from tests.tiny_dataset import tiny_dataset

STRIDES = [(1, 1, 1), (2, 2, 2)]


def two_levels(x: torch.Tensor) -> list[torch.Tensor]:
    return [x, x[:, :, ::2, ::2, ::2] * 10]


def test_dense_features_are_the_vectors_of_each_voxel():
    image = np.random.default_rng(0).normal(size=(1, 11, 9, 14)).astype(np.float32)
    dense = dense_features(two_levels, STRIDES, image, (6, 6, 6))
    assert dense.shape == (2, 11, 9, 14)
    np.testing.assert_array_equal(dense[0].numpy(), image[0])
    points = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape[1:]), indexing="ij"), -1).reshape(-1, 3)
    vectors = vectors_at(two_levels, STRIDES, image, (6, 6, 6), points)
    torch.testing.assert_close(dense.flatten(1).T, vectors, rtol=0, atol=0)


def test_only_windows_that_own_points_are_computed():
    calls = []

    def counted(x):
        calls.append(1)
        return two_levels(x)

    image = np.zeros((1, 40, 40, 40), dtype=np.float32)
    vectors_at(counted, STRIDES, image, (8, 8, 8), np.array([[0, 0, 0], [1, 1, 1], [39, 39, 39]]))
    assert len(calls) == 2
    with pytest.raises(ValueError, match="no point"):
        vectors_at(counted, STRIDES, image, (8, 8, 8), np.array([[50, 0, 0]]))


def test_gaussian_vectors_are_the_weighted_mean_over_all_windows_that_hold_a_point():
    image = np.random.default_rng(0).normal(size=(1, 9, 10, 11)).astype(np.float32)
    patch, points = (6, 4, 6), np.array([[0, 0, 0], [4, 5, 3], [8, 9, 10], [5, 2, 7]])

    def levels(x):  # differs between windows, as a network with a border does
        return [x + x.mean(), x[:, :, ::2, ::2, ::2] * x.std()]

    found = vectors_at(levels, STRIDES, image, patch, points, stitch="gaussian", reading="linear")
    weights = compute_gaussian(patch, dtype=torch.float32, device=torch.device("cpu")).numpy()
    for point, vector in zip(points, found, strict=True):
        total, norm = np.zeros(2), 0.0
        for window in windows(image.shape[1:], patch, 0.5):
            local = point - np.asarray(window.start)
            if (local >= 0).all() and (local < patch).all():
                maps = levels(read_window(image, window, patch)[None])
                read = gather(maps, STRIDES, torch.tensor(local)[None, None].float(), "linear")[0, 0]
                total += weights[tuple(local)] * read.numpy()
                norm += weights[tuple(local)]
        np.testing.assert_allclose(vector.numpy(), total / norm, rtol=1e-5, atol=1e-6)
    core = vectors_at(levels, STRIDES, image, patch, points)
    assert not torch.allclose(core, found)


def test_half_precision_levels_and_slices():
    image = np.random.default_rng(0).normal(size=(1, 3, 9, 14)).astype(np.float32)
    dense = dense_features(lambda x: [x, x[:, :, ::2, ::2]], [(1, 1), (2, 2)], image, (6, 6), levels=[0],
                           dtype=torch.float16)  # fmt: skip
    assert dense.dtype == torch.float16 and dense.shape == (1, 3, 9, 14)
    np.testing.assert_allclose(dense[0].float().numpy(), image[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="levels"):
        pick_levels([8, 16], [2])


def test_gaussian_stitching_reproduces_a_function_of_single_voxels():
    image = np.random.default_rng(0).normal(size=(2, 10, 7, 12)).astype(np.float32)
    stitched = dense_map(lambda x: x * 3, image, (6, 8, 6), stitch="gaussian")
    np.testing.assert_allclose(stitched.numpy(), image * 3, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="stitch"):
        dense_map(lambda x: x, image, (6, 8, 6), stitch="mean")


def test_components_match_a_singular_value_decomposition():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    x[:, 5] = 4.0
    basis = fit_components(x, 3)
    z = ((x - x.mean(0)) / x.std(0))[:, :5].double()
    _, _, expected = torch.linalg.svd(z, full_matrices=False)
    cosines = (basis.directions[:, :5].double() * expected[:3]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3).double(), atol=1e-4, rtol=0)
    assert (basis.directions[:, 5] == 0).all()
    colours = basis.colours(x)
    assert colours.min() == 0 and colours.max() == 1 and colours.std(0).min() > 0.1
    assert torch.equal(basis.directions, fit_components(x, 3).directions)
    with pytest.raises(ValueError, match="finite"):
        fit_components(torch.full((5, 2), float("nan")))


def test_groups_of_channels_weigh_the_same_in_components():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(4000, 1, generator=generator)
    many = common + 0.1 * torch.randn(4000, 40, generator=generator)  # one direction, forty times
    few = torch.randn(4000, 2, generator=generator)
    vectors = torch.cat([few, many], 1)
    alone = fit_components(vectors, 3).directions
    assert (alone[0, :2] ** 2).sum() < 0.01  # without groups the larger one has the first component
    basis = fit_components(vectors, 3, groups=[2, 40])
    variances = ((vectors - basis.mean) * basis.scale).var(0)
    assert float(variances[:2].sum()) == pytest.approx(float(variances[2:].sum()), rel=1e-3)


def write_pretraining(folder, change=lambda plans: None, **options):
    """A pretraining checkpoint of a tiny plan with random weights; its path and configuration."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    data = tiny_dataset(folder, cases=1, ssl={}, **options)
    plans = json.loads((data.preprocessed / data.dataset_name / f"{data.plans_name}.json").read_text(encoding="utf-8"))
    change(plans)
    torch.manual_seed(0)
    manager = PlansManager(plans).get_configuration(data.configuration)
    network = build_backbone(manager, options.get("channels", 1), 2)
    path = folder / "checkpoint_final.pth"
    ssl = {"format": 1, "objective": "vox2vec", "recipe": {}, "plans": plans, "configuration": data.configuration}
    torch.save({"network_weights": network.state_dict(), "ssl": ssl, "trainer_name": "Vox2VecPretrainTrainer"}, path)
    return path, data.configuration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The path of a pretraining checkpoint whose plan resamples and transposes."""

    def change(plans):
        plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.5, 1.0]
        plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]

    return write_pretraining(tmp_path_factory.mktemp("features"), change)[0]


def oblique_ramp(path, gradient):
    """An oblique CT whose intensity is linear in world coordinates: value = 300 + gradient . position."""
    image = sitk.Image([30, 26, 22], sitk.sitkFloat32)
    image.SetSpacing((0.8, 1.3, 2.1))
    image.SetOrigin((-12.0, 40.0, 7.0))
    angle = 0.3
    image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (22, 26, 30)), indexing="ij"), -1)[..., ::-1]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    world = (index * image.GetSpacing()) @ direction.T + image.GetOrigin()
    ramp = sitk.GetImageFromArray((300 + world @ gradient).astype(np.float32))
    ramp.CopyInformation(image)
    sitk.WriteImage(ramp, str(path))


def test_the_grid_lies_where_the_image_lies(checkpoint, tmp_path):
    """Transposed, resampled to another spacing, oblique: a linear intensity must be read at the place it belongs to."""
    gradient = np.array([1.5, -0.7, 2.2])
    path = tmp_path / "case.nii.gz"
    oblique_ramp(path, gradient)
    frozen = features.load_frozen(checkpoint)
    data, properties, reader = features.preprocess(frozen, [path])
    grid = features.grid_of(path, reader, properties, frozen.plans, data.shape[1:])
    np.testing.assert_allclose(grid.spacing, (1.0, 2.0, 1.5), rtol=0.03)  # file axes x, y, z
    hu = data[0].transpose(frozen.plans.transpose_backward) * 400.0
    index = np.stack(np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij"), -1)[..., ::-1]
    world = (index * grid.spacing) @ np.array(grid.direction).reshape(3, 3).T + grid.origin
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(hu[inner], (300 + world @ gradient)[inner], atol=0.5)


def test_the_command_writes_vectors_and_colours(checkpoint, tmp_path, capsys):
    image = tmp_path / "case.nii.gz"
    oblique_ramp(image, np.array([1.0, 2.0, 3.0]))
    out = tmp_path / "new" / "feat.nii.gz"
    arguments = ["features", "-i", str(image), "-w", str(checkpoint), "-device", "cpu"]
    assert cli.main([*arguments, "-o", str(out), "--levels", "0", "1", "--pca", "3"]) == 0
    assert str(out) in capsys.readouterr().out
    written, colours = sitk.ReadImage(str(out)), sitk.ReadImage(str(out.with_name("feat_pca.nii.gz")))
    assert written.GetNumberOfComponentsPerPixel() == 8 + 12 and colours.GetNumberOfComponentsPerPixel() == 3
    assert colours.GetPixelID() == sitk.sitkVectorUInt8 and written.GetSize() == colours.GetSize()
    np.testing.assert_allclose(written.GetOrigin(), colours.GetOrigin())
    # the very values of the network at a voxel, through preprocessing and back
    frozen = features.load_frozen(checkpoint)
    data, _, _ = features.preprocess(frozen, [image])
    point = np.array([[4, 5, 6]])
    vector = vectors_at(lambda x: pyramid_levels(frozen.network, x), pyramid_strides(frozen.network), data,
                        (16, 16, 16), point)[0, : sum(pyramid_channels(frozen.network)[:2])]  # fmt: skip
    z, y, x = (int(point[0][axis]) for axis in (1, 0, 2))
    np.testing.assert_allclose(written.GetPixel(x, y, z), vector.numpy(), atol=1e-5)
    assert cli.main([*arguments, "-o", str(out), "--fp16"]) == 0
    half = np.load(out.with_name("feat.npy"))
    assert half.dtype == np.float16 and half.shape == (8 + 12 + 16, *written.GetSize()[::-1])
    described = json.loads(out.with_name("feat.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(described["origin_mm_xyz"], written.GetOrigin(), atol=1e-4)


@pytest.mark.parametrize(("change", "words"), [
    (["--levels", "7"], "0 .finest. to 2"),
    (["--pca", "99"], "--pca is 99"),
    (["--step", "2"], "--step is 2.0"),
    (["-o", "x.png"], "ends in .nii.gz"),
    (["-i", "missing.nii.gz"], "No image at missing.nii.gz"),
    (["-w", "missing.pth"], "missing.pth"),
])  # fmt: skip
def test_wrong_requests_end_in_a_sentence(checkpoint, tmp_path, capsys, change, words):
    image = tmp_path / "case.nii.gz"
    oblique_ramp(image, np.array([1.0, 0, 0]))
    arguments = ["-i", str(image), "-w", str(checkpoint), "-o", str(tmp_path / "f.nii.gz"), "-device", "cpu"]
    assert cli.main(["features", *arguments, *change]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.nii.gz"]


def test_broken_image_and_wrong_channels(checkpoint, tmp_path):
    image, broken = tmp_path / "case.nii.gz", tmp_path / "broken.nii.gz"
    oblique_ramp(image, np.array([1.0, 0, 0]))
    broken.write_bytes(image.read_bytes()[:200])
    frozen = features.load_frozen(checkpoint)
    with pytest.raises(UserError, match="could not be read as an image"):
        features.preprocess(frozen, [broken])
    with pytest.raises(UserError, match="takes 1 channel"):
        features.preprocess(frozen, [image, image])


def test_more_than_the_memory_is_refused():
    with pytest.raises(UserError, match="--levels 0 1"):
        features._check_memory(1008, (5000, 5000, 5000), fp16=True)


@pytest.mark.parametrize(("ndim", "channels"), [(3, 2), (2, 1)])
def test_several_channels_and_a_2d_network_through_the_command(ndim, channels, tmp_path):
    """The values at a voxel are those of the network, each channel in the order in which its file was named."""
    path, configuration = write_pretraining(tmp_path, ndim=ndim, channels=channels)
    images = [tmp_path / f"case_{channel:04d}.nii.gz" for channel in range(channels)]
    rng = np.random.default_rng(0)
    for image in images:
        sitk.WriteImage(sitk.GetImageFromArray(rng.normal(0, 300, (5, 20, 22)).astype(np.float32)), str(image))
    written = {}
    for name, files in (("right", images), ("turned", images[::-1])):
        out = tmp_path / f"{name}.nii.gz"
        assert cli.main(["features", "-i", *map(str, files), "-w", str(path), "-o", str(out), "-device", "cpu"]) == 0
        written[name] = sitk.ReadImage(str(out))
    frozen = features.load_frozen(path)
    data, _, _ = features.preprocess(frozen, images)
    assert data.shape == (channels, 5, 20, 22) and configuration == ("3d_fullres" if ndim == 3 else "2d")
    vectors = vectors_at(lambda x: pyramid_levels(frozen.network, x), pyramid_strides(frozen.network), data,
                         (16,) * ndim, np.array([[2, 9, 13]]))  # fmt: skip
    np.testing.assert_allclose(written["right"].GetPixel(13, 9, 2), vectors[0].numpy(), atol=1e-5)
    assert np.allclose(written["right"].GetPixel(13, 9, 2), written["turned"].GetPixel(13, 9, 2)) == (channels == 1)
