"""`nnunet_ssl plan`: what lands in the plans file, what is refused, and one run on plain images through stock tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import memory
from nnunet_ssl.nnunet.planning import PlanRequest, describe, make_plan
from nnunet_ssl.nnunet.recipe import parse
from nnunet_ssl.objectives.vox2vec import Recipe
from tests.plan_datasets import folders, raw_dataset, read_plans

__all__ = ["folders"]


def test_vox2vec_preset(folders: Path) -> None:
    dataset = raw_dataset(folders, 901)
    planned = make_plan(PlanRequest(901))
    plans = read_plans(dataset, "nnssl_vox2vecPlans")
    assert plans == planned.plans and planned.configurations == ["3d_fullres"] == list(plans["configurations"])
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    assert configuration.patch_size == [32, 128, 128] and configuration.batch_size == 10
    assert configuration.spacing == [2.0, 1.0, 1.0] and configuration.normalization_schemes == ["CTNormalization"]
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    assert [properties[k] for k in ("percentile_00_5", "percentile_99_5", "mean", "std")] == [-1350, 1000, -1350, 2350]
    assert parse(configuration.configuration["ssl"], Recipe) == Recipe(pairs_per_batch=10)  # complete, the paper's
    assert configuration.configuration["ssl"].keys() == Recipe().to_dict().keys()
    assert any("preset vox2vec: vox2vec as published" in note for note in planned.notes)
    text = "\n".join(describe(planned, "3d_fullres"))
    assert "47,624,448" in text and "64 x 128 x 128 mm" in text and "10,485,760" in text and "GiB" in text
    assert json.loads((dataset.preprocessed / "dataset.json").read_text())["ssl_foreground"] is True
    assert not (dataset.preprocessed / "nnUNetPlans.json").exists()


def test_nnunet_preset_is_the_planners_own(folders: Path) -> None:
    dataset = raw_dataset(folders, 901)
    planned = make_plan(PlanRequest(901, preset="nnunet"))
    assert planned.configurations == ["3d_fullres", "2d"]
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    os.environ["nnUNet_n_proc_DA"] = "1"  # put back by the fixture's monkeypatch
    stock = json.loads(json.dumps(ExperimentPlanner(901).plan_experiment(), default=lambda v: np.asarray(v).tolist()))
    ours, theirs = planned.plans["configurations"], stock["configurations"]
    assert set(ours) == {"2d", "3d_fullres"}
    for name in ours:
        for key in ("architecture", "spacing", "normalization_schemes", "patch_size"):
            expected = theirs[name][key]
            assert key == "patch_size" or ours[name][key] == expected
        assert all(a <= b for a, b in zip(ours[name]["patch_size"], theirs[name]["patch_size"], strict=True))
        assert ours[name]["ssl"]["pairs_per_batch"] == ours[name]["batch_size"] <= 16
        assert ours[name]["data_identifier"] == f"nnssl_nnunetPlans_{name}"
    assert dataset.preprocessed.joinpath("nnssl_nnunetPlans.json").exists()


@pytest.mark.parametrize("size", ["L", "XL"])
def test_the_larger_residual_planners(folders: Path, size: str) -> None:
    raw_dataset(folders, 901, shape=(60, 64, 64), spacing=(1, 1, 1))
    planned = make_plan(PlanRequest(901, preset="nnunet", planner=f"nnUNetPlannerResEnc{size}"))
    architecture = planned.plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].endswith("ResidualEncoderUNet")
    assert planned.plans["experiment_planner_used"] == f"nnUNetPlannerResEnc{size}"


def test_a_planner_is_not_dropped_in_silence(folders: Path) -> None:
    like_target(folders)
    dataset = raw_dataset(folders, 901)
    for options in ({}, {"preset": "tiny"}, {"preset": "tiny", "config": "other"}):
        with pytest.raises(UserError, match=r"has its own network\. Use --preset nnunet"):
            make_plan(PlanRequest(901, planner="nnUNetPlannerResEncL", **options))
    with pytest.raises(UserError, match="does not go with --like"):
        make_plan(PlanRequest(901, like=4, planner="nnUNetPlannerResEncL"))
    make_plan(PlanRequest(4, preset="nnunet", name="mine"))
    with pytest.raises(UserError, match=r"is for a new plan; mine is there\. --config only adds"):
        make_plan(PlanRequest(4, preset="nnunet", name="mine", config="cold", planner="nnUNetPlannerResEncL"))
    assert not list(dataset.preprocessed.glob("*Plans.json"))


@pytest.mark.parametrize("there", [False, True], ids=["a new plan", "an older plan"])
def test_an_added_configuration_fits_the_memory_too(folders: Path, there: bool) -> None:
    dataset = raw_dataset(folders, 901)
    if there:
        make_plan(PlanRequest(901, preset="tiny"))
    with pytest.raises(UserError, match=r"needs about .* asked for were 1\."):
        make_plan(PlanRequest(901, preset="tiny", config="big", gpu_memory_gb=1, settings=["ssl.pairs_per_batch=400"]))
    large = ["patch_size=[96,96,96]"]
    planned = make_plan(PlanRequest(901, preset="tiny", config="big", gpu_memory_gb=2.2, settings=large))
    content = PlansManager(read_plans(dataset, "nnssl_tinyPlans")).get_configuration("big").configuration
    assert content["batch_size"] == content["ssl"]["pairs_per_batch"] < 4 and content["patch_size"] == [96, 96, 96]
    assert any("to fit 2.2 GiB" in note for note in planned.notes)
    assert read_plans(dataset, "nnssl_tinyPlans")["configurations"]["3d_fullres"]["batch_size"] == 4


def test_planner_option(folders: Path) -> None:
    raw_dataset(folders, 901, shape=(60, 64, 64), spacing=(1, 1, 1))
    planned = make_plan(PlanRequest(901, preset="nnunet", planner="nnUNetPlannerResEncM", name="mine"))
    assert planned.path.name == "mine.json"
    architecture = planned.plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].endswith("ResidualEncoderUNet")
    with pytest.raises(UserError, match=r"no planner ResEncHuge.*nnUNetPlannerResEncM"):
        make_plan(PlanRequest(901, preset="nnunet", planner="ResEncHuge"))


@pytest.mark.parametrize(
    ("shape", "spacing", "patch", "total"),
    [
        ((36, 50, 35), (1, 1, 1), [24, 32, 24], [8, 8, 8]),
        ((128, 128, 128), (2.5, 3.9, 3.9), [24, 32, 32], [8, 8, 8]),
        ((20, 400, 400), (5.0, 0.7, 0.7), [14, 32, 32], [2, 8, 8]),
    ],
)
def test_tiny_preset(folders: Path, shape: tuple, spacing: tuple, patch: list, total: list) -> None:
    raw_dataset(folders, 901, ["MRI"], shape=shape, spacing=spacing)
    planned = make_plan(PlanRequest(901, preset="tiny"))
    configuration = planned.plans["configurations"]["3d_fullres"]
    assert memory.total_stride(configuration["architecture"]) == total
    assert configuration["patch_size"] == patch
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 128]
    assert (configuration["batch_size"], configuration["ssl"]["voxels_per_pair"]) == (4, 256)
    assert any("MRI is not CT" in note for note in planned.notes)


@pytest.mark.parametrize(("intensity", "told"), [("auto", True), ("hu", True), ("zscore", False), ("none", False)])
def test_channels_that_are_not_ct_are_named(folders: Path, intensity: str, told: bool) -> None:
    """Whatever was asked for, their intensities do not vary in HU."""
    raw_dataset(folders, 901, ["CT", "PET"], shape=(36, 50, 35), spacing=(1, 1, 1))
    planned = make_plan(PlanRequest(901, preset="tiny", settings=[f'ssl.intensity="{intensity}"']))
    notes = [note for note in planned.notes if "PET is not CT" in note]
    assert len(notes) == told
    assert ('although ssl.intensity is "hu"' in "".join(notes)) == (intensity == "hu")


def test_portable_is_for_one_channel(folders: Path) -> None:
    raw_dataset(folders, 901, ["T1", "T2"])
    with pytest.raises(UserError, match=r"1 input channel.*2 \(T1, T2\)"):
        make_plan(PlanRequest(901, preset="portable"))
    dataset = raw_dataset(folders, 902, ["T1"])
    make_plan(PlanRequest(902, preset="portable"))
    configuration = read_plans(dataset, "nnssl_portablePlans")["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["n_stages"] == 6 and all(k == [3, 3, 3] for k in arguments["kernel_sizes"])


def like_target(folders: Path, **changes: object) -> SimpleNamespace:
    """Dataset 4 with a stock plan."""
    options = {"channels": ["MRI"], "labelled": True, "shape": (36, 50, 35), "spacing": (1, 1, 1), **changes}
    target = raw_dataset(folders, 4, **options)
    from nnunet_ssl.nnunet.datasets import open_dataset
    from nnunet_ssl.nnunet.planners import stock_plan

    plans = stock_plan(open_dataset(4), "ExperimentPlanner", "nnUNetPlans")
    (target.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    return target


def test_like(folders: Path) -> None:
    target = like_target(folders, channels=["CT"], intensities={"mean": 77.0})
    dataset = raw_dataset(folders, 901, ["CT"], shape=(30, 64, 64), spacing=(1.2, 0.9, 0.9))
    planned = make_plan(PlanRequest(901, like="4"))
    assert planned.plans["plans_name"] == "nnssl_like4Plans"
    ours, theirs = read_plans(dataset, "nnssl_like4Plans"), read_plans(target, "nnUNetPlans")
    mine, their = ours["configurations"]["3d_fullres"], theirs["configurations"]["3d_fullres"]
    for key in ("architecture", "spacing", "normalization_schemes", "use_mask_for_norm"):
        assert mine[key] == their[key], key
    assert ours["transpose_forward"] == theirs["transpose_forward"]
    assert ours["foreground_intensity_properties_per_channel"]["0"]["mean"] == 77.0
    assert ours["dataset_name"] == dataset.name
    stride = memory.total_stride(mine["architecture"])
    assert mine["median_image_size_in_voxels"] == [36, 58, 58]
    assert all(p % s == 0 and p <= m for p, s, m in zip(mine["patch_size"], stride, [36, 58, 58], strict=True))
    assert mine["data_identifier"] == "nnssl_like4Plans_3d_fullres"
    assert ours["nnunet_ssl"]["like"] == {"dataset": target.name, "plans": "nnUNetPlans"}


def test_like_with_other_channels_warns(folders: Path) -> None:
    like_target(folders)
    raw_dataset(folders, 901, ["CT"])
    planned = make_plan(PlanRequest(901, like=4))
    assert any("warning: channel CT has no counterpart" in note for note in planned.notes)
    assert planned.plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]


def test_like_names_the_plans_that_are_there(folders: Path) -> None:
    like_target(folders)
    raw_dataset(folders, 901)
    with pytest.raises(UserError, match=r"no plan nnUNetResEncUNetLPlans \(there: nnUNetPlans\)"):
        make_plan(PlanRequest(901, like=4, like_plans="nnUNetResEncUNetLPlans"))


def test_set_overlay_and_config(folders: Path, tmp_path: Path) -> None:
    dataset = raw_dataset(folders, 901)
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"description": "x", "ssl": {"temperature": 0.2, "seed": 3}, "batch_size": 6}))
    sets = ["ssl.temperature=0.07", "ssl.spatial=affine"]
    make_plan(PlanRequest(901, preset="tiny", overlays=[str(overlay)], settings=sets))
    base = read_plans(dataset, "nnssl_tinyPlans")["configurations"]["3d_fullres"]
    assert (base["ssl"]["temperature"], base["ssl"]["seed"], base["ssl"]["spatial"]) == (0.07, 3, "affine")
    assert base["ssl"]["pairs_per_batch"] == base["batch_size"] == 6

    planned = make_plan(PlanRequest(901, preset="tiny", config="cold", settings=["ssl.temperature=0.02"]))
    plans = read_plans(dataset, "nnssl_tinyPlans")
    assert plans["configurations"]["3d_fullres"] == base and planned.configurations == ["cold"]
    assert set(plans["configurations"]["cold"]) == {"inherits_from", "ssl"}
    cold = PlansManager(plans).get_configuration("cold").configuration
    assert cold["ssl"] == {**base["ssl"], "temperature": 0.02}
    assert cold["data_identifier"] == base["data_identifier"]

    make_plan(PlanRequest(901, preset="tiny"))  # replanning keeps what was added, as nnU-Net does
    assert "cold" in read_plans(dataset, "nnssl_tinyPlans")["configurations"]


def test_a_configuration_with_other_data_gets_its_own_folder(folders: Path) -> None:
    dataset = raw_dataset(folders, 901, shape=(128, 128, 128), spacing=(2.5, 4.0, 4.0))  # nnU-Net transposes these
    make_plan(PlanRequest(901, preset="tiny"))
    make_plan(PlanRequest(901, preset="tiny", config="fine", settings=["spacing=[2,1,1]", "batch_size=2"]))
    plans = read_plans(dataset, "nnssl_tinyPlans")
    fine = PlansManager(plans).get_configuration("fine").configuration
    assert plans["transpose_forward"] == [1, 0, 2] and fine["spacing"] == [1.0, 2.0, 1.0]
    assert fine["median_image_size_in_voxels"] == [512, 160, 512]
    assert fine["data_identifier"] == "nnssl_tinyPlans_fine"
    assert fine["ssl"]["pairs_per_batch"] == fine["batch_size"] == 2


REFUSED = {
    "unknown ssl key": (["ssl.temprature=1"], "temprature.*temperature"),
    "unknown key": (["patch_siz=1"], "patch_siz.*patch_size"),
    "ssl key without ssl": (["temperature=1"], 'Did you mean "ssl.temperature"'),
    "wrong type": (["ssl.seed=abc"], "ssl.seed"),
    "wrong value": (["ssl.loss=l2"], "loss"),
    "unknown probe key": (["ssl.probe.dataset=4", "ssl.probe.evry=5"], "evry.*every"),
    "not key=value": (["ssl.seed"], "key=value"),
    "not a multiple": (["patch_size=[22,32,32]"], r"\[22, 32, 32\].*multiples of the total stride \[4, 8, 8\]"),
    "axes": (["patch_size=[32,32]"], "multiples"),
    "no pairs": (["batch_size=0"], "batch_size"),
    "identifier": (["data_identifier=x"], "decided"),
    "spacing": (["spacing=[1,-1,1]"], "spacing"),
    "objective": (["ssl.objective=vox3vec"], "vox2vec"),
    "network": (["architecture.arch_kwargs.n_stages=5"], "cannot be built"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_are_refused_leave_no_plan(folders: Path, case: str) -> None:
    dataset = raw_dataset(folders, 901)
    settings, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        make_plan(PlanRequest(901, preset="tiny", settings=settings))
    assert not list(dataset.preprocessed.glob("*Plans*"))


@pytest.mark.parametrize("preset", ["vox2vec", "pix2rep"])
def test_a_misspelt_field_is_noticed_before_any_image_is_read(
    folders: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    raw_dataset(folders, 901)
    monkeypatch.setattr("nnunet_ssl.nnunet.planning.stock_plan", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match='Did you mean "temperature"'):
        make_plan(PlanRequest(901, preset=preset, settings=["ssl.temprature=0.1"]))


def test_gpu_memory(folders: Path) -> None:
    raw_dataset(folders, 901)
    everything = make_plan(PlanRequest(901)).plans["configurations"]["3d_fullres"]
    planned = make_plan(PlanRequest(901, gpu_memory_gb=5))
    fitted = planned.plans["configurations"]["3d_fullres"]
    assert fitted["batch_size"] < everything["batch_size"] == 10 and any("to fit 5 GiB" in n for n in planned.notes)
    assert fitted["ssl"]["pairs_per_batch"] == fitted["batch_size"]
    cost = memory.measure(fitted["architecture"], 1, fitted["patch_size"])
    recipe = parse(fitted["ssl"], Recipe)
    assert memory.step_gib(cost, fitted["batch_size"], fitted["patch_size"], recipe, half=True) <= 5
    with pytest.raises(UserError, match=r"needs about .* asked for were 0\.5"):
        make_plan(PlanRequest(901, gpu_memory_gb=0.5))


def test_foreign_plans_are_never_touched(folders: Path) -> None:
    dataset = raw_dataset(folders, 901)
    path = dataset.preprocessed / "minePlans.json"
    path.write_text('{"plans_name": "minePlans"}')
    with pytest.raises(UserError, match="not written by nnunet_ssl"):
        make_plan(PlanRequest(901, preset="tiny", name="minePlans"))
    assert path.read_text() == '{"plans_name": "minePlans"}'


def test_names_that_cannot_be(folders: Path) -> None:
    raw_dataset(folders, 901)
    for name in ("a b", "a/b", "a__b"):
        with pytest.raises(UserError, match="cannot name a plan"):
            make_plan(PlanRequest(901, name=name))


def test_missing_things_are_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"No dataset 77 .*import"):
        make_plan(PlanRequest(77))
    raw_dataset(folders, 901)
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(UserError, match="nnUNet_preprocessed is not set"):
        make_plan(PlanRequest(901))
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        make_plan(PlanRequest(901))


def test_a_fingerprint_of_other_cases_is_made_again(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = raw_dataset(folders, 901, cases=4, listed=False)
    (dataset.raw / "imagesTr" / "c003_0000.nii.gz").unlink()
    ran = []
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor as module

    monkeypatch.setattr(module.DatasetFingerprintExtractor, "run", lambda self, overwrite_existing: ran.append(self))
    make_plan(PlanRequest(901, preset="tiny"))
    assert ran and list(ran[0].dataset) == ["c000", "c001", "c002"]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_preprocessed_folder_that_cannot_be_written_is_not_the_images_fault(
    folders: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    raw_dataset(folders, 901)
    (folders / "file").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(folders / "file" / below))
    with pytest.raises(UserError, match=r"file.* cannot be written \(Not a directory\).*nnUNet_preprocessed"):
        make_plan(PlanRequest(901, preset="tiny"))


def test_a_fingerprint_that_finds_no_room_is_not_the_images_fault(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = raw_dataset(folders, 901)
    (dataset.preprocessed / "dataset_fingerprint.json").unlink()
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor as module

    def full(self: object, overwrite_existing: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.DatasetFingerprintExtractor, "run", full)
    with pytest.raises(UserError, match=r"No space left on device. Check the room in") as caught:
        make_plan(PlanRequest(901, preset="tiny"))
    assert "labels" not in str(caught.value)


def test_plain_images_through_the_command_line(folders: Path) -> None:
    """No labels at all: masks, fingerprint, plan, nnU-Net's preprocessing, and the next command."""
    dataset = raw_dataset(folders, 901, shape=(24, 28, 26), spacing=(1, 1, 1), cases=2, written=True)
    command = [sys.executable, "-m", "nnunet_ssl.cli.main", "plan", "-d", "901", "--preset", "tiny", "--preprocess"]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "nnUNetv2_train 901 3d_fullres all -tr Vox2VecPretrainTrainer -p nnssl_tinyPlans" in done.stdout
    assert "nnUNetv2_preprocess" not in done.stdout
    content = json.loads((dataset.preprocessed / "dataset.json").read_text())
    assert content["ssl_foreground"] is True and content["numTraining"] == 2
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = dataset.preprocessed / "nnssl_tinyPlans_3d_fullres"
    data, mask, _, _ = nnUNetDatasetBlosc2(str(folder)).load_case("c000")
    assert data.shape == (1, 24, 28, 26) and mask[0, 12, 14, 13] == 1 and mask[0, 0, 0, 0] == 0
    properties = read_plans(dataset, "nnssl_tinyPlans")["foreground_intensity_properties_per_channel"]["0"]
    assert properties["median"] > -100  # of the body; that of the image is air
    assert not (dataset.raw / "labelsTr").exists()


