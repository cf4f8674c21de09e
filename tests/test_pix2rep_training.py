"""Pix2Rep by nnU-Net's commands, in 2D and 3D, and what the downstream trainers make of its checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.adapting import AdaptRequest, make_adapted
from nnunet_ssl.nnunet.memory import measure
from nnunet_ssl.nnunet.planners import resolved
from nnunet_ssl.nnunet.planning import PlanRequest, describe, make_plan
from nnunet_ssl.nnunet.presets import load_preset
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels
from nnunet_ssl.nnunet.widening import WidenedNetwork
from nnunet_ssl.objectives.pix2rep import Recipe
from tests.downstream_tools import TRAINERS, make_trainer, pretrained_file
from tests.plan_datasets import folders, raw_dataset, write_checkpoint
from tests.test_network import backbone
from tests.test_pretrain import NUMBERS
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, in_process, metrics, output_folder, run

__all__ = ["folders"]

TRAINER = "Pix2RepPretrainTrainer"
PIX2REP = {**SHORT, "objective": "pix2rep", "volumes_per_batch": 2}
V2 = {**PIX2REP, "loss": "barlow_twins", "voxels_per_pair": "all", "elastic_p": 1.0, "view_side": [0.4, 0.9]}
COMMANDS = [
    (V2, {"network": "plain", "ndim": 2, "channels": 2, "modality": "MR"}),
    ({**PIX2REP, "representation_channels": 12}, {"network": "resenc", "ndim": 3}),
    ({**PIX2REP, "levels": "all", "mask_invalid": False}, {"network": "fpn", "ndim": 3}),
]


@pytest.mark.parametrize(("ssl", "kind"), COMMANDS, ids=["v2-plain2d", "widened-resenc3d", "all-fpn3d"])
def test_command(ssl: dict[str, Any], kind: dict[str, Any], tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path, cases=3, ssl=ssl, **kind)
    result = run(tiny, trainer=TRAINER)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = output_folder(tiny, trainer=TRAINER)
    rows = metrics(folder)
    assert [row["epoch"] for row in rows] == [0, 1] and all(math.isfinite(r[key]) for r in rows for key in NUMBERS)
    assert rows[0]["redrawn"] >= 0
    levels = 3 if ssl.get("levels") == "all" else 1
    assert len(rows[0]["level_std"]) == levels
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    kept = ["encoder", "decoder"] + (["representation"] if "representation_channels" in ssl else [])
    assert (checkpoint["ssl"]["kept"], checkpoint["ssl"]["dropped"]) == (kept, ["projector"])
    assert {key.split(".")[0] for key in checkpoint["network_weights"]} == {*kept, "projector"}
    assert "Seince" in checkpoint["ssl"]["citation"][0] and checkpoint["ssl"]["objective"] == "pix2rep"
    assert (folder / "representation_report").is_dir() and (folder / "progress.png").is_file()


def test_a_report_without_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=3, ssl={**PIX2REP, "num_epochs": 1, "report_cases": 0})
    trainer = in_process(tiny, monkeypatch, trainer=TRAINER)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = output_folder(tiny, trainer=TRAINER) / "representation_report"
    report = json.loads((folder / "representation.json").read_text())
    assert [path.name for path in folder.iterdir()] == ["representation.json"] and report["pictures"] == []
    assert 0 <= report["held_back_pairs"]["pretrained"]["retrieval_at_1"] <= 1 and report["cases"] == []


@pytest.mark.parametrize("loss", ["info_nce", "barlow_twins"])
def test_it_learns(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrieval on held-back pairs rises far above chance, and above where a random network starts."""
    tiny = tiny_dataset(tmp_path, cases=4, ssl={
        **PIX2REP, "loss": loss, "num_epochs": 6, "num_iterations_per_epoch": 20, "voxels_per_pair": 128,
        "initial_lr": 3e-3, "temperature": 0.2, "projector_hidden": [32], "projector_out": 16, "levels": "all",
        "crop_side": [0.6, 1.0], "rotation_deg": 20.0, "num_val_iterations_per_epoch": 4,
    })  # fmt: skip
    trainer = in_process(tiny, monkeypatch, trainer=TRAINER)
    trainer.run_training()
    rows = metrics(output_folder(tiny, trainer=TRAINER))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.3
    assert rows[-1]["retrieval_at_1"] > max(4 * rows[-1]["retrieval_chance"], rows[0]["retrieval_at_1"])


def test_a_pair_does_not_depend_on_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained with worker processes, or stopped and continued: the weights are the same, bit for bit."""
    found = []
    for workers in (0, 2):
        tiny = tiny_dataset(tmp_path / str(workers), cases=3, ssl={**PIX2REP, "elastic_p": 0.5, "num_epochs": 1})
        trainer = in_process(tiny, monkeypatch, workers=workers, trainer=TRAINER)
        trainer.run_training()
        found.append(trainer.network.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_empty_slices_are_never_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2D views are slices of the volumes, and every one of them shows foreground."""
    tiny = tiny_dataset(tmp_path, ndim=2, cases=2, ssl={**PIX2REP, "identity_p": 1.0})
    trainer = in_process(tiny, monkeypatch, trainer=TRAINER)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    for _ in range(10):
        batch, _, redrawn = next(loader)
        assert batch.box.ndim == 4 and batch.mask.flatten(1).any(1).all() and redrawn == 0
        assert trainer.views(batch, 0, 0).valid.any(1).all()


