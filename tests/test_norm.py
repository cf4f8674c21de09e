import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn

from nnunet_ssl.collectives import all_reduce_sum
from nnunet_ssl.losses import barlow_twins, vicreg
from nnunet_ssl.networks.norm import AllReduceBatchNorm1d


def rows(m=9, c=3, dtype=torch.float64):
    return torch.randn(m, c, generator=torch.Generator().manual_seed(m), dtype=dtype) * 2 + 5


def twins(c=3):
    """Ours and torch's with the same weights."""
    theirs = nn.BatchNorm1d(c).double()
    nn.init.uniform_(theirs.weight)
    nn.init.uniform_(theirs.bias)
    ours = AllReduceBatchNorm1d(c).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("path", ["torch's", "ours"])
def test_is_batch_norm_in_one_process(monkeypatch, path):
    ours, theirs = twins()
    if path == "ours":  # as if there were more processes, without rows
        monkeypatch.setattr("nnunet_ssl.networks.norm.world_size", lambda: 2)
    results = []
    for norm in (ours, theirs):
        x = rows().requires_grad_()
        for m in (4, 6):
            norm(rows(m))
        norm(x).square().sum().backward()
        results.append((norm(x.detach()), x.grad, norm.weight.grad, norm.bias.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    torch.testing.assert_close(ours.eval()(rows()), theirs.eval()(rows()))


@pytest.mark.parametrize("m", [0, 1])
def test_one_row_or_none_ends_no_training(m):
    norm = AllReduceBatchNorm1d(3)
    before = copy.deepcopy(norm.state_dict())
    x = rows(m, dtype=torch.float32).requires_grad_()
    result = norm(x)
    assert result.shape == (m, 3)
    assert not result.any()
    result.sum().backward()
    assert norm.weight.grad is not None
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_large_means_keep_their_variance():
    norm = AllReduceBatchNorm1d(3)
    x = rows(dtype=torch.float32) + 1e4
    expected = (x.double() - x.double().mean(0)) / (x.double().var(0, correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(norm._over_processes(x), expected.float(), rtol=1e-2, atol=1e-2)


def test_refuses_images():
    with pytest.raises(ValueError, match=r"expected vectors \(M, 3\)"):
        AllReduceBatchNorm1d(3)(torch.zeros(2, 3, 4))


def test_a_sum_over_one_process_is_its_input():
    x = rows()
    assert all_reduce_sum(x) is x


def measure(x, y):
    """Everything that is reduced over processes: outputs on x, and gradients of losses of the whole batch by x."""
    norm, _ = twins_of_ones()
    z = norm(x)
    total = all_reduce_sum((z * y).square().sum()) + vicreg(x, y) + barlow_twins(x, y)
    total.backward()
    return {
        "z": z.detach(),
        "total": total.detach(),
        "gradient": x.grad,
        "weight": norm.weight.grad,
        **{key: value.clone() for key, value in norm.state_dict().items()},
    }


def twins_of_ones():
    torch.manual_seed(0)
    return twins()


SHARES = (slice(0, 4), slice(4, 9))  # unequal on purpose


def train_one_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SHARES))
    x, y = rows(9)[SHARES[rank]].clone().requires_grad_(), rows(9).flip(0)[SHARES[rank]]
    torch.save(measure(x, y), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(train_one_rank, (str(tmp_path),), nprocs=len(SHARES))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(SHARES))]
    expected = measure(rows(9).requires_grad_(), rows(9).flip(0))
    torch.testing.assert_close(torch.cat([r["z"] for r in ranks]), expected["z"])
    # each process adds the whole batch's loss, so that gradients are those of as many losses as there are processes
    torch.testing.assert_close(torch.cat([r["gradient"] for r in ranks]) / len(SHARES), expected["gradient"])
    torch.testing.assert_close(sum(r["weight"] for r in ranks) / len(SHARES), expected["weight"])
    for rank in ranks:
        for key in ("total", "running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(rank[key], expected[key])