@pytest.mark.parametrize("damage", ["truncated", "nan", "gone"])
def test_a_damaged_image_is_named_before_anything_is_preprocessed(folders: Path, damage: str) -> None:
    import SimpleITK as sitk

    dataset = raw_dataset(folders, 901, shape=(24, 28, 26), spacing=(1, 1, 1), cases=2, written=True)
    make_plan(PlanRequest(901, preset="tiny"))
    path = dataset.raw / "imagesTr" / "c001_0000.nii.gz"
    if damage == "nan":
        image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
        image[3, 4, 5] = float("nan")
        sitk.WriteImage(image, str(path))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.rename(folders / "aside.nii.gz")
        path.symlink_to(folders / "nowhere.nii.gz")
    command = [sys.executable, "-m", "nnunet_ssl.cli.main", "plan", "-d", "901", "--preset", "tiny", "--preprocess"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=600)
    words = {"truncated": "unreadable", "nan": "non-finite", "gone": "missing"}[damage]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{path} is {words}" in done.stderr and "c000" not in done.stderr
    assert not (dataset.preprocessed / "nnssl_tinyPlans_3d_fullres").exists()


def test_a_constant_image_gets_no_mask(folders: Path) -> None:
    import SimpleITK as sitk

    dataset = raw_dataset(folders, 901, shape=(24, 28, 26), spacing=(1, 1, 1), cases=2, written=True)
    path = dataset.raw / "imagesTr" / "c001_0000.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(path)) * 0, str(path))
    with pytest.raises(UserError, match=r"c001_0000.nii.gz cannot be read \(constant: every voxel is -?0\)"):
        make_plan(PlanRequest(901, preset="tiny"))


def test_a_damaged_image_gets_no_mask(folders: Path) -> None:
    dataset = raw_dataset(folders, 901, shape=(24, 28, 26), spacing=(1, 1, 1), cases=2, written=True)
    path = dataset.raw / "imagesTr" / "c001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"c001: .*c001_0000.nii.gz is unreadable.*Remove or replace"):
        make_plan(PlanRequest(901, preset="tiny"))
