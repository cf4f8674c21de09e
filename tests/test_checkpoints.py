"""Checkpoints: safe to load, whole or absent, accepted by stock nnU-Net."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import checkpoints
from nnunet_ssl.nnunet.files import replacing, write_json
from nnunet_ssl.nnunet.network import build_backbone
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, in_process

CONTENT = {"network_weights": {"w": torch.arange(3.0)}, "ssl": {"format": 1}}


def test_plain_values() -> None:
    made = checkpoints.plain({
        "float": np.float64(1.5), "array": np.arange(2), "device": torch.device("cpu"), "path": Path("/x"),
        "nested": [{"t": torch.ones(2, requires_grad=True)}], "tuple": (1, None, True), 3: "three",
    })  # fmt: skip
    assert made["float"] == 1.5 and type(made["float"]) is float
    assert made["array"] == [0, 1] and made["device"] == "cpu" and made["path"] == "/x" and made[3] == "three"
    assert made["tuple"] == (1, None, True) and not made["nested"][0]["t"].requires_grad
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[0\]"):
        checkpoints.plain({"a": [object()]})


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    checkpoints.write(path, CONTENT)
    assert torch.equal(torch.load(path, weights_only=True)["network_weights"]["w"], torch.arange(3.0))
    assert checkpoints.read(path)["ssl"] == {"format": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = tmp_path / "checkpoint.pth"
    checkpoints.write(path, CONTENT)
    before = path.read_bytes()

    def half_a_file(_: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(UserError, match="intact"):
        checkpoints.write(path, CONTENT)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]
    with pytest.raises(UserError, match="Nothing was left behind"):
        checkpoints.write(tmp_path / "other.pth", CONTENT)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.read("absent.pth")
    torch.save({"ssl": Bomb(), "network_weights": {}}, "bomb.pth")
    Path("pickle.pth").write_bytes(pickle.dumps({"ssl": Bomb()}))
    Path("damaged.pth").write_bytes(b"PK\x03\x04 nothing")
    for name in ("bomb.pth", "pickle.pth", "damaged.pth"):
        with pytest.raises(UserError, match="cannot be read"):
            checkpoints.read(name)
    assert not Path("exploded").exists()
    torch.save({"network_weights": {}}, "stock.pth")
    with pytest.raises(UserError, match="not a pretraining checkpoint"):
        checkpoints.read("stock.pth")


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "a.json"
    write_json(path, {"b": 1})
    with pytest.raises(KeyboardInterrupt), replacing(path) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == '{\n    "b": 1\n}\n' and list(path.parent.iterdir()) == [path]


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    process.wait()
    return process.pid


def test_leftovers_of_killed_saves_are_removed_at_the_start(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of dead processes alone: another process may be in the middle of a save."""
    trainer = in_process(tiny, monkeypatch)
    folder, dead = Path(trainer.output_folder), dead_process()
    left = [f".tmp-{dead}-checkpoint_latest.pth", f".tmp-{os.getpid()}-checkpoint_best.pth"]
    kept = [f".tmp-{os.getppid()}-checkpoint_latest.pth", f".tmp-{dead}-other.json", ".tmp-x-checkpoint_best.pth"]
    for name in (*left, *kept):
        (folder / name).write_bytes(b"half")
    trainer.on_train_start()
    trainer.close_loaders()
    assert sorted(path.name for path in folder.glob(".tmp-*")) == sorted(kept)
    for name in kept:
        (folder / name).unlink()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return tiny_dataset(tmp_path_factory.mktemp("checkpoints"), cases=3, ssl=SHORT)


def test_of_a_trainer(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_json(tiny.raw / tiny.dataset_name / "import_report.json", {"volumes": {"case_000": "abc"}})
    trainer = in_process(tiny, monkeypatch)
    trainer.initialize()
    path = str(tmp_path / "checkpoint_latest.pth")
    trainer.save_checkpoint(path)
    found = torch.load(path, weights_only=True)
    ssl = found["ssl"]
    assert ssl["format"] == 1 and ssl["objective"] == "vox2vec" and ssl["recipe"]["projector_out"] == 8
    assert ssl["channels"] == [8, 12, 16] and ssl["strides"] == [[1, 1, 1], [2, 2, 2], [4, 4, 4]]
    assert ssl["volumes"] == {"case_000": "abc"} and ssl["configuration"] == "3d_fullres"
    assert ssl["plans"]["plans_name"] == tiny.plans_name and ssl["dataset_json"]["ssl_foreground"] is True
    assert ssl["dataset_name"] == tiny.dataset_name and "torch" in ssl["versions"] and "MICCAI" in ssl["citation"][0]
    assert found["trainer_name"] == "Vox2VecPretrainTrainer" and found["init_args"]["device"] == "cpu"


def test_stock_loader_accepts_it(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any number of classes: only the segmentation layers differ, and those the stock loader skips."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    trainer = in_process(tiny, monkeypatch)
    trainer.initialize()
    path = tmp_path / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    network = build_backbone(trainer.configuration_manager, 1, 7)
    load_pretrained_weights(network, str(path))
    weights = trainer.bare_network().state_dict()
    loaded = [key for key in network.state_dict() if ".seg_layers." not in key]
    assert len(loaded) > 20
    assert all(torch.equal(network.state_dict()[key], weights[key]) for key in loaded)
