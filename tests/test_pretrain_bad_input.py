"""Plans, checkpoints and data that cannot be used: one clear sentence, exit status 1, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import devices
from tests.test_checkpoints import Bomb
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, in_process, metrics, output_folder, run

PLANS = [
    ({"ssl": {"temprature": 0.1}}, 'Did you mean "temperature"'),
    ({"ssl": {"temperature": "warm"}}, "expected a number"),
    ({"ssl": {"loss": "cosine"}}, "loss"),
    ({"ssl": {"flip_axes": [2]}}, "flip_axes"),
    ({"ssl": {"amp": "fp16"}}, "CUDA"),
    ({"ssl": {"rotation_deg": [1.0, 2.0], "spatial": "affine"}}, "rotation_deg"),
    ({"ssl": {"pretrained": {"path": "weights.pth"}}}, "made by `nnunet_ssl adapt`"),
    ({"ssl": 3}, "expected an object"),
    ({"patch_size": [16, 18]}, "multiple of it"),
    ({"patch_size": [4, 4]}, "more than one voxel"),
    ({"previous_stage": "2d"}, "cascade"),
    ({"data_identifier": "elsewhere"}, "nnUNetv2_preprocess -d"),
    ({"architecture": {"network_class_name": "torch.nn.Identity", "arch_kwargs": {}, "_kw_requires_import": []}},
     "no pyramid"),
]  # fmt: skip


def edit_plan(tiny: SimpleNamespace, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(tiny.preprocessed) / tiny.dataset_name / f"{tiny.plans_name}.json"
    plans = json.loads(path.read_text())
    change(plans["configurations"][tiny.configuration])
    path.write_text(json.dumps(plans))


@pytest.mark.parametrize("change, words", PLANS, ids=[words.replace(" ", "-") for _, words in PLANS])
def test_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str) -> None:
    tiny = tiny_dataset(tmp_path, ndim=2, cases=2, ssl=SHORT)
    edit_plan(tiny, lambda configuration: configuration.update(change))
    if "ssl" in change and isinstance(change["ssl"], dict):
        edit_plan(tiny, lambda configuration: configuration["ssl"].update(SHORT))

    with pytest.raises(UserError, match=words):
        in_process(tiny, monkeypatch).run_training()
    assert not list(tmp_path.rglob("*.pth"))


def test_unknown_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=1, ssl=SHORT)
    with pytest.raises(UserError, match="it has 3d_fullres"):
        in_process(tiny, monkeypatch, configuration="3d_lowres")
    assert not any(tiny.results.iterdir()), "a plan that cannot be used leaves no folder behind"


def test_missing_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=1, ssl=SHORT)
    monkeypatch.setattr(tiny, "results", "")
    with pytest.raises(UserError, match="nnUNet_results"):
        in_process(tiny, monkeypatch)


def test_fold_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=2, ssl=SHORT)
    (Path(tiny.preprocessed) / tiny.dataset_name / "splits_final.json").unlink()
    with pytest.raises(UserError, match="fold all"):
        in_process(tiny, monkeypatch, fold=0).run_training()


def test_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_dataset(tmp_path, cases=1, ssl={**SHORT, "num_epochs": 1})
    in_process(tiny, monkeypatch).run_training()
    assert "Only one volume" in capsys.readouterr().out and metrics(output_folder(tiny))


@pytest.mark.parametrize("patch", [(32, 32, 32), (24, 8, 8)])
def test_volume_smaller_than_the_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: tuple[int, ...]) -> None:
    tiny = tiny_dataset(tmp_path, cases=2, patch=patch, shape=(10, 12, 14), ssl={**SHORT, "num_epochs": 1})
    in_process(tiny, monkeypatch).run_training()
    assert metrics(output_folder(tiny))


def test_hu_on_images_that_are_not_ct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    tiny = tiny_dataset(tmp_path, cases=2, modality="MR", ssl={**SHORT, "num_epochs": 1, "intensity": "hu"})
    in_process(tiny, monkeypatch).run_training()
    assert "z-score equivalents" in capsys.readouterr().out


def test_damaged_volume_ends_the_command(tmp_path: Path) -> None:
    """By the real command, with workers: the sentence alone, no traceback, exit status 1."""
    tiny = tiny_dataset(tmp_path, cases=2, ssl=SHORT)
    for path in tiny.preprocessed_cases.glob("case_*.b2nd"):
        if not path.name.endswith("_seg.b2nd"):
            path.write_bytes(path.read_bytes()[:1000])
    tiny.env["nnUNet_n_proc_DA"] = "1"
    result = run(tiny)
    assert result.returncode == 1
    assert "Error: " in result.stderr and "damaged or truncated" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    tiny = tiny_dataset(tmp_path_factory.mktemp("trained"), cases=2, ssl=SHORT)
    with pytest.MonkeyPatch.context() as patch:
        trainer = in_process(tiny, patch)
        trainer.initialize()
        trainer.save_checkpoint(str(output_folder(tiny) / "checkpoint_latest.pth"))
    return tiny


@pytest.mark.parametrize("what, words", [
    ("architecture", "another network"), ("bomb", "cannot be read"), ("stock", "not a pretraining checkpoint"),
    ("damaged", "cannot be read"), ("optimizer", 'was "adam" when this training began and is "sgd" now'),
])  # fmt: skip
def test_continuing_from_what_does_not_fit(
    trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, words: str
) -> None:
    path = output_folder(trained) / "checkpoint_latest.pth"
    changes: dict[str, Any] = {}
    if what == "architecture":
        changes["projector_out"] = 9
    elif what == "optimizer":
        changes["optimizer"] = "sgd"
    elif what == "damaged":
        path = tmp_path / "checkpoint_latest.pth"
        path.write_bytes((output_folder(trained) / path.name).read_bytes()[:-2000])
    else:
        path = tmp_path / "checkpoint_latest.pth"
        torch.save({"bomb": {"ssl": Bomb()}, "stock": {"network_weights": {}}}[what], path)
    trainer = in_process(trained, monkeypatch, **changes)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        trainer.load_checkpoint(str(path))
    assert path.read_bytes() == before and not (tmp_path / "exploded").exists()


def test_a_changed_recipe_is_said(
    trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = in_process(trained, monkeypatch, temperature=0.5)
    trainer.load_checkpoint(str(output_folder(trained) / "checkpoint_latest.pth"))
    assert "ssl.temperature was 0.1 when this training began and is 0.5 now" in capsys.readouterr().out


def test_a_changed_weight_decay_holds(trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = in_process(trained, monkeypatch, weight_decay=0.125)
    trainer.load_checkpoint(str(output_folder(trained) / "checkpoint_latest.pth"))
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.125}


def test_loss_that_is_not_finite() -> None:
    devices.require_finite(1.0, ["a"], None)
    with pytest.raises(UserError, match="The loss is nan on a batch of a, b"):
        devices.require_finite(float("nan"), ["b", "a", "b"], None)
