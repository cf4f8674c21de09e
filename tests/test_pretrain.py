"""Pretraining by nnU-Net's own command on every kind of network, and its variants in this process."""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssl.nnunet import epochs, progress
from nnunet_ssl.nnunet.optimisation import learning_rate
from nnunet_ssl.nnunet.watching import CANDIDATES, average, measure, smoothed
from nnunet_ssl.objectives.vox2vec import Recipe
from nnunet_ssl.step import Embeddings
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, TRAINER, in_process, metrics, output_folder, run

COMMANDS = [
    {"network": "plain", "ndim": 3, "channels": 2},
    {"network": "resenc", "ndim": 3, "modality": "MR"},
    {"network": "fpn", "ndim": 3, "channels": 2},
    {"network": "plain", "ndim": 2, "channels": 2, "modality": "MR"},
]
NUMBERS = ("train_loss", "val_loss", "retrieval_at_1", "retrieval_at_1_raw", "retrieval_chance", "alignment",
           "uniformity", "effective_rank", "lr", "seconds", "grad_norm")  # fmt: skip


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: f"{kind['network']}{kind['ndim']}d")
def test_command(tmp_path: Path, kind: dict[str, Any]) -> None:
    tiny = tiny_dataset(tmp_path, cases=3, ssl=SHORT, **kind)
    result = run(tiny)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = output_folder(tiny)
    rows = metrics(folder)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(math.isfinite(row[key]) for row in rows for key in NUMBERS)
    assert all(0 < row["effective_rank"] <= row["effective_rank_max"] == 8 for row in rows)
    assert len(rows[0]["level_std"]) == 3 and rows[0]["retrieval_chance"] == pytest.approx(1 / 64, rel=0.5)
    assert (folder / "progress.png").read_bytes().startswith(b"\x89PNG")
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["current_epoch"] == 2 and not (folder / "checkpoint_latest.pth").exists()
    assert (folder / "checkpoint_best.pth").is_file() and (folder / "representation_report").is_dir()
    assert "ssl_metrics" in json.loads((folder / "validation" / "summary.json").read_text())
    assert f"nnunet_ssl adapt -d LABELLED_DATASET_ID -w {folder / 'checkpoint_final.pth'}" in result.stdout


def test_validation_alone_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--val`` writes the report of a finished training again, and nnU-Net's export to zip takes the folder."""
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    tiny = tiny_dataset(tmp_path, cases=2, ssl={**SHORT, "num_epochs": 1})
    in_process(tiny, monkeypatch).run_training()
    again = in_process(tiny, monkeypatch)
    again.load_checkpoint(str(output_folder(tiny) / "checkpoint_final.pth"))
    again.perform_actual_validation()
    assert (output_folder(tiny) / "representation_report").is_dir()
    export_pretrained_model(tiny.dataset_name, str(tmp_path / "model.zip"), (tiny.configuration,), TRAINER,
                            tiny.plans_name, ("all",))  # fmt: skip
    assert any(name.endswith("checkpoint_final.pth") for name in zipfile.ZipFile(tmp_path / "model.zip").namelist())


@pytest.mark.parametrize("ssl", [
    {"loss": "vicreg", "level_width": 4},
    {"loss": "barlow_twins", "optimizer": "sgd", "schedule": "poly", "clip": None},
    {"spatial": "affine", "flip_axes": [2], "volumes_per_batch": 2, "optimizer": "adamw"},
    {"intensity": "none", "pairs_per_batch": None, "num_val_iterations_per_epoch": 0, "amp": "bf16",
     "loss_precision": "reduced"},
    {"intensity": "zscore", "voxels_per_pair": 4000, "loss_precision": "fused"},
], ids=lambda ssl: "-".join(map(str, ssl.values())).replace(" ", ""))  # fmt: skip
def test_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssl: dict[str, Any]) -> None:
    tiny = tiny_dataset(tmp_path, cases=2, ssl={**SHORT, "num_epochs": 1, **ssl})
    trainer = in_process(tiny, monkeypatch)
    trainer.run_training()
    assert trainer.network.reading == ("linear" if trainer.recipe.spatial == "affine" else "nearest")
    row, *rest = metrics(output_folder(tiny))
    assert not rest and math.isfinite(row["train_loss"])
    assert ("retrieval_at_1" in row) == (trainer.recipe.num_val_iterations_per_epoch > 0)
    assert (output_folder(tiny) / "checkpoint_final.pth").is_file()


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrieval on held-back pairs rises far above chance, and above where a random network starts."""
    tiny = tiny_dataset(tmp_path, cases=4, patch=(12, 12, 12), ssl={
        **SHORT, "num_epochs": 5, "num_iterations_per_epoch": 20, "voxels_per_pair": 128, "initial_lr": 3e-3,
        "projector_hidden": [32], "projector_out": 16,
    })  # fmt: skip
    trainer = in_process(tiny, monkeypatch)
    trainer.run_training()
    rows = metrics(output_folder(tiny))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.5
    assert rows[-1]["retrieval_at_1"] > max(8 * rows[-1]["retrieval_chance"], rows[0]["retrieval_at_1"])


def test_labelled_dataset_without_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    tiny = tiny_dataset(tmp_path, cases=4, labelled=True, ssl={**SHORT, "num_epochs": 1})
    for label in tiny.preprocessed_cases.glob("*_seg.b2nd"):
        label.write_bytes(b"a label that must not be read")
    in_process(tiny, monkeypatch, fold=0).run_training()
    assert "no label is read" in capsys.readouterr().out
    assert metrics(output_folder(tiny, fold="0"))


def test_defaults_without_an_ssl_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain nnU-Net plan pretrains with the paper's numbers and its own batch size, and says so."""
    from nnunet_ssl.nnunet import preparing

    tiny = tiny_dataset(tmp_path, cases=2, batch_size=3, ssl=None)
    trainer = in_process(tiny, monkeypatch)
    assert trainer.recipe == Recipe() and trainer.num_epochs == 1000 and trainer.save_every == 10
    trainer.initialize()
    assert trainer.batch_size == 3 and len(next(trainer.get_dataloaders()[0])[1]) == 3
    text = "\n".join(preparing.announcement(trainer))
    assert 'no "ssl" block' in text and '"temperature": 0.1' in text and "every 10 epochs" in text
    assert "3 pairs a step" in text
    assert type(trainer.network.projector.mlp.layers[0]) is nn.Linear


