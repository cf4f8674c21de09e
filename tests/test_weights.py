"""Reading pretrained files: what is accepted, and that nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.networks import FPN3d, FPN3dUNet
from nnunet_ssl.nnunet.weights import read_checkpoint, transfer


def test_a_checkpoint_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    content = {
        "network_weights": {"module.encoder.a": torch.ones(2), "_orig_mod.encoder.b": torch.zeros(1)},
        "ssl": {"objective": "vox2vec", "plans": {"plans_name": "p"}, "configuration": "3d_fullres"},
        "trainer_name": "Vox2VecPretrainTrainer",
    }
    torch.save(content, path)
    found = read_checkpoint(path)
    assert set(found.weights) == {"encoder.a", "encoder.b"}
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.objective, found.configuration, found.plans) == ("vox2vec", "3d_fullres", {"plans_name": "p"})
    assert found.trainer_name == "Vox2VecPretrainTrainer" and found.path == str(path)


def test_a_stock_checkpoint_holds_numpy_scalars(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    content = {
        "network_weights": {"encoder.a": torch.ones(2)},
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "epochs": [np.int64(3)], "x": np.zeros(2)},
        "init_args": {"plans": {"plans_name": "nnUNetPlans"}, "configuration": "2d", "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
    }
    torch.save(content, path)
    found = read_checkpoint(path)
    assert found.ssl is None and found.objective == "supervised"
    assert (found.plans, found.configuration) == ({"plans_name": "nnUNetPlans"}, "2d")


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_bomb_is_refused(tmp_path: Path, legacy: bool) -> None:
    path, proof = tmp_path / "bomb.pth", tmp_path / "exploded"
    content = {"network_weights": {"encoder.a": torch.ones(1)}, "x": Bomb(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="could run foreign code"):
        read_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the bomb works
    assert proof.exists()


def test_broken_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    with pytest.raises(UserError, match="No checkpoint at"):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="could not be read"):
        read_checkpoint(path)
    path.write_text("not a checkpoint")
    with pytest.raises(UserError, match="could not be read"):
        read_checkpoint(path)
    torch.save({"network_weights": {"encoder.a": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(UserError, match="could not be read"):
        read_checkpoint(path)
    for content in ({"model": {"a": 1}}, [1, 2], {"conv.weight": torch.ones(1)}, torch.ones(3)):
        torch.save(content, path)
        with pytest.raises(UserError, match="neither a checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_published_weights(tmp_path: Path, wrapped: bool) -> None:
    """The same features from the same image, whose axes the published network saw as x, y, z."""
    torch.manual_seed(0)
    ours = FPN3d(1, base_channels=4, num_scales=3).eval()
    path = tmp_path / "vox2vec.pt"
    published = {k: v.permute(0, 1, 4, 3, 2) if v.ndim == 5 else v for k, v in ours.state_dict().items()}
    content = {f"backbone.{k}": v for k, v in published.items()} | {"proj_head.weight": torch.ones(1)}
    torch.save({"state_dict": content} if wrapped else published, path)
    found = read_checkpoint(path)
    assert found.published and found.objective == "vox2vec"
    network = FPN3dUNet(1, 5, base_channels=4, num_scales=3).eval()
    assert transfer(network, found).transferred == 1.0
    image = torch.randn(1, 1, 8, 12, 16)
    with torch.no_grad():
        for mine, theirs in zip(network.levels(image), ours(image), strict=True):
            torch.testing.assert_close(mine, theirs)
