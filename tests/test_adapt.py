"""`nnunet_ssl adapt`: the target's plan for a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from nnunet_ssl.cli import adapt as command
from nnunet_ssl.cli.main import main
from nnunet_ssl.errors import UserError
from nnunet_ssl.networks import FPN3d
from nnunet_ssl.nnunet.adapting import AdaptRequest, make_adapted
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.memory import measure, supervised_gib
from nnunet_ssl.nnunet.planning import PlanRequest, make_plan
from nnunet_ssl.nnunet.recipe import parse
from nnunet_ssl.nnunet.remarks import cost_of_prediction
from tests.plan_datasets import folders, raw_dataset, read_plans, write_checkpoint
from tests.test_checkpoints import Bomb

__all__ = ["folders"]


def pretrained(folders: Path, channels: tuple[str, ...] = ("CT",), seed: int = 0, **options: object) -> Path:
    """The checkpoint of a tiny pretraining on dataset 901 (images of 60 x 80 x 80 voxels at 2 x 1 x 1 mm)."""
    if not (folders / "raw" / "Dataset901_Planned").exists():
        raw_dataset(folders, 901, channels, shape=(60, 80, 80))
    plans = make_plan(PlanRequest(901, **{"preset": "tiny", **options})).plans
    configuration = str(options.get("config", "3d_fullres"))
    return write_checkpoint(folders / f"checkpoint_{seed}.pth", plans, configuration, channels, seed)


def adapted(folders: Path, checkpoint: Path, **options: object) -> SimpleNamespace:
    """Adapt dataset 4; gives notes, plans and the configuration."""
    done = make_adapted(AdaptRequest(4, str(checkpoint), **options))
    plans = json.loads(done.path.read_text())
    name = done.configurations[0]
    return SimpleNamespace(notes="\n".join(done.notes), plans=plans, name=name, content=plans["configurations"][name])


def test_a_new_plan_for_the_target(folders: Path) -> None:
    checkpoint = pretrained(folders, config="cold", settings=["ssl.temperature=0.02", "ssl.mirror_axes=[1,2]"])
    target = raw_dataset(folders, 4, labelled=True, intensities={"mean": 77.0}, spacing=(2.2, 0.9, 0.9))
    found = adapted(folders, checkpoint)
    source = read_plans(SimpleNamespace(preprocessed=folders / "preprocessed/Dataset901_Planned"), "nnssl_tinyPlans")
    theirs = source["configurations"]["3d_fullres"]
    assert found.plans["plans_name"] == "nnssl_tiny_vox2vecPlans"
    assert list(found.plans["configurations"]) == ["3d_fullres"]
    assert found.plans["dataset_name"] == target.name
    for key in ("architecture", "patch_size", "spacing", "normalization_schemes"):
        assert found.content[key] == theirs[key], key
    assert found.plans["foreground_intensity_properties_per_channel"]["0"]["mean"] == 40.0  # the pretraining's
    block = found.content["ssl"]
    assert parse(block, DownstreamRecipe).pretrained == block["pretrained"]
    assert block.keys() == DownstreamRecipe.__dataclass_fields__.keys()
    assert block["pretrained"]["path"] == str(checkpoint) and len(block["pretrained"]["sha256"]) == 64
    assert block["pretrained"]["recipe"]["temperature"] == 0.02 and block["mirror_axes"] == [1, 2]
    assert "100.0 %" in found.notes
    assert found.content["data_identifier"] == "nnssl_tiny_vox2vecPlans_3d_fullres"


def test_overlays_and_settings_go_into_the_plan(folders: Path, tmp_path: Path) -> None:
    """Overlays in order, then --set, the later one wins."""
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, labelled=True)
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"ssl": {"num_epochs": 7, "protocol": "vox2vec"}, "batch_size": 3}))
    found = adapted(folders, checkpoint, overlays=[str(overlay)], settings=["ssl.num_epochs=8"])
    block = found.content["ssl"]
    assert (block["num_epochs"], block["protocol"], found.content["batch_size"]) == (8, "vox2vec", 3)
    assert block["pretrained"]["path"] == str(checkpoint)
    overlay.write_text(json.dumps({"ssl": {"num_epoch": 7}}))
    with pytest.raises(UserError, match="num_epochs"):
        adapted(folders, checkpoint, overlays=[str(overlay)], name="other")
    too_late = patch("nnunet_ssl.nnunet.adapting.own_plan", side_effect=AssertionError)
    with too_late, pytest.raises(UserError, match='Did you mean "labelled"'):
        adapted(folders, checkpoint, settings=["ssl.labeled=1"], name="other")


def like_pair(folders: Path) -> tuple[SimpleNamespace, Path, bytes]:
    """Target 4 with a stock plan, and a checkpoint pretrained --like it."""
    target = raw_dataset(folders, 4, ["MRI"], labelled=True, shape=(36, 50, 35), spacing=(1, 1, 1), cases=60)
    from nnunet_ssl.nnunet.datasets import open_dataset
    from nnunet_ssl.nnunet.planners import stock_plan

    path = target.preprocessed / "nnUNetPlans.json"
    path.write_text(json.dumps(stock_plan(open_dataset(4), "ExperimentPlanner", "nnUNetPlans")))
    raw_dataset(folders, 901, ["MRI"], shape=(40, 50, 40), spacing=(1, 1, 1))
    return target, pretrained(folders, ("MRI",), like=4), path.read_bytes()


def test_pretrained_with_like_keeps_the_targets_data(folders: Path) -> None:
    target, checkpoint, before = like_pair(folders)
    found = adapted(folders, checkpoint)
    own = read_plans(target, "nnUNetPlans")["configurations"]["3d_fullres"]
    assert found.plans["plans_name"] == "nnssl_tiny_like4_vox2vecPlans"
    assert {k: v for k, v in found.content.items() if k != "ssl"} == own  # patch, batch size and data_identifier too
    assert found.content["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert "nnUNetPlans already matches" in found.notes
    assert (target.preprocessed / "nnUNetPlans.json").read_bytes() == before


def test_nothing_is_preprocessed_again_with_like(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, checkpoint, _ = like_pair(folders)
    data = target.preprocessed / "nnUNetPlans_3d_fullres"
    data.mkdir()
    for case in range(60):
        (data / f"c{case:03d}.pkl").write_bytes(b"kept")
    assert main(["adapt", "-d", "4", "-w", str(checkpoint), "--preprocess"]) == 0
    assert "nothing to preprocess" in capsys.readouterr().out
    assert (data / "c000.pkl").read_bytes() == b"kept"


def test_two_checkpoints_do_not_share_a_name(folders: Path) -> None:
    first = pretrained(folders)
    raw_dataset(folders, 4, labelled=True)
    before = adapted(folders, first).plans
    second = pretrained(folders, seed=1)
    with pytest.raises(UserError, match=r"already has a plan nnssl_tiny_vox2vecPlans.*-n NAME"):
        adapted(folders, second)
    assert adapted(folders, first).plans == before  # the same again is the same
    assert adapted(folders, second, name="otherPlans").plans["plans_name"] == "otherPlans"
    foreign = folders / "preprocessed/Dataset004_Planned/nnUNetPlans.json"
    foreign.write_text("{}")
    with pytest.raises(UserError, match="not written by nnunet_ssl"):
        adapted(folders, first, name="nnUNetPlans")
    assert foreign.read_text() == "{}"


def test_plans_with_equal_images_share_them(folders: Path) -> None:
    first = pretrained(folders)
    target = raw_dataset(folders, 4, labelled=True, cases=3)
    identifier = adapted(folders, first).content["data_identifier"]
    (target.preprocessed / identifier).mkdir()
    second = pretrained(folders, seed=1)
    assert adapted(folders, second, name="bPlans").content["data_identifier"] == "bPlans_3d_fullres"  # not complete
    for case in range(3):
        (target.preprocessed / identifier / f"c{case:03d}.pkl").touch()
    assert adapted(folders, second, name="bPlans").content["data_identifier"] == identifier
    other = adapted(folders, second, name="cPlans", settings=["spacing=[4,2,2]"])
    assert other.content["data_identifier"] == "cPlans_3d_fullres" and other.content["spacing"] == [4, 2, 2]


@pytest.mark.parametrize(
    ("spacing", "wanted", "expected"),
    [
        ((2.9, 1.0, 1.0), "auto", "pretraining"),
        ((3.1, 1.0, 1.0), "auto", "target"),
        ((2.0, 0.65, 0.65), "auto", "target"),
        ((3.1, 1.0, 1.0), "pretrained", "pretraining"),
        ((2.0, 1.1, 1.1), "target", "target"),
    ],
)
def test_spacing(folders: Path, spacing: tuple[float, ...], wanted: str, expected: str) -> None:
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, labelled=True, spacing=spacing)
    found = adapted(folders, checkpoint, spacing=wanted)
    assert found.content["spacing"] == pytest.approx((2.0, 1.0, 1.0) if expected == "pretraining" else spacing)
    assert f"the {expected}'s" in found.notes
    assert ("--spacing pretrained keeps" in found.notes) == (wanted == "auto" and expected == "target")


@pytest.mark.parametrize(("labels", "sides"), [
    (["background", "Left_Kidney", "right_kidney"], ("Left_Kidney", "right_kidney")),
    (["background", "lung R", "lung L"], ("lung L", "lung R")),
    (["background", "left ventricle", "right atrium", "leftover", "bright"], None),
])  # fmt: skip
def test_organs_with_sides_are_not_mirrored_in_silence(folders: Path, labels: list[str], sides: tuple | None) -> None:
    checkpoint = pretrained(folders)
    target = raw_dataset(folders, 4, labelled=True)
    path = target.raw / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "labels": {name: n for n, name in enumerate(labels)}}))
    notes = adapted(folders, checkpoint).notes
    said = "{} and {} are sides of one organ".format(*sides) if sides else "sides of one organ"
    assert (said in notes) == (sides is not None) == ("--set ssl.mirror_axes=[0, 1] where" in notes)
    assert "sides of one organ" not in adapted(folders, checkpoint, settings=["ssl.mirror_axes=[0,1]"]).notes


def test_the_cost_of_prediction_is_what_the_predictor_does() -> None:
    """Oracle: windows of stock nnU-Net's own slicers, times the mirrorings of its predictor."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(tile_step_size=0.5, device=torch.device("cpu"))
    for shape, patch_size in (((61.5, 99, 99), [24, 32, 32]), ((10, 40, 33), [16, 32, 32]), ((64, 50.2), [32, 32])):
        predictor.configuration_manager = SimpleNamespace(patch_size=patch_size)
        whole = [max(-(-size // 1), side) for size, side in zip(shape, patch_size, strict=True)]
        image = [int(side) for side in whole] if len(patch_size) == 3 else [1, *map(int, whole)]
        windows = len(predictor._internal_get_sliding_window_slicers(tuple(image)))
        configuration = {"patch_size": patch_size, "median_image_size_in_voxels": list(shape), "ssl": {}}
        said = cost_of_prediction(configuration, gpu=False)
        mirrorings = 2 ** len(patch_size)
        assert f": {windows} windows x {mirrorings} mirrorings" in said
        assert ("shorter with --set ssl.mirror_axes=[] --set ssl.amp=bf16" in said) == (windows * mirrorings >= 64)
        assert "shorter" not in cost_of_prediction(configuration, gpu=True)
        configuration["ssl"] = {"mirror_axes": [], "amp": "bf16"}
        assert f": {windows} windows x 1 mirrorings" in (found := cost_of_prediction(configuration, False))
        assert "shorter" not in found


def test_axes_follow_the_pretraining(folders: Path) -> None:
    """nnU-Net would put the target's thick axis first; the network saw the files' own order."""
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, labelled=True, shape=(100, 100, 30), spacing=(1.0, 1.1, 4.0))
    found = adapted(folders, checkpoint, spacing="target")
    assert found.plans["transpose_forward"] == [0, 1, 2]
    assert found.plans["original_median_spacing_after_transp"] == pytest.approx([1.0, 1.1, 4.0])
    assert found.plans["original_median_shape_after_transp"] == [100, 100, 30]
    assert found.content["spacing"] == pytest.approx([1.0, 1.1, 4.0])
    assert found.content["median_image_size_in_voxels"] == [100, 100, 30]


def test_other_channel_types_keep_their_normalisation(folders: Path) -> None:
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, ["MRI", "CT"], labelled=True, intensities={"mean": 77.0})
    found = adapted(folders, checkpoint)
    assert found.content["normalization_schemes"] == ["ZScoreNormalization", "CTNormalization"]
    means = [found.plans["foreground_intensity_properties_per_channel"][i]["mean"] for i in "01"]
    assert means == [77.0, 40.0]
    assert "warning: channel MRI is of another type" in found.notes and "1 -> 2 input channels" in found.notes


def test_batch_size(folders: Path) -> None:
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, labelled=True)
    found = adapted(folders, checkpoint).content
    assert found["batch_size"] == 8  # the pretraining's four pairs
    five = supervised_gib(measure(found["architecture"], 1, found["patch_size"]), 5, 2, 24 * 32 * 32)
    assert adapted(folders, checkpoint, gpu_memory_gb=five + 1e-6).content["batch_size"] == 5
    raw_dataset(folders, 5, labelled=True, cases=2, shape=(36, 40, 40), spacing=(2, 1, 1))
    assert make_adapted(AdaptRequest(5, str(checkpoint))).plans["configurations"]["3d_fullres"]["batch_size"] == 2


