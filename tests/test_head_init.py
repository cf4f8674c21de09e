"""Heads that start from the training cases' frozen features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.heads import LinearHead
from nnunet_ssl.networks import FPN3dUNet
from nnunet_ssl.nnunet.downstream import head_init
from nnunet_ssl.nnunet.downstream.head_init import fit_targets, fold_moments, sample_features, set_moments
from nnunet_ssl.nnunet.downstream.network import DownstreamNetwork
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.downstream.settings import resolve
from nnunet_ssl.nnunet.network import pyramid_channels, pyramid_strides
from tests.downstream_tools import SHORT, make_trainer, pretrained_file, relabel, same, states
from tests.tiny_dataset import tiny_dataset


def probe(classes=3, seed=0):
    torch.manual_seed(seed)
    backbone = FPN3dUNet(1, classes, base_channels=4, num_scales=3)
    head = LinearHead(pyramid_channels(backbone), pyramid_strides(backbone), classes)
    return DownstreamNetwork(backbone, head, ("encoder", "decoder"), standardise=True)


def test_moments_standardise_and_fold_into_the_convolutions():
    network, x = probe(), torch.randn(2, 1, 9, 10, 7)
    features = torch.randn(500, sum(network.head.channels)) * torch.linspace(0.5, 9, sum(network.head.channels)) + 3
    set_moments(network, features)
    channels = network.head.channels
    for level, part in enumerate(features.split(channels, 1)):
        mean, std = network.moments(level)
        rows = (part - mean) / std
        assert torch.allclose(rows.mean(0), torch.zeros(channels[level]), atol=1e-4)
        assert torch.allclose(rows.std(0, unbiased=False), torch.ones(channels[level]), atol=1e-4)
    before = network(x)
    fold_moments(network)
    assert torch.allclose(before, network(x), rtol=1e-4, atol=1e-4)
    assert all(torch.all(network.moments(n)[0] == 0) and torch.all(network.moments(n)[1] == 1) for n in range(3))
    folded = network(x)
    network.standardise = False
    assert torch.equal(folded, network(x))


def test_a_channel_that_does_not_vary_stays_finite():
    network = probe()
    set_moments(network, torch.ones(50, sum(network.head.channels)))
    assert torch.isfinite(network(torch.randn(1, 1, 8, 8, 8))).all()


def test_sampling_reads_eval_mode_and_leaves_the_modes_as_they_were():
    class Labels:
        all_labels, ignore_label = [0, 1, 2], None

    network = probe()
    network.frozen = ()
    network.train()
    network.decoder.eval()
    before = states(network, "backbone")
    labels = np.zeros((1, 12, 12, 12), np.int8)
    labels[:, 3:6] = 1
    labels[:, 8:] = 2
    image = np.random.default_rng(0).normal(size=(1, 12, 12, 12)).astype(np.float32)
    sample = sample_features(network, [(image, labels)], (8, 8, 8), Labels, torch.device("cpu"), 0)
    assert same(before, states(network, "backbone"))  # batch statistics included
    assert network.encoder.training and not network.decoder.training
    assert sample.features.shape[1] == sum(network.head.channels) and set(sample.labels.tolist()) == {0, 1, 2}


def test_targets_say_what_the_outputs_mean():
    class Regions:
        has_regions, foreground_regions, foreground_labels = True, [(1, 2), 2], [1, 2]

    class Labels(Regions):
        has_regions = False

    labels = torch.tensor([0, 1, 2])
    assert fit_targets(labels, Regions, False).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert fit_targets(labels, Labels, True).tolist() == [[0, 0], [1, 0], [0, 1]]
    assert fit_targets(labels, Labels, False) is labels


CASES = [
    ("SSLFineTuneTrainer", {"head": "stock"}, 3),
    ("SSLFineTuneTrainer", {"head": "linear"}, 3),
    ("SSLScratchTrainer", {"head": "stock"}, 3),
    ("SSLScratchTrainer", {"head": "linear"}, 2),
    ("SSLFrozenTrainer", {}, 3),
    ("SSLLinearProbeTrainer", {}, 3),
    ("SSLLinearProbeTrainer", {"protocol": "vox2vec"}, 3),
]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize(("name", "ssl", "ndim"), CASES)
def test_probe_start_segments_before_the_first_step(name, ssl, ndim, regions, tmp_path, monkeypatch):
    dataset = tiny_dataset(tmp_path, ndim=ndim, labelled=True)
    for key, value in dataset.env.items():
        monkeypatch.setenv(key, value)
    if regions:
        relabel(dataset, {"background": 0, "whole": [1, 2], "organ": 2}, regions_class_order=[1, 2])
    weights = pretrained_file(dataset, tmp_path)
    ssl = {**SHORT, **ssl, "head_init": "probe", "seed": 1, "pretrained": {"path": str(weights)}}
    trainer = make_trainer(dataset, name, ssl)
    trainer.initialize()
    random = states(trainer.network, "head")
    trainer.on_train_start()
    assert not same(random, states(trainer.network, "head"))
    trainer.network.eval()
    with torch.no_grad():
        rows = [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(4)]
    tp, fp, fn = (np.sum([row[key] for row in rows], 0) for key in ("tp_hard", "fp_hard", "fn_hard"))
    dice = 2 * tp / (2 * tp + fp + fn)
    assert dice[0] > 0.8  # the body differs from air by 1000 HU: any fit finds it, a random head does not


def test_nonlinear_head_says_that_it_starts_at_random(tmp_path, monkeypatch, capsys):
    dataset = tiny_dataset(tmp_path, labelled=True)
    for key, value in dataset.env.items():
        monkeypatch.setenv(key, value)
    ssl = {**SHORT, "head_init": "probe", "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}
    trainer = make_trainer(dataset, "SSLNonlinearProbeTrainer", ssl)
    trainer.on_train_start()
    printed = capsys.readouterr().out
    assert "does not apply" in printed and "started at random" in printed
    assert float(trainer.network.moments(0)[1].sum()) != trainer.network.head.channels[0]  # moments were taken


def test_what_the_head_starts_from_by_default():
    """Pretrained: a fit; from scratch, nnU-Net's own start; the paper's protocol and a non-linear head: random."""
    from nnunet_ssl.nnunet.downstream.protocols import fine_tune, frozen, linear_probe, nonlinear_probe, scratch

    def start(protocol, /, **fields):
        return resolve(DownstreamRecipe(**fields), protocol.PROTOCOL).head_init

    assert [start(p) for p in (fine_tune, frozen, linear_probe)] == ["probe"] * 3
    assert [start(p) for p in (scratch, nonlinear_probe)] == ["random"] * 2
    assert start(fine_tune, protocol="vox2vec") == start(fine_tune, head_init="random") == "random"
    assert start(scratch, head_init="probe") == start(linear_probe, protocol="vox2vec", head_init="probe") == "probe"


@pytest.mark.parametrize("asked", [False, True])
def test_a_fit_without_labelled_voxels(asked, tmp_path, monkeypatch, capsys):
    dataset = tiny_dataset(tmp_path, labelled=True)
    for key, value in dataset.env.items():
        monkeypatch.setenv(key, value)
    ssl = {**SHORT, "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", {**ssl, "head_init": "probe"} if asked else ssl)
    trainer.initialize()
    before = states(trainer.network, "decoder")

    def no_voxel(*args, **kwargs):
        raise UserError("no voxel of the classes was found")

    monkeypatch.setattr(head_init, "sample_features", no_voxel)
    if asked:
        with pytest.raises(UserError, match="no voxel"):
            head_init.prepare_head(trainer)
        return
    head_init.prepare_head(trainer)
    assert "The head starts at random: no voxel" in capsys.readouterr().out
    assert same(before, states(trainer.network, "decoder"))
