"""Every downstream trainer by nnU-Net's own commands: train, validate, predict from a fresh process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.downstream_tools import SHORT, TRAINERS, pretrained_file, set_ssl, stock, stock_entries
from tests.tiny_dataset import tiny_dataset

TRAIN = "nnunetv2.run.run_training:run_training_entry"
PREDICT = "nnunetv2.inference.predict_from_raw_data:predict_entry_point"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All trainers trained on fold 0, with the lines that they printed."""
    root = tmp_path_factory.mktemp("commands")
    dataset = tiny_dataset(root, labelled=True, cases=2, norm="batch")
    set_ssl(dataset, {**SHORT, "pretrained": {"path": str(pretrained_file(dataset, root))}, "mirror_axes": []})
    common = [dataset.dataset_id, dataset.configuration, 0, "-p", dataset.plans_name, "-device", "cpu"]
    dataset.printed = stock_entries(dataset, *[[TRAIN, *common, "-tr", name] for name in TRAINERS])
    return dataset


def folder(dataset, name) -> Path:
    return dataset.results / dataset.dataset_name / f"{name}__{dataset.plans_name}__{dataset.configuration}" / "fold_0"


@pytest.mark.parametrize("name", TRAINERS)
def test_training_leaves_what_nnunet_leaves(name, trained):
    out = folder(trained, name)
    assert json.loads((out / "validation" / "summary.json").read_text(encoding="utf-8"))["foreground_mean"]
    checkpoint = torch.load(out / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == name and checkpoint["current_epoch"] == SHORT["num_epochs"]
    for file in ("checkpoint_best.pth", "progress.png", "downstream.json", "labelled_cases.json"):
        assert (out / file).is_file()
    assert (out / "transfer_report.json").is_file() == (name != "SSLScratchTrainer")
    assert f"Next: nnUNetv2_predict -d {trained.dataset_id}" in trained.printed and f"-tr {name} -c" in trained.printed


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """What each trainer's model predicts in a fresh process: one by the command itself, the rest by its entry point."""
    root = tmp_path_factory.mktemp("predicted")
    case = trained.cases[0]  # the fold's validation case
    (root / "images").mkdir()
    shutil.copy(trained.raw / trained.dataset_name / "imagesTr" / f"{case}_0000.nii.gz", root / "images")
    common = ["-d", trained.dataset_id, "-i", root / "images", "-f", 0, "-c", trained.configuration, "-p",
              trained.plans_name, "-device", "cpu"]  # fmt: skip
    calls = {name: [*common, "-o", root / name, "-tr", name] for name in TRAINERS}
    stock(trained, "nnUNetv2_predict", *calls[TRAINERS[0]], "-npp", 1, "-nps", 1)
    # one process without workers for the others: importing is most of a prediction this small
    stock_entries(trained, *[[PREDICT, *calls[name], "-npp", 0, "-nps", 0] for name in TRAINERS[1:]])
    return {name: root / name / f"{case}.nii.gz" for name in TRAINERS}


@pytest.mark.parametrize("name", TRAINERS)
def test_stock_predict_from_a_fresh_process(name, trained, predicted):
    import SimpleITK as sitk

    # training's own prediction of its validation case is the oracle
    validated = folder(trained, name) / "validation" / predicted[name].name
    found, expected = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (predicted[name], validated))
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) > 0.99  # the volume is normalised anew from the image file


@pytest.mark.parametrize("name", TRAINERS)
def test_predictor_rebuilds_every_trainer(name, trained, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    for key, value in trained.env.items():
        monkeypatch.setenv(key, value)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder(trained, name).parent), (0,))
    assert predictor.allowed_mirroring_axes is None
    logits = predictor.predict_logits_from_preprocessed_data(torch.randn(1, 20, 24, 28))
    assert logits.shape == (3, 20, 24, 28) and torch.isfinite(logits).all()