def test_what_is_frozen_and_what_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=2, ssl=SHORT)
    trainer = in_process(tiny, monkeypatch)
    trainer.on_train_start()
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.train_step(next(trainer.dataloader_train))
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, before[key]) == (".seg_layers." in key), key


def test_online_probe_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``probe.every`` epochs and in the last, and a plan that names it gets its number into the log."""
    tiny = tiny_dataset(tmp_path, cases=2, ssl={**SHORT, "num_epochs": 5, "num_iterations_per_epoch": 1})
    trainer = in_process(tiny, monkeypatch, probe={"dataset": 7, "every": 2})
    asked = []

    class Probe:
        def measure(self, network: nn.Module) -> dict[str, float]:
            asked.append(trainer.current_epoch)
            return {"dice": 0.25 + trainer.current_epoch}

    trainer.on_train_start = lambda: None
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.probe = Probe()
    trainer.run_training()
    assert asked == [1, 3, 4]
    dice = [row["probe_dice"] for row in metrics(output_folder(tiny))]
    assert dice == [None, 1.25, None, 3.25, 4.25]


def test_nnunets_number_of_workers_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnUNet_n_proc_DA processes for training, half as many for the held-back pairs."""
    tiny = tiny_dataset(tmp_path, cases=2, ssl=SHORT)
    number = min(2, os.cpu_count() or 1)  # nnU-Net takes no more than there are
    trainer = in_process(tiny, monkeypatch, workers=number)
    trainer.on_train_start()
    try:
        for loader, expected in ((trainer.dataloader_train, number), (trainer.dataloader_val, 1)):
            next(loader)
            assert [worker.is_alive() for worker in loader._iterator._workers] == [True] * expected
    finally:
        trainer.close_loaders()


@pytest.mark.parametrize(("name", "kind"), [
    ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD),
])  # fmt: skip
def test_optimizer_and_weight_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type) -> None:
    """A step without gradients is the decay alone, and each kind of optimiser decays in its own way."""
    tiny = tiny_dataset(tmp_path, cases=2, ssl={**SHORT, "optimizer": name, "weight_decay": 0.25, "initial_lr": 0.1})
    trainer = in_process(tiny, monkeypatch)
    trainer.initialize()
    assert type(trainer.optimizer) is kind
    weight = trainer.network.projector.mlp.layers[0].weight
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    trainer.optimizer.step()
    decay = 0.25 * before
    moved = {"adam": 0.1 * decay / (decay.abs() + 1e-8), "adamw": 0.1 * decay, "sgd": 0.1 * 1.99 * decay}[name]
    torch.testing.assert_close(weight.detach(), before - moved, atol=1e-5, rtol=1e-4)


# the pieces


