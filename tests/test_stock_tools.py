"""Stock tools on our trainings, and the stock trainer on our pretraining checkpoint."""

from __future__ import annotations

import json
import os

import pytest
import torch

from nnunet_ssl.nnunet import checkpoints
from nnunet_ssl.nnunet.network import PretrainNetwork, build_backbone
from nnunet_ssl.objectives.vox2vec import Recipe
from tests.downstream_tools import SHORT, plans_path, set_ssl, stock, stock_entries
from tests.tiny_dataset import tiny_dataset

TRAIN = "nnunetv2.run.run_training:run_training_entry"
ZIP_OUT = "nnunetv2.model_sharing.entry_points:export_pretrained_model_entry"
BEST = "nnunetv2.evaluation.find_best_configuration:find_best_configuration_entry_point"


def pretraining_file(dataset, path, classes=2):
    """The weights of a pretraining network (projector included) as our checkpoints hold them."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(plans_path(dataset))).get_configuration(dataset.configuration)
    network = PretrainNetwork(build_backbone(manager, 1, classes), Recipe(projector_out=8))
    checkpoints.write(path, {"network_weights": network.state_dict(), "ssl": {"format": 1, "objective": "vox2vec"},
                             "trainer_name": "Vox2VecPretrainTrainer"})  # fmt: skip
    return path


def test_find_best_continue_validate_and_zip(tmp_path):
    dataset = tiny_dataset(tmp_path, labelled=True, cases=2)
    weights = pretraining_file(dataset, tmp_path / "pretrained.pth")
    set_ssl(dataset, {**SHORT, "head": "linear", "pretrained": {"path": str(weights)}})
    name, plan = "SSLFineTuneTrainer", ["-p", dataset.plans_name]
    start = [dataset.dataset_id, dataset.configuration]
    end = [*plan, "-tr", name, "-device", "cpu"]
    stock_entries(dataset, [TRAIN, *start, 0, *end], [TRAIN, *start, 1, *end])

    base = dataset.results / dataset.dataset_name / f"{name}__{dataset.plans_name}__{dataset.configuration}"
    (base / "fold_1" / "checkpoint_final.pth").unlink()
    (base / "fold_1" / "checkpoint_best.pth").replace(base / "fold_1" / "checkpoint_latest.pth")
    weights.unlink()
    printed = stock(dataset, "nnUNetv2_train", *start, 1, *end, "--c")
    assert "of the checkpoint that is continued" in printed and (base / "fold_1" / "checkpoint_final.pth").is_file()
    (base / "fold_0" / "validation" / "summary.json").unlink()
    zipped = tmp_path / "model.zip"
    stock_entries(
        dataset,
        [TRAIN, *start, 0, *end, "--val"],
        [BEST, dataset.dataset_id, *plan, "-c", dataset.configuration, "-tr", name, "-f", 0, 1, "--disable_ensembling"],
        [ZIP_OUT, "-d", dataset.dataset_id, "-o", zipped, "-c", dataset.configuration, "-tr", name, *plan, "-f", 0, 1],
    )
    assert (base / "fold_0" / "validation" / "summary.json").is_file()
    best = dataset.results / dataset.dataset_name / "inference_information.json"
    assert json.loads(best.read_text(encoding="utf-8"))["best_model_or_ensemble"]["selected_model_or_models"]

    elsewhere = {**dataset.env, "nnUNet_results": str(tmp_path / "elsewhere")}
    os.makedirs(elsewhere["nnUNet_results"])
    stock(dataset, "nnUNetv2_install_pretrained_model_from_zip", zipped, env=elsewhere)
    images = dataset.raw / dataset.dataset_name / "imagesTr"
    stock(dataset, "nnUNetv2_predict", "-d", dataset.dataset_id, "-i", images, "-o", tmp_path / "out", "-f", 0, 1,
          "-tr", name, "-c", dataset.configuration, *plan, "-device", "cpu", "-npp", 1, "-nps", 1,
          env=elsewhere)  # fmt: skip
    assert len(list((tmp_path / "out").glob("case_*.nii.gz"))) == 2


@pytest.mark.parametrize("network", ["plain", "resenc", "fpn"])
def test_stock_trainer_starts_from_our_pretraining_checkpoint(network, tmp_path, monkeypatch):
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    dataset = tiny_dataset(tmp_path, labelled=True, cases=2, network=network)
    for key, value in dataset.env.items():
        monkeypatch.setenv(key, value)
    weights = pretraining_file(dataset, tmp_path / "pretrained.pth", classes=5)  # another number of classes
    trainer = get_trainer_from_args(str(dataset.dataset_id), dataset.configuration, 0, "nnUNetTrainer",
                                    dataset.plans_name, device=torch.device("cpu"))  # fmt: skip
    maybe_load_checkpoint(trainer, False, False, str(weights))
    stored = torch.load(weights, weights_only=True)["network_weights"]
    for key, value in trainer.network.state_dict().items():
        assert ".seg_layers." in key or torch.equal(value, stored[key])
    trainer.num_epochs = trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    assert os.path.isfile(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