def test_settings_and_configurations(folders: Path) -> None:
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, labelled=True)
    sets = ["ssl.num_epochs=7", "batch_size=3"]
    base = adapted(folders, checkpoint, settings=sets).content
    assert (base["ssl"]["num_epochs"], base["batch_size"]) == (7, 3)
    found = adapted(folders, checkpoint, config="n1", settings=['ssl.labelled={"n":1,"draw":0}'])
    assert found.name == "n1" and set(found.content) == {"inherits_from", "ssl"}
    assert found.content["ssl"] == {**base["ssl"], "labelled": {"n": 1, "draw": 0}}
    assert found.plans["configurations"]["3d_fullres"] == base
    with pytest.raises(UserError, match=r"numepochs.*num_epochs"):
        adapted(folders, checkpoint, settings=["ssl.numepochs=3"])
    with pytest.raises(UserError, match=r"--gpu-memory is for a new plan.*batch_size"):
        adapted(folders, checkpoint, config="n2", gpu_memory_gb=4.0)
    with pytest.raises(UserError, match="temperature"):  # a setting of the pretraining
        adapted(folders, checkpoint, settings=["ssl.temperature=3"])


def test_published_weights(folders: Path) -> None:
    path = folders / "vox2vec.pt"
    state = FPN3d(1, base_channels=4, num_scales=3).state_dict()
    torch.save({k: v.permute(0, 1, 4, 3, 2) if v.ndim == 5 else v for k, v in state.items()}, path)
    raw_dataset(folders, 4, labelled=True)
    found = adapted(folders, path)
    assert found.plans["plans_name"] == "published_vox2vecPlans" and "100.0 %" in found.notes
    assert found.content["spacing"] == [2, 1, 1] and found.content["patch_size"] == [32, 128, 128]
    arguments = found.content["architecture"]["arch_kwargs"]
    assert (arguments["base_channels"], arguments["num_scales"], len(arguments["strides"])) == (4, 3, 3)
    assert found.plans["foreground_intensity_properties_per_channel"]["0"]["std"] == 2350


