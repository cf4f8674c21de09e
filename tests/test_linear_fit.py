"""The linear fit: who is drawn, what a drawn voxel stands for, and the classifier against a literal float64 port."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.heads import LinearHead
from nnunet_ssl.nnunet.linear_fit import (
    choose_windows,
    class_weights,
    collect_voxels,
    fit_linear,
    strata,
    to_head,
)
from nnunet_ssl.nnunet.windows import axis_starts, read_window, windows
from tests.oracles.linear_fit import newton_logistic


def test_cores_partition_every_shape():
    for shape, patch, offsets in [((17, 9, 5), (8, 8, 8), (0, 0, 0)), ((30, 16, 31), (8, 16, 9), (3, 1, 2)),
                                  ((1, 12, 12), (1, 5, 6), (0, 4, 1))]:
        owned = np.zeros(shape, dtype=int)
        for window in windows(shape, patch, 0.5, offsets):
            owned[window.core_slices()] += 1
            for (low, high), start, size in zip(window.core, window.start, patch, strict=True):
                assert start <= low < high <= start + size
        assert (owned == 1).all()


def test_windows_cover_the_ends_and_keep_their_distance():
    starts = axis_starts(50, 16, 0.5, offset=3)
    assert starts[0] == 0 and starts[-1] == 34
    assert max(np.diff(starts)) <= 8
    assert axis_starts(49, 32, 0.5) == [0, 8, 17] and axis_starts(49, 32, 0.6) == [0, 17]
    assert axis_starts(10, 16) == [-3] and axis_starts(16, 16) == [0]
    with pytest.raises(ValueError, match="step"):
        windows((8, 8, 8), (4, 4, 4), 0.0)


def test_read_window_pads_with_zero_where_the_volume_ends():
    image = np.arange(1, 1 + 6 * 4 * 4, dtype=np.float32).reshape(1, 6, 4, 4)
    window = windows(image.shape[1:], (4, 8, 8))[-1]
    patch = read_window(image, window, (4, 8, 8))
    assert patch.shape == (1, 4, 8, 8)
    np.testing.assert_array_equal(patch[0, :, 2:6, 2:6].numpy(), image[0, 2:6])
    assert patch.sum() == image[0, 2:6].sum()


def test_strata_separate_near_background_and_ignored():
    labels = np.zeros((12, 12, 12), dtype=np.int8)
    labels[5, 5, 5], labels[0, 0, 0], labels[11, 11, 11] = 1, -1, 3
    result = strata(labels, 3, 2, ignore_label=3)
    assert result[5, 5, 5] == 1 and result[5, 5, 7] == 3 and result[5, 5, 8] == 0
    assert result[0, 0, 0] == 0 and result[11, 11, 11] == -1


def test_rare_strata_are_visited_before_common_ones():
    counts = np.zeros((50, 3), dtype=np.int64)
    counts[:, 0] = 1000
    counts[7, 2], counts[3, 1] = 2, 5
    visited = choose_windows(counts, 4, np.random.default_rng(0))
    assert {3, 7} <= set(visited.tolist()) and len(visited) == 4


def coordinate_levels(x: torch.Tensor) -> list[torch.Tensor]:
    """Two levels of a network that hands its input through: the image itself and its 2x nearest subsampling."""
    return [x, x[:, :, ::2, ::2, ::2]]


def volume_of_positions(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)


def test_drawn_vectors_are_those_of_the_drawn_voxels():
    shape = (13, 10, 9)
    image = volume_of_positions(shape)
    labels = (image[0] % 7 == 3).astype(np.int8)  # a label that the feature itself proves
    sample = collect_voxels(coordinate_levels, [(1, 1, 1), (2, 2, 2)], [(image, labels)], (6, 6, 6), 2,
                            np.random.default_rng(1), per_class=60, background=100, near=1, max_windows=None)
    position = sample.features[:, 0].long()
    assert sample.features.shape[1] == 2
    assert torch.equal((position % 7 == 3).long(), sample.labels)
    assert len(position.unique()) == len(position)


def test_weights_stand_for_the_population():
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(2):
        labels = np.zeros((20, 20, 20), dtype=np.int8)
        labels[4:7, 4:7, 4:7], labels[12:17, 12:17, 10:15] = 1, 2
        cases.append((rng.normal(size=(1, 20, 20, 20)).astype(np.float32), labels))
    sample = collect_voxels(coordinate_levels, [(1, 1, 1), (2, 2, 2)], cases, (8, 8, 8), 3, rng, per_class=30,
                            background=200, near=2)
    for c, count in [(0, 2 * (8000 - 27 - 125)), (1, 54), (2, 250)]:
        assert sample.weights[sample.labels == c].sum().item() == pytest.approx(count, rel=1e-5)
    assert [(sample.labels == c).sum().item() for c in range(3)] == [200, 30, 30]


def test_draws_follow_the_seed_and_cut_the_windows():
    image = volume_of_positions((24, 24, 24))
    labels = np.zeros((24, 24, 24), dtype=np.int8)
    labels[10:14, 10:14, 10:14] = 1
    calls = []

    def counted(x):
        calls.append(1)
        return coordinate_levels(x)

    draws = [collect_voxels(counted, [(1, 1, 1), (2, 2, 2)], [(image, labels)], (8, 8, 8), 2,
                            np.random.default_rng(seed), max_windows=5).features for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert len(calls) <= 15


def test_two_dimensional_networks_read_slices():
    image = volume_of_positions((4, 9, 9))
    labels = (image[0] % 5 == 1).astype(np.int8)
    sample = collect_voxels(lambda x: [x, x[:, :, ::2, ::2]], [(1, 1), (2, 2)], [(image, labels)], (6, 6), 2,
                            np.random.default_rng(1), near=(0, 1, 1))
    assert torch.equal((sample.features[:, 0].long() % 5 == 1).long(), sample.labels)


def test_no_labelled_voxel_is_a_clear_error():
    empty = np.zeros((8, 8, 8), dtype=np.int8)
    with pytest.raises(UserError, match="classes 1 to 1"):
        collect_voxels(coordinate_levels, [(1, 1, 1), (2, 2, 2)], [(volume_of_positions((8, 8, 8)), empty)], (8, 8, 8),
                       2, np.random.default_rng(0))


def test_class_weights_follow_the_exponent():
    labels, weights = torch.tensor([0, 0, 1, 2]), torch.tensor([6000., 2000., 80., 1.])
    true = class_weights(labels, weights, 3, 1.0)
    torch.testing.assert_close(true, weights.double() / 8081)
    balanced = class_weights(labels, weights, 3, 0.0)
    torch.testing.assert_close(balanced, torch.tensor([.25, .25 / 3, 1 / 3, 1 / 3]).double() * 1.0)
    half = class_weights(labels, weights, 3, 0.5)
    assert half[2] / half[:2].sum() == pytest.approx((80 / 8000) ** .5)


def problem(n: int = 300, channels: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, channels, generator=generator)
    features = (centres[labels] + torch.randn(n, channels, generator=generator)) * torch.tensor([1., 50., .01, 3.]) + 7
    return features, labels, torch.rand(n, generator=generator) + .1


def test_fit_equals_the_literal_port():
    features, labels, weights = problem()
    ours, bias = fit_linear(features, labels, 3, weights, balance=1.0, l2=1e-2, max_iter=500)
    oracle, oracle_bias = newton_logistic(features.numpy(), labels.numpy(), weights.numpy(), 3, 1e-2)
    # A constant added to all classes changes no probability: compare centred.
    logits = (features @ ours.T + bias).double()
    expected = torch.from_numpy(features.numpy().astype(np.float64) @ oracle.T + oracle_bias)
    torch.testing.assert_close(logits - logits.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True),
                               atol=2e-3, rtol=1e-3)


def test_true_prior_floods_less_and_balance_misses_less():
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(2000, 1, generator=generator), torch.randn(100, 1, generator=generator) + 4])
    y = torch.cat([torch.zeros(2000), torch.ones(100)]).long()
    stands_for = torch.cat([torch.full((2000,), 50.), torch.ones(100)])
    called = []
    for balance in (1.0, 0.75, 0.0):
        weight, bias = fit_linear(x, y, 2, stands_for, balance=balance)
        called.append((x @ weight.T + bias).argmax(1).sum().item())
    assert called[0] < called[1] < called[2]


def test_a_channel_that_does_not_vary_is_left_out_and_nan_is_refused():
    features, labels, _ = problem()
    weight, bias = fit_linear(torch.cat([features, torch.full((300, 1), 3.3)], 1), labels, 3)
    assert weight.isfinite().all() and bias.isfinite().all() and (weight[:, 4] == 0).all()
    features[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        fit_linear(features, labels, 3)


def test_regions_are_fitted_as_independent_sigmoids():
    features, labels, _ = problem()
    features[:, 0] += 5 * (labels > 0)
    features[:, 3] += 9 * (labels == 2)
    regions = torch.stack([labels > 0, labels == 2], 1)
    weight, bias = fit_linear(features, regions, 2, l2=1e-3)
    predicted = features @ weight.T + bias > 0
    assert (predicted == regions).float().mean() > .9


@pytest.mark.parametrize("dim", [2, 3])
def test_the_head_computes_the_fit(dim):
    torch.manual_seed(0)
    strides = [(1,) * dim, (2,) * dim]
    head = LinearHead([3, 5], strides, 4)
    weight, bias = torch.randn(4, 8), torch.randn(4)
    to_head(weight, bias, head)
    levels = [torch.randn(2, 3, *(7,) * dim), torch.randn(2, 5, *(4,) * dim)]
    index = torch.arange(7) // 2
    coarse = levels[1]
    for axis in range(dim):
        coarse = coarse.index_select(2 + axis, index)
    vectors = torch.cat([levels[0], coarse], 1)
    expected = torch.einsum("kc,bc...->bk...", weight, vectors) + bias.view(1, 4, *(1,) * dim)
    torch.testing.assert_close(head(levels), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="head expects"):
        to_head(torch.randn(3, 8), torch.randn(3), head)
