"""What a network is changed for: a CPU in bfloat16."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from nnunet_ssl.networks import FPN3dUNet
from nnunet_ssl.nnunet import devices

CPU = torch.device("cpu")


def weight_gradients(conv: nn.Module, x: torch.Tensor, seed: torch.Tensor, half: bool) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        out = conv(x)
    assert out.dtype == (torch.bfloat16 if half else torch.float32)
    return torch.autograd.grad(out, conv.weight, seed.to(out.dtype))[0]


@pytest.mark.parametrize("kernel", [3, 5, (3, 1, 1), (1, 3, 3)])
@pytest.mark.parametrize("slices", [1, 2, 3, 4, 6])
def test_weights_of_thin_levels_have_their_gradient(slices: int, kernel: int | tuple[int, ...]) -> None:
    """The plain convolution's is what the memory held before, infinity among it, at 2 slices and a kernel of 3."""
    torch.manual_seed(slices)
    sides = (kernel,) * 3 if isinstance(kernel, int) else kernel
    x, conv = torch.randn(2, 16, slices, 6, 6), nn.Conv3d(16, 16, sides, padding=tuple(k // 2 for k in sides))
    seed = torch.randn(2, 16, slices, 6, 6)
    expected = weight_gradients(conv, x, seed, half=False)
    devices.suit(conv, CPU, torch.bfloat16)
    for _ in range(3):
        found = weight_gradients(conv, x, seed, half=True)
        assert (found - expected).norm() < 0.02 * expected.norm()
    torch.testing.assert_close(weight_gradients(conv, x, seed, half=False), expected, rtol=1e-4, atol=1e-4)


def test_names_and_values_stay() -> None:
    network = FPN3dUNet(1, 2, base_channels=4, num_scales=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert devices.suit(network, CPU, torch.bfloat16) is network
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels = network.levels(torch.rand(2, 1, 8, 8, 8))
    assert all(level.is_contiguous(memory_format=torch.channels_last_3d) for level in levels)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", None), ("cuda", torch.bfloat16), ("cuda", torch.float16)])
def test_nothing_changes_elsewhere(device: str, dtype: torch.dtype | None) -> None:
    conv = nn.Conv3d(2, 2, 3)
    devices.suit(conv, torch.device(device), dtype)
    assert type(conv) is nn.Conv3d and conv.weight.is_contiguous()


@pytest.mark.parametrize("deep", [False, True])
def test_a_network_that_computes_in_bfloat16_answers_in_float32(deep: bool) -> None:
    """Near float32's answers, and not them; its copies do the same; names and values stay."""
    torch.manual_seed(0)
    network: nn.Module = Levels() if deep else nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 4, 3))
    x, before = torch.rand(2, 1, 8, 8, 8), {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        exact = network(x)
        half, copied = devices.in_bfloat16(network)(x), deepcopy(network)(x)
    assert isinstance(half, list) == deep and type(network).__name__ in ("Levels", "Sequential")
    for found, again, wanted in zip(*([value] if not deep else value for value in (half, copied, exact)), strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, again) and not torch.equal(found, wanted)
        assert (found - wanted).norm() < 0.02 * wanted.norm()
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.is_autocast_enabled("cpu")


def test_a_flat_network_computes_in_bfloat16() -> None:
    network, x = nn.Conv2d(2, 3, 3), torch.rand(1, 2, 8, 8)
    exact = network(x)
    half = devices.in_bfloat16(network)(x)
    assert half.dtype == torch.float32 and 0 < (half - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    ("variable", "before", "after"),
    [("1", 2, 1), ("2,4", 3, 2), ("4", 2, 2), ("", 2, 2), (None, 2, 2), ("0", 2, 2), ("many", 2, 2)],
)
def test_fewer_threads_where_the_environment_says_so(
    variable: str | None, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    try:
        torch.set_num_threads(before)
        devices.obey_thread_limit()
        assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(threads)


class Levels(nn.Module):
    """Two answers, as with deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 4, 3), nn.Conv3d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, 1, *S) -> two levels."""
        first = self.one(x)
        return [first, self.two(first)]
