"""The way of the README, typed as a user types it: scans to a segmentation, and on with nnU-Net's own tools.

The environment has no nnUNet_extTrainer: what the installation put beside the package is what finds the trainers.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.nnunet import checkpoints
from nnunet_ssl.nnunet.demo_data import write_image
from nnunet_ssl.phantom import make_case
from tests.downstream_tools import stock
from tests.tiny_dataset import REPOSITORY, environment

SHAPE, CASES = (20, 24, 24), 2
PLAN, ADAPTED, CONFIGURATION = "nnssl_tinyPlans", "adaptedPlans", "3d_fullres"
PRETRAINER, OURS, STOCK = "Vox2VecPretrainTrainer", "SSLFineTuneTrainer", "nnUNetTrainer_1epoch"
SMALL = ["patch_size=[16,16,16]", "architecture.arch_kwargs.features_per_stage=[4,4,8,8]"]
STEPS = ["ssl.num_epochs=1", "ssl.num_iterations_per_epoch=2", "ssl.num_val_iterations_per_epoch=1"]
CPU = ["-device", "cpu"]
DISCOVERY = REPOSITORY / "nnunet_ssl" / "discovery"


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def write_scans(root: Path) -> None:
    """Two plain scans, and a labelled raw dataset of two others."""
    raw = root / "nnUNet_raw" / "Dataset902_Labelled"
    for folder in (root / "scans", raw / "imagesTr", raw / "labelsTr"):
        folder.mkdir(parents=True)
    for number in range(2 * CASES):
        image, labels, spacing = make_case(np.random.default_rng(number), shape=SHAPE, organs=1)
        if number < CASES:
            write_image(root / "scans" / f"scan_{number}.nii.gz", image.astype(np.int16), spacing)
        else:
            write_image(raw / "imagesTr" / f"case_{number}_0000.nii.gz", image.astype(np.int16), spacing)
            write_image(raw / "labelsTr" / f"case_{number}.nii.gz", labels, spacing)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": CASES,
                 "file_ending": ".nii.gz"}  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Every command of the chain, run once; what each printed, and where things lie."""
    root = tmp_path_factory.mktemp("chain")
    write_scans(root)
    folders = [root / f"nnUNet_{name}" for name in ("raw", "preprocessed", "results")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    env = environment(*folders)
    for variable in ("nnUNet_extTrainer", "NNUNET_SSL_DISCOVERY"):
        env.pop(variable, None)
    made = SimpleNamespace(root=root, env=env, said={}, images=folders[0] / "Dataset902_Labelled" / "imagesTr")

    def run(title: str, command: str, *arguments: object) -> None:
        made.said[title] = stock(made, command, *arguments)

    run("import", "nnunet_ssl", "import", root / "scans", "-d", 901, "-n", "Scans", "--channel", "CT", "-np", 0)
    run("plan", "nnunet_ssl", "plan", "-d", 901, "--preset", "tiny", *settings(*SMALL, *STEPS), "--preprocess")
    run("pretrain", "nnUNetv2_train", 901, CONFIGURATION, "all", "-tr", PRETRAINER, "-p", PLAN, *CPU)
    run_folder = folders[2] / "Dataset901_Scans" / f"{PRETRAINER}__{PLAN}__{CONFIGURATION}"
    made.weights = run_folder / "fold_all" / "checkpoint_final.pth"
    run("adapt", "nnunet_ssl", "adapt", "-d", 902, "-w", made.weights, "-n", ADAPTED,
        *settings("batch_size=1", *STEPS), "--preprocess")  # fmt: skip
    made.trained = {name: folders[2] / "Dataset902_Labelled" / f"{name}__{ADAPTED}__{CONFIGURATION}" / "fold_all"
                    for name in (OURS, STOCK)}  # fmt: skip
    made.predicted = {name: root / "predicted" / name for name in (OURS, STOCK)}
    for name, more in ((OURS, []), (STOCK, ["-pretrained_weights", made.weights])):
        run(f"train {name}", "nnUNetv2_train", 902, CONFIGURATION, "all", "-tr", name, "-p", ADAPTED, *more, *CPU)
        run(f"predict {name}", "nnUNetv2_predict", "-d", 902, "-c", CONFIGURATION, "-f", "all", "-tr", name, "-p",
            ADAPTED, "-i", made.images, "-o", made.predicted[name], "--save_probabilities", "-npp", 0, "-nps", 0,
            "--disable_tta", *CPU)  # fmt: skip
    run("ensemble", "nnUNetv2_ensemble", "-i", *made.predicted.values(), "-o", root / "ensemble", "-np", 1)
    return made


def test_each_command_names_the_next(chain: SimpleNamespace) -> None:
    expected = {
        "import": "nnunet_ssl plan -d 901",
        "plan": f"nnUNetv2_train 901 {CONFIGURATION} all -tr {PRETRAINER} -p {PLAN}",
        "pretrain": f"nnunet_ssl adapt -d LABELLED_DATASET_ID -w {chain.weights}",
        "adapt": f"nnUNetv2_train 902 {CONFIGURATION} all -tr {OURS} -p {ADAPTED}",  # three cases make no five folds
        f"train {OURS}": "nnUNetv2_predict -d 902",
    }
    for title, command in expected.items():
        assert command in chain.said[title].partition("Next:")[2], title


def test_the_installation_alone_finds_the_trainers(chain: SimpleNamespace) -> None:
    for name, titles in ((PRETRAINER, ["pretrain"]), (OURS, [f"train {OURS}", f"predict {OURS}"])):
        for title in titles:
            assert f"Using trainer '{name}' from: {DISCOVERY}" in chain.said[title], title


def test_the_adapted_training_starts_from_the_pretraining(chain: SimpleNamespace) -> None:
    report = json.loads((chain.trained[OURS] / "transfer_report.json").read_text(encoding="utf-8"))
    assert report["source"] == str(chain.weights) and report["transferred"] == 1.0
    assert (chain.trained[OURS] / "checkpoint_final.pth").is_file()


def test_stock_nnunet_starts_from_the_pretraining(chain: SimpleNamespace) -> None:
    """Its own trainer takes every tensor of the file but the head's."""
    said = chain.said[f"train {STOCK}"]
    written = checkpoints.read(chain.weights)["network_weights"]
    shared = [key for key in written if ".seg_layers." not in key and not key.startswith("projector.")]
    assert len(shared) < len(written) and all(f"{key} shape" in said for key in shared)
    assert (chain.trained[STOCK] / "checkpoint_final.pth").is_file()


def test_the_ensemble_is_the_mean_of_both(chain: SimpleNamespace) -> None:
    cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in chain.images.iterdir())
    for case in cases:
        both = [np.load(folder / f"{case}.npz")["probabilities"] for folder in chain.predicted.values()]
        assert not np.array_equal(*both)
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(chain.root / "ensemble" / f"{case}.nii.gz")))
        assert np.array_equal(found, np.mean(both, axis=0).argmax(0))
