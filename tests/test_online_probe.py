"""The online probe: it finds organs on frozen features, leaves the training alone, and refuses what does not match."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.network import build_backbone
from nnunet_ssl.nnunet.online_probe import OnlineProbe, dice_per_class
from tests.tiny_dataset import tiny_dataset


def trainer_on(data):
    """What a probe needs of a trainer."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(data.preprocessed / data.dataset_name / f"{data.plans_name}.json"))
    return SimpleNamespace(
        device=torch.device("cpu"), plans_manager=plans, configuration_name=data.configuration,
        configuration_manager=plans.get_configuration(data.configuration),
    )  # fmt: skip


@pytest.fixture(params=["plain", "fpn"])
def network_kind(request):
    return request.param


def make(tmp_path, monkeypatch, **options):
    data = tiny_dataset(tmp_path, labelled=True, cases=4, **options)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, data.env[name])
    torch.manual_seed(0)
    trainer = trainer_on(data)
    return data, trainer, build_backbone(trainer.configuration_manager, 1, 2).train()


BLOCK = {"dataset": 901, "cases": 2, "held_out": 2, "per_class": 500, "background": 1000, "max_iter": 40}


def test_it_finds_the_organs_and_changes_nothing(tmp_path, monkeypatch, network_kind):
    _, trainer, network = make(tmp_path, monkeypatch, network=network_kind)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    probe = OnlineProbe(BLOCK, trainer)
    first, second = probe.measure(network), probe.measure(network)
    assert first == second  # its draws are its own
    assert network.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    # body and organ differ from each other and from air in brightness, which random features keep
    assert first["dice"] > 0.4 and len(first["per_class"]) == 2
    assert first["dice"] == pytest.approx(np.mean(first["per_class"]))
    assert set(probe.train).isdisjoint(probe.held_out) and (first["cases"], first["held_out"]) == (2, 2)


def test_a_network_that_says_nothing_scores_less(tmp_path, monkeypatch):
    _, trainer, network = make(tmp_path, monkeypatch)
    probe = OnlineProbe(BLOCK, trainer)
    informed = probe.measure(network)["dice"]
    for parameter in network.parameters():
        parameter.data.zero_()
    assert probe.measure(network)["dice"] < informed - 0.3


def test_two_dimensional_plans(tmp_path, monkeypatch):
    _, trainer, network = make(tmp_path, monkeypatch, ndim=2)
    assert OnlineProbe({**BLOCK, "max_windows": 20}, trainer).measure(network)["dice"] > 0.5


def test_named_cases_are_used(tmp_path, monkeypatch):
    data, trainer, _ = make(tmp_path, monkeypatch)
    probe = OnlineProbe({**BLOCK, "cases": [data.cases[3]], "held_out": [data.cases[0]]}, trainer)
    assert (probe.train, probe.held_out) == ([data.cases[3]], [data.cases[0]])


@pytest.mark.parametrize(("change", "words"), [
    ({"dataset": 77}, "no dataset 77"),
    ({"plans": "otherPlans"}, r"otherPlans\.json is missing.*nnUNetv2_preprocess"),
    ({"configuration": "3d_lowres"}, "expected 3d_lowres"),
    ({"cases": 4}, "at least one other"),
    ({"cases": 9}, "at least one other"),
    ({"cases": ["nobody"]}, "nobody"),
])  # fmt: skip
def test_what_cannot_be_probed_is_said(tmp_path, monkeypatch, change, words):
    _, trainer, _ = make(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=words):
        OnlineProbe({**BLOCK, **change}, trainer)


@pytest.mark.parametrize(("edit", "words"), [
    (lambda plans, c: c.update(normalization_schemes=["ZScoreNormalization"]), "normalization_schemes"),
    (lambda plans, c: c.update(spacing=[1.0, 1.0, 2.0]), "spacing"),
    (lambda plans, c: plans["foreground_intensity_properties_per_channel"]["0"].update(mean=7.0), "mean of CT channel"),
    (lambda plans, c: plans.update(transpose_forward=[2, 0, 1]), "transpose_forward"),
])  # fmt: skip
def test_other_preprocessing_is_refused(tmp_path, monkeypatch, edit, words):
    data, trainer, _ = make(tmp_path, monkeypatch)
    folder = data.preprocessed / data.dataset_name
    plans = json.loads((folder / f"{data.plans_name}.json").read_text(encoding="utf-8"))
    edit(plans, plans["configurations"][data.configuration])
    (folder / "otherPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        OnlineProbe({**BLOCK, "plans": "otherPlans"}, trainer)
    assert re.search(f"another way.*{words}", str(caught.value))


def test_missing_preprocessed_cases_are_said(tmp_path, monkeypatch):
    data, trainer, _ = make(tmp_path, monkeypatch)
    for path in data.preprocessed_cases.iterdir():
        path.unlink()
    data.preprocessed_cases.rmdir()
    with pytest.raises(UserError, match="holds no preprocessed cases"):
        OnlineProbe(BLOCK, trainer)


def test_dice_of_absent_classes_is_undefined():
    predicted, labels = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    dice = dice_per_class(predicted, labels, 3)
    assert dice[0] == pytest.approx(2 / 3) and np.isnan(dice[1])