def test_what_is_refused(folders: Path) -> None:
    checkpoint = pretrained(folders)
    with pytest.raises(UserError, match="has no labels"):
        make_adapted(AdaptRequest(901, str(checkpoint)))
    raw_dataset(folders, 4, labelled=True)
    content = torch.load(checkpoint, weights_only=True)
    other = folders / "other.pth"
    del content["ssl"]
    torch.save(content, other)
    with pytest.raises(UserError, match="does not say with which plan"):
        adapted(folders, other)
    content = torch.load(checkpoint, weights_only=True)
    content["ssl"]["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [
        8, 16, 32, 64]  # fmt: skip
    torch.save(content, other)
    with pytest.raises(UserError, match="another architecture"):
        adapted(folders, other)
    assert not list((folders / "preprocessed/Dataset004_Planned").glob("*Plans.json"))


@pytest.mark.parametrize("what", ["bomb", "damaged", "foreign"])
def test_weights_that_cannot_be_used_end_the_command(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    checkpoint = pretrained(folders)
    target = raw_dataset(folders, 4, labelled=True)
    if what == "damaged":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-2000])
    else:
        torch.save({"bomb": {"ssl": Bomb()}, "foreign": {"weights": [1, 2]}}[what], checkpoint)
    before = checkpoint.read_bytes()
    monkeypatch.chdir(folders)
    assert main(["adapt", "-d", "4", "-w", str(checkpoint)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("nnunet_ssl: error: ") and str(checkpoint) in said and "Traceback" not in said
    assert checkpoint.read_bytes() == before and not (folders / "exploded").exists()
    assert not list(target.preprocessed.glob("*Plans.json"))


def test_a_missing_variable_ends_the_command(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, labelled=True)
    monkeypatch.delenv("nnUNet_preprocessed")
    for arguments in (["plan", "-d", "901"], ["adapt", "-d", "4", "-w", str(checkpoint)]):
        assert main(arguments) == 1
        assert "nnUNet_preprocessed is not set" in capsys.readouterr().err, arguments


def test_command_prints_the_five_trainings(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = pretrained(folders)
    raw_dataset(folders, 4, labelled=True)
    assert main(["adapt", "-d", "4", "-w", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert "nnUNetv2_preprocess -d 4 -plans_name nnssl_tiny_vox2vecPlans -c 3d_fullres" in printed
    for trainer in (*command.TRAINERS, command.TWIN):
        assert f"nnUNetv2_train 4 3d_fullres 0 -tr {trainer} -p nnssl_tiny_vox2vecPlans" in printed
    assert len(command.TRAINERS) == 4
    assert main(["adapt", "-d", "4", "-w", str(folders / "none.pth")]) == 1
    assert "No checkpoint at" in capsys.readouterr().err