def test_learning_rate() -> None:
    recipe = Recipe(initial_lr=1.0, warmup_epochs=1, num_iterations_per_epoch=10, num_epochs=3)
    assert [learning_rate(recipe, i) for i in (0, 4, 9, 10, 29)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine, poly = (Recipe(**{**vars(recipe), "schedule": name}) for name in ("cosine", "poly"))
    assert learning_rate(cosine, 10) == learning_rate(poly, 10) == 1.0
    assert learning_rate(cosine, 20) == pytest.approx(0.5) and learning_rate(poly, 20) == pytest.approx(0.5**0.9)
    assert learning_rate(cosine, 30) == pytest.approx(0.0) and learning_rate(poly, 30) == 0.0


def test_measure_looks_into_every_volume_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(3, 700, generator=generator) < 0.9
    cases, points = ["x", "y", "x"], int(valid.sum())
    z = torch.nn.functional.normalize(torch.randn(points, 6, generator=generator), dim=1)
    other = z.clone()
    y = valid.nonzero()[:, 0] == 1
    other[y] = z[y].roll(1, 0)  # wrong for volume y, the other one of two
    found = measure(Embeddings(z, other, z, other), valid, cases, [2, 4])
    assert found["retrieval_at_1"] == pytest.approx(0.5, abs=0.01) and len(found["level_std"]) == 2
    assert found["retrieval_chance"] == pytest.approx((1 / CANDIDATES + 1 / int(y.sum())) / 2)
    first = [bool(case == "x") for case in cases]
    alone = measure(Embeddings(*(v[~y] for v in (z, other, z, other))), valid[first], ["x", "x"], [2, 4])
    assert alone["retrieval_at_1"] == 1.0 and alone["retrieval_chance"] == 1 / CANDIDATES
    assert alone["alignment"] == pytest.approx(0.0, abs=1e-6)
    one_point = torch.tensor([[True, True], [True, False]])
    few = measure(Embeddings(*(v[:3] for v in (z, other, z, other))), one_point, ["x", "y"], [2, 4])
    assert few["retrieval_chance"] == 0.5, "a volume with one point says nothing"
    wrong = measure(Embeddings(z, z.roll(1, 0), z, z), valid, cases, [2, 4])
    assert wrong["retrieval_at_1"] < 0.01 and wrong["retrieval_at_1_raw"] == 1.0


def test_average_and_smoothing() -> None:
    assert average([{"a": 1.0, "b": [1.0, 2.0]}, {"a": 3.0, "b": [3.0, 4.0]}]) == {"a": 2.0, "b": [2.0, 3.0]}
    assert average([]) == {}
    assert smoothed(None, 0.5) == 0.5 and smoothed(0.5, None) == 0.5 and smoothed(0.5, math.nan) == 0.5
    assert smoothed(0.5, 1.0) == pytest.approx(0.55)


def test_collapse_warning() -> None:
    assert progress.collapse_warning({"effective_rank": 3.9}, 4.0).startswith("WARNING")
    assert progress.collapse_warning({"effective_rank": 4.0}, 4.0) is None
    assert progress.collapse_warning({}, 4.0) is None


@pytest.mark.parametrize(("bound", "warned"), [(1e6, True), (0.0, False)])
def test_a_run_warns_of_a_collapse_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: float, warned: bool
) -> None:
    ssl = {**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 1, "min_effective_rank": bound}
    tiny = tiny_dataset(tmp_path, cases=2, ssl=ssl)
    in_process(tiny, monkeypatch).run_training()
    (log,) = output_folder(tiny).glob("training_log_*.txt")
    assert ("WARNING: the effective rank of the embeddings is" in log.read_text(encoding="utf-8")) == warned


class Logger:
    """As nnU-Net's MetaLogger with one more logger (W&B) behind it."""

    def __init__(self) -> None:
        from nnunetv2.training.logging.nnunet_logger import LocalLogger

        self.local_logger, self.loggers, self.sent = LocalLogger(), [self], []

    def log(self, key: str, value: Any, step: int) -> None:
        self.sent.append((key, value, step))


def test_record(tmp_path: Path) -> None:
    logger = Logger()
    progress.record(logger, {"epoch": 0, "lr": 0.1, "level_std": [1.0, 2.0], "probe_dice": None}, 0)
    progress.record(logger, {"epoch": 1, "lr": 0.2, "level_std": [3.0, 4.0], "probe_dice": math.nan, "late": 5.0}, 1)
    rows = progress.history(logger)
    assert [row["lr"] for row in rows] == [0.1, 0.2] and rows[0]["late"] is None
    assert ("level_std/1", 4.0, 1) in logger.sent and ("probe_dice", None, 0) not in logger.sent
    assert "mean_fg_dice" not in rows[0], "no Dice is made up"
    progress.write_metrics(str(tmp_path), rows)
    assert metrics(tmp_path)[1]["probe_dice"] is None
    progress.plot(str(tmp_path), [{**row, "seconds": 1.0, "term_x": 0.5} for row in rows])
    assert (tmp_path / "progress.png").stat().st_size > 1000


def test_epoch_line_without_validation() -> None:
    line = progress.epoch_line({"train_loss": 1.0, "lr": 1e-3, "seconds": 2.0})
    assert "train_loss 1.0000" in line and "val_loss -" in line and "nan" not in line.lower()


def test_gradient_is_clipped_and_reported(tmp_path: Path) -> None:
    from nnunet_ssl.nnunet.devices import backward_and_step

    layer = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    norm = backward_and_step((layer(torch.ones(1, 4)) * 10).sum(), layer, optimizer, None, 1.0)
    assert norm == pytest.approx(20.0)
    assert float(layer.weight.detach().norm()) == pytest.approx(1.0, rel=1e-4)
    assert np.isfinite(norm) and epochs.SECONDS_BETWEEN_PLOTS > 0


def test_namespace_of_tiny_dataset(tmp_path: Path) -> None:
    tiny: SimpleNamespace = tiny_dataset(tmp_path, cases=1)
    assert tiny.env["nnUNet_raw"] == str(tiny.raw) and tiny.cases == ["case_000"]