def test_transforms_that_leave_nothing_are_drawn_again_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views of a small organ in a large patch: many transforms lose it."""
    tiny = tiny_dataset(tmp_path, cases=3, patch=(16, 24, 24), ssl={
        **PIX2REP, "crop_side": [0.3, 0.5], "identity_p": 0.0,
    })  # fmt: skip
    trainer = in_process(tiny, monkeypatch, trainer=TRAINER)
    trainer.initialize()
    dataset = trainer.get_dataloaders()[0]._loader.dataset
    small = np.zeros((20, 24, 28), bool)
    small[8:11, 10:13, 10:13] = True
    for case in dataset.cases:
        volume = dataset._volume(case)
        monkeypatch.setattr(volume, "mask", lambda s, n: small[tuple(map(slice, s, np.add(s, n)))])
    drawn = [dataset[i] for i in range(8)]
    assert sum(redrawn for _, _, redrawn in drawn) > 0
    assert all((trainer.views(batch, 0, 0).valid.sum(1) >= 2).all() for batch, _, _ in drawn)
    small[:] = False
    assert "No two foreground voxels that two views share" in str(dataset[0])


def test_a_plan_of_another_objective_names_its_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=2, ssl=PIX2REP)
    with pytest.raises(UserError, match=r'for objective "pix2rep", this trainer is for "vox2vec"\. .*-tr Pix2Rep'):
        in_process(tiny, monkeypatch)
    with pytest.raises(UserError, match="rotation_deg has 3 numbers; expected one number or 1 for 2D"):
        flat = tiny_dataset(tmp_path / "flat", ndim=2, cases=2, ssl={**PIX2REP, "rotation_deg": [10, 5, 5]})
        in_process(flat, monkeypatch, trainer=TRAINER)
    with pytest.raises(UserError, match=r"ssl.flip_axes is \[2\], expected axes 0 to 1 of a 2D patch"):
        in_process(flat, monkeypatch, trainer=TRAINER, rotation_deg=None, flip_axes=[2])


def test_defaults_without_an_ssl_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=2, ssl=None)
    trainer = in_process(tiny, monkeypatch, trainer=TRAINER)
    assert trainer.recipe == Recipe()
    trainer.initialize()
    assert trainer.network.read_channels == [8] and trainer.network.projector.mlp.layers[-1].out_features == 256


# ---- the widened finest level


@pytest.mark.parametrize(("kind", "ndim"), [("plain", 2), ("resenc", 3), ("fpn", 3)])
def test_the_widened_level_is_more_than_a_copy(kind: str, ndim: int) -> None:
    torch.manual_seed(0)
    inner = backbone(kind, ndim)
    network = WidenedNetwork(inner, 24)
    x = torch.randn(2, 2, *(16,) * ndim)
    levels = network.levels(x)
    assert [level.shape[1] for level in levels] == network.channels and network.channels[0] == 24
    assert {key.split(".")[0] for key in network.state_dict()} == {"encoder", "decoder", "representation"}
    stock = inner(x)
    assert all(torch.equal(a, b) for a, b in zip(*((v if isinstance(v, list) else [v]) for v in (network(x), stock)),
                                                  strict=True))  # fmt: skip
    vectors = levels[0].transpose(0, 1).flatten(1)
    assert torch.linalg.matrix_rank(vectors - vectors.mean(1, keepdim=True)) > pyramid_channels(inner)[0]
    assert isinstance(network.representation[1], nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d)


@pytest.mark.parametrize("name", TRAINERS)
def test_every_downstream_trainer_takes_a_widened_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset(tmp_path, labelled=True)
    for key, value in dataset.env.items():
        monkeypatch.setenv(key, value)
    ssl = {**SHORT, "num_epochs": 1, "representation_channels": 20, "head": "linear"}
    ssl = {key: value for key, value in ssl.items() if key not in ("pairs_per_batch", "voxels_per_pair",
                                                                   "projector_hidden", "projector_out")}  # fmt: skip
    trainer = make_trainer(dataset, name, ssl)
    weights = pretrained_file(dataset, tmp_path)
    stored = torch.load(weights, weights_only=True)["network_weights"]
    assert any(key.startswith("representation.") for key in stored)
    trainer = make_trainer(dataset, name, {**ssl, "pretrained": {"path": str(weights)}})
    trainer.on_train_start()
    network = trainer.network
    assert network.head.channels == [20, 12, 16]
    pretrained = name != "SSLScratchTrainer"
    assert torch.equal(network.state_dict()["representation.0.weight"], stored["representation.0.weight"]) == pretrained
    frozen = "decoder" in network.frozen
    assert network.representation[0].weight.requires_grad != frozen and network.representation.training != frozen
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    assert math.isfinite(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    used = {key for key, p in network.named_parameters() if p.requires_grad}
    assert any(key.startswith("representation.") for key in used) != frozen


def test_the_stock_head_does_not_see_the_widened_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny_dataset(tmp_path, labelled=True)
    for key, value in dataset.env.items():
        monkeypatch.setenv(key, value)
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", {"representation_channels": 20})
    trainer.initialize()
    assert not any(key.startswith("representation.") for key in trainer.network.state_dict())


# ---- plans


@pytest.mark.parametrize("preset", ["pix2rep", "pix2rep_v2"])
def test_presets_plan_slices_and_volumes(preset: str, folders: Path) -> None:
    raw_dataset(folders, 901, shape=(60, 80, 80))
    planned = make_plan(PlanRequest(901, preset, gpu_memory_gb=16.0))
    assert planned.plans["plans_name"] == f"nnssl_{preset}Plans" and planned.configurations == ["2d", "3d_fullres"]
    for name in planned.configurations:
        content = resolved(planned.plans, name)
        recipe = Recipe(**content["ssl"])
        expected = load_preset(preset)["by_configuration"][name]["ssl"]
        assert {key: content["ssl"][key] for key in expected} == expected
        assert recipe.pairs_per_batch == content["batch_size"]
        described = "\n".join(describe(planned, name))
        pairs = content["batch_size"] * recipe.points(content["patch_size"])
        assert f"up to {pairs:,} voxel pairs" in described and f"[{recipe.representation_channels}, " in described
    flat = resolved(planned.plans, "2d")
    assert flat["batch_size"] <= 8 and all(p >= s for p, s in zip(flat["patch_size"], (80, 80), strict=True))


def test_the_preset_for_volumes(folders: Path) -> None:
    """Everything in it arrives in the plan, on every level, and a 2D configuration is not planned."""
    raw_dataset(folders, 901, shape=(60, 80, 80))
    planned = make_plan(PlanRequest(901, "pix2rep_3d", gpu_memory_gb=16.0))
    assert planned.configurations == ["3d_fullres"]
    content = resolved(planned.plans, "3d_fullres")
    expected = load_preset("pix2rep_3d")["ssl"]
    assert {key: content["ssl"][key] for key in expected} == expected
    recipe = Recipe(**content["ssl"])
    assert (recipe.widened, recipe.read_levels(5), recipe.identity_p) == (None, 5, 0.0)


def test_a_widened_level_costs_memory(folders: Path) -> None:
    raw_dataset(folders, 901, shape=(60, 80, 80))
    content = resolved(make_plan(PlanRequest(901, "tiny")).plans, "3d_fullres")
    plain, wide = (measure(content["architecture"], 1, content["patch_size"], widened) for widened in (None, 128))
    assert wide.channels[0] == 128 and wide.saved - plain.saved >= 2 * 128 * math.prod(content["patch_size"])
    assert wide.parameters - plain.parameters == 16 * 128 + 3 * 128


def test_like_takes_the_way_to_pretrain_from_the_preset(folders: Path) -> None:
    raw_dataset(folders, 4, labelled=True, shape=(60, 80, 80))
    raw_dataset(folders, 901, shape=(60, 80, 80))
    make_plan(PlanRequest(4, "tiny", name="nnUNetPlans"))
    planned = make_plan(PlanRequest(901, "pix2rep", like=4))
    content = resolved(planned.plans, "3d_fullres")
    assert planned.plans["plans_name"] == "nnssl_pix2rep_like4Plans" and content["ssl"]["objective"] == "pix2rep"
    assert content["ssl"]["representation_channels"] == 256
    assert make_plan(PlanRequest(901, like=4)).plans["plans_name"] == "nnssl_like4Plans"
    added = make_plan(PlanRequest(901, like=4, config="pix", settings=["ssl.objective=pix2rep", "ssl.levels=all"]))
    block = resolved(added.plans, "pix")["ssl"]
    assert Recipe(**block).levels == "all" and "window_p" not in block


def test_adapt_keeps_the_widened_level(folders: Path) -> None:
    raw_dataset(folders, 901, shape=(60, 80, 80))
    raw_dataset(folders, 4, labelled=True, shape=(60, 80, 80))
    plans = make_plan(PlanRequest(901, "tiny", config="pix", settings=[
        "ssl.objective=pix2rep", "ssl.representation_channels=40", "ssl.mirror_axes=[0]"])).plans  # fmt: skip
    checkpoint = write_checkpoint(folders / "pix.pth", plans, "pix", ("CT",), 0)
    done = make_adapted(AdaptRequest(4, str(checkpoint)))
    assert done.plans["plans_name"] == "nnssl_tiny_pix2repPlans"
    block = SimpleNamespace(**json.loads(done.path.read_text())["configurations"]["3d_fullres"]["ssl"])
    assert (block.representation_channels, block.mirror_axes) == (40, [0])
    assert block.pretrained["objective"] == "pix2rep" and block.pretrained["recipe"]["representation_channels"] == 40
