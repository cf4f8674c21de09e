"""The downstream trainers: what learns, what rests, where the weights come from, what is refused."""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import nnunet_ssl.nnunet.downstream.protocols as protocols
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.loss import Vox2VecLoss, split_target
from nnunet_ssl.nnunet.downstream.protocols import Protocol
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.downstream.sampling import case_groups, case_subjects, choose_cases
from nnunet_ssl.nnunet.downstream.schedule import StagedSchedule, build_optimizer
from nnunet_ssl.nnunet.downstream.settings import resolve
from nnunet_ssl.nnunet.recipe import parse
from tests.downstream_tools import (
    SHORT,
    TRAINERS,
    edit_dataset_json,
    make_trainer,
    plans_path,
    pretrained_file,
    relabel,
    same,
    set_ssl,
    states,
)
from tests.oracles.evaluation_loss import evaluation_loss
from tests.tiny_dataset import tiny_dataset


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return enter(tiny_dataset(tmp_path, labelled=True), monkeypatch)


def enter(dataset, monkeypatch):
    for key, value in dataset.env.items():
        monkeypatch.setenv(key, value)
    return dataset


def test_every_trainer_file_holds_its_trainer():
    found = {module.name for module in pkgutil.iter_modules(protocols.__path__)}
    used = set()
    for name in TRAINERS:
        cls = getattr(importlib.import_module(f"nnunet_ssl.trainers.{name}"), name)
        used.add(cls.protocol.name)
    assert len(TRAINERS) == len(found) == len(used)
    for module in found:
        assert importlib.import_module(f"{protocols.__name__}.{module}").PROTOCOL.name in used


# ---- recipe


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"haed": "linear"}, ["haed", "head"]),
        ({"head": "big"}, ["head", "linear"]),
        ({"labelled": {"n": 2}}, ["labelled", "draw"]),
        ({"labelled": {"n": 0, "draw": 0}}, ["labelled"]),
        ({"mirror_axes": [3]}, ["mirror_axes"]),
        ({"mirror_axes": [1], "protocol": "vox2vec"}, ["mirror_axes", "vox2vec"]),
        ({"freeze_fraction": 1.5}, ["freeze_fraction"]),
        ({"freeze_fraction": 0.8, "ramp_fraction": 0.3}, ["ramp_fraction"]),
        ({"amp": "fp16"}, ["amp", "auto", "bf16"]),
        ({"num_epochs": 0}, ["num_epochs"]),
        ({"initial_lr": 0}, ["initial_lr"]),
        ({"pretrained": {"sha256": "x"}}, ["pretrained", "path"]),
    ],
)
def test_recipe_refuses(block, words):
    with pytest.raises(UserError) as error:
        parse(block, DownstreamRecipe)
    assert all(word in str(error.value) for word in words)


def test_recipe_fills_open_fields_by_protocol():
    probe = Protocol("probe", head="linear", frozen=("encoder", "decoder"), initial_lr=1e-3, optimizer="adamw",
                     schedule="cosine", standardise=True)  # fmt: skip
    settings = resolve(DownstreamRecipe(), probe)
    assert (settings.head, settings.optimizer, settings.initial_lr) == ("linear", "adamw", 1e-3)
    assert settings.standardise
    paper = resolve(DownstreamRecipe(protocol="vox2vec"), Protocol("fine-tuning", staged=True))
    assert (paper.head, paper.sigmoid, paper.optimizer, paper.schedule) == ("linear", True, "adam", "constant")
    assert paper.freeze_fraction == pytest.approx(1 / 3) and paper.initial_lr == 3e-4 and not paper.standardise
    assert resolve(DownstreamRecipe(initial_lr=0.5), probe).initial_lr == 0.5
    # moments are taken once: they would go stale under a backbone that learns
    assert not resolve(DownstreamRecipe(standardise=True, head="linear"), Protocol("x")).standardise


@pytest.mark.parametrize(("recipe", "protocol", "standardise", "head_init"), [
    ({}, {"staged": True}, True, "random"),
    ({"standardise": False}, {"staged": True}, False, "random"),
    ({"head_init": "probe"}, {"frozen": ("encoder",)}, True, "random"),  # a fit is linear
    ({}, {"pretrained": False}, False, "random"),  # no features to measure
    ({"protocol": "vox2vec"}, {"staged": True}, False, "random"),
])  # fmt: skip
def test_a_nonlinear_head_on_pretrained_weights_standardises(recipe, protocol, standardise, head_init):
    """As its probe does: before the first step, once."""
    settings = resolve(DownstreamRecipe(head="nonlinear", **recipe), Protocol("x", **protocol))
    assert (settings.head, settings.standardise, settings.head_init) == ("nonlinear", standardise, head_init)


# ---- choice of cases


def test_labelled_cases_are_nested_and_differ_by_draw():
    cases = [f"case_{i:02d}" for i in range(12)]
    for draw in range(3):
        chosen = [choose_cases(cases, {"n": n, "draw": draw}) for n in range(1, 13)]
        assert all(set(a) < set(b) for a, b in pairwise(chosen))
        assert chosen[3] == choose_cases(cases[::-1], {"n": 4, "draw": draw})
    assert len({tuple(choose_cases(cases, {"n": 3, "draw": draw})) for draw in range(5)}) > 1
    assert choose_cases(cases[::-1], None) == cases
    with pytest.raises(UserError, match=r"13.*12"):
        choose_cases(cases, {"n": 13, "draw": 0})


def test_labelled_cases_are_balanced_over_groups(tmp_path):
    cases = [f"case_{i:02d}" for i in range(12)]
    groups = {case: "ABC"[min(i // 5, 2)] for i, case in enumerate(cases)}  # 5, 5, 2 cases
    for draw in range(5):
        chosen = [choose_cases(cases, {"n": n, "draw": draw}, groups) for n in range(1, 13)]
        assert all(set(a) < set(b) for a, b in pairwise(chosen))
        for few in chosen:
            counts = [sum(groups[case] == group for case in few) for group in "ABC"]
            assert max(counts[:2]) - min(counts[:2]) <= 1 and abs(min(2, max(counts)) - counts[2]) <= 1
    assert len({tuple(choose_cases(cases, {"n": 3, "draw": draw}, groups)) for draw in range(5)}) > 1
    assert case_groups(tmp_path, {}) == {} and case_groups(tmp_path, {"groups": groups}) == groups
    (tmp_path / "groups.csv").write_text("case,group\ncase_00,X\n", encoding="utf-8")
    assert case_groups(tmp_path, {"groups": groups}) == {"case_00": "X"}
    with pytest.raises(UserError, match="11 training cases have no group"):
        choose_cases(cases, {"n": 1, "draw": 0}, case_groups(tmp_path, {}))
    (tmp_path / "groups.csv").write_text("name,group\ncase_00,X\n", encoding="utf-8")
    with pytest.raises(UserError, match="columns case and group"):
        case_groups(tmp_path, {})


def test_labelled_counts_subjects_where_the_dataset_names_them():
    """Two frames a patient: n patients with all their frames, nested, seeded by the draw, balanced over groups."""
    subjects = {f"p{i:02d}_{frame}": f"p{i:02d}" for i in range(9) for frame in "ab"}
    groups = {case: "XYZ"[int(case[1:3]) % 3] for case in subjects}
    cases = list(subjects)
    for draw in range(4):
        for balance in (None, groups):
            chosen = [choose_cases(cases, {"n": n, "draw": draw}, balance, subjects) for n in range(1, 10)]
            assert all(len(c) == 2 * n for n, c in enumerate(chosen, 1)) and all(
                set(a) < set(b) for a, b in pairwise(chosen)
            )
            assert all({f"{s}_a", f"{s}_b"} <= set(c) for c in chosen for s in {subjects[case] for case in c})
        assert {groups[case] for case in choose_cases(cases, {"n": 3, "draw": draw}, groups, subjects)} == set("XYZ")
    assert len({tuple(choose_cases(cases, {"n": 2, "draw": d}, None, subjects)) for d in range(5)}) > 1
    assert case_subjects({}) == {} and case_subjects({"subjects": subjects}) == subjects
    with pytest.raises(UserError, match=r"n is 10, .* 18 training cases of 9 subjects, which it counts"):
        choose_cases(cases, {"n": 10, "draw": 0}, None, subjects)
    with pytest.raises(UserError, match=r"1 training cases have no subject \(q_a\)"):
        choose_cases([*cases, "q_a"], {"n": 1, "draw": 0}, None, subjects)
    with pytest.raises(UserError, match="subject p00 are of the groups W, X; expected one group"):
        choose_cases(cases, {"n": 1, "draw": 0}, {**groups, "p00_b": "W"}, subjects)


# ---- rates


@pytest.mark.parametrize(("given", "factor"), [(None, 1.0), (0.1, 0.1)])
def test_rates_follow_nnunet_and_stage_the_backbone(given, factor):
    head, backbone = [torch.nn.Parameter(torch.ones(1))], [torch.nn.Parameter(torch.ones(1))]
    settings = resolve(DownstreamRecipe(backbone_lr_factor=given), Protocol("x", staged=True))
    optimizer = build_optimizer(settings, head, backbone)
    schedule = StagedSchedule(optimizer, settings, num_epochs=10, steps_per_epoch=10, staged=True)
    assert (schedule.freeze_steps, schedule.ramp_steps) == (10, 5)
    factors = []
    for step in range(100):
        if step % 10 == 0:
            schedule.step(step // 10)
        schedule.at(step)
        lr = {group["role"]: group["lr"] for group in optimizer.param_groups}
        assert lr["head"] == pytest.approx(1e-2 * (1 - (step // 10) / 10) ** 0.9)
        factors.append(lr["backbone"] / lr["head"])
    assert [schedule.head_only(step) for step in (0, 9, 10, 99)] == [True, True, False, False]
    assert np.all(np.diff(factors[10:15]) > 0) and factors[10] < 0.5 * factor
    assert factors[14:] == pytest.approx([factor] * 86)
    plain = StagedSchedule(optimizer, settings, 10, 10, staged=False)
    plain.step(0)
    plain.at(0)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2} and not plain.head_only(0)


@pytest.mark.parametrize(("kind", "half"), [("poly", 0.5**0.9), ("cosine", 0.5), ("constant", 1.0)])
def test_schedules(kind, half):
    settings = replace(resolve(DownstreamRecipe(), Protocol("x")), schedule=kind)
    optimizer = build_optimizer(settings, [torch.nn.Parameter(torch.ones(1))], [])
    schedule = StagedSchedule(optimizer, settings, 4, 1, False)
    schedule.step(2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2 * half])


# ---- the paper's loss


@pytest.mark.parametrize("ignore", [None, 3])
def test_evaluation_loss_against_oracle(ignore):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3 if ignore is None else 4, (2, 3, 4, 5))
    body = rng.random(labels.shape) < 0.6
    logits = rng.normal(size=(2, 2, 3, 4, 5)) * 3
    output = torch.cat([torch.zeros(2, 1, 3, 4, 5), torch.from_numpy(logits).float()], 1).requires_grad_()
    loss = Vox2VecLoss(3, regions=False, ignore_label=ignore)
    target, loss.body = split_target(torch.from_numpy(np.stack([labels, body], 1)), None, ignore)
    known = labels != 3
    value = loss(output, target)
    assert value.item() == pytest.approx(evaluation_loss(logits, labels, body, known), rel=1e-5)
    value.backward()
    unknown = torch.from_numpy(~known)[:, None].expand(-1, 3, -1, -1, -1)
    assert torch.all(output.grad[unknown] == 0) and output.grad[:, 1:].abs().sum() > 0


def test_evaluation_loss_of_regions_is_that_of_their_masks():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (1, 4, 4, 4))
    logits = torch.from_numpy(rng.normal(size=(1, 2, 4, 4, 4))).float()
    regions = Vox2VecLoss(2, regions=True, ignore_label=None)
    stacked = torch.from_numpy(np.stack([labels, np.ones_like(labels)], 1))
    target, regions.body = split_target(stacked, [(1, 2), 2], None)
    inner = evaluation_loss(logits[:, 1:], np.where(labels == 2, 1, 0), labels >= 0, labels >= 0)
    outer = evaluation_loss(logits[:, :1], np.where(labels > 0, 1, 0), labels >= 0, labels >= 0)
    assert regions(logits, target).item() == pytest.approx((inner + outer) / 2, rel=1e-5)


# ---- trainers


@pytest.mark.parametrize("network", ["plain", "fpn"])
@pytest.mark.parametrize("name", ["SSLLinearProbeTrainer", "SSLNonlinearProbeTrainer"])
def test_probe_learns_the_head_alone(name, network, tmp_path, monkeypatch):
    dataset = enter(tiny_dataset(tmp_path, labelled=True, network=network, norm="batch"), monkeypatch)
    weights = pretrained_file(dataset, tmp_path)
    trainer = make_trainer(dataset, name, {**SHORT, "pretrained": {"path": str(weights)}})
    trainer.on_train_start()
    before = states(trainer.network, "backbone"), states(trainer.network, "head")
    stored = torch.load(weights, weights_only=True)["network_weights"]
    assert all(torch.equal(value, stored[key]) for key, value in before[0].items() if key in stored)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    modules = [trainer.network.encoder, trainer.network.decoder]
    assert not any(module.training for part in modules for module in part.modules())
    trainer.train_step(next(trainer.dataloader_train))
    assert same(before[0], states(trainer.network, "backbone"))  # batch statistics included
    assert not same(before[1], states(trainer.network, "head"))
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    head = {id(p) for key, p in trainer.network.named_parameters() if key.startswith("head.seg_layers.")}
    assert held == head == {id(p) for p in trainer.network.parameters() if p.requires_grad}
    facts = json.loads((dataset_folder(trainer) / "downstream.json").read_text(encoding="utf-8"))
    count = sum(p.numel() for p in trainer.network.head.parameters())
    assert facts["trainable_parameters"] == {"head": count, "backbone": 0}
    transferred = json.loads((dataset_folder(trainer) / "transfer_report.json").read_text(encoding="utf-8"))
    assert transferred["percent"] == 100


def dataset_folder(trainer):
    return Path(trainer.output_folder)


def run_epoch(trainer, steps):
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for _ in range(steps):
        trainer.train_step(next(trainer.dataloader_train))


@pytest.mark.parametrize("head", ["stock", "linear", "nonlinear"])
def test_fine_tuning_rests_the_backbone_first(head, tmp_path, monkeypatch):
    dataset = enter(tiny_dataset(tmp_path, labelled=True, norm="batch"), monkeypatch)
    ssl = {**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 4, "freeze_fraction": 0.5, "ramp_fraction": 0.25,
           "head": head, "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}  # fmt: skip
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", ssl)
    trainer.on_train_start()
    before = states(trainer.network, "backbone"), states(trainer.network, "head")
    assert [group["role"] for group in trainer.optimizer.param_groups] == ["head", "backbone"]
    run_epoch(trainer, 2)
    assert same(before[0], states(trainer.network, "backbone"))
    assert not same(before[1], states(trainer.network, "head"))
    assert not trainer.network.encoder.training
    trainer.train_step(next(trainer.dataloader_train))
    assert trainer.network.encoder.training and trainer.network.decoder.training
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    after = dict(trainer.network.named_parameters())
    assert all(not torch.equal(before[0][key], p) for key, p in after.items()
               if id(p) in trained and key in before[0] and key.endswith("conv.weight"))  # fmt: skip


def test_frozen_encoder_rests_and_decoder_learns(tmp_path, monkeypatch):
    dataset = enter(tiny_dataset(tmp_path, labelled=True, norm="batch"), monkeypatch)
    ssl = {**SHORT, "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}
    trainer = make_trainer(dataset, "SSLFrozenTrainer", ssl)
    leftover = dataset_folder(trainer) / f".tmp-{os.getpid()}-checkpoint_latest.pth"
    leftover.write_bytes(b"of a save that was killed")
    trainer.on_train_start()
    assert not leftover.exists()
    before = states(trainer.network, "backbone")
    run_epoch(trainer, 1)
    after = states(trainer.network, "backbone")
    encoder = {key for key in before if "encoder." in key}
    assert encoder and all(torch.equal(before[key], after[key]) for key in encoder)
    decoder = [key for key in before.keys() - encoder if key.endswith("conv.weight")]
    assert decoder and all(not torch.equal(before[key], after[key]) for key in decoder)
    assert isinstance(trainer.network(torch.zeros(1, 1, *dataset.patch)), list)  # deep supervision, as stock


def test_scratch_loads_nothing_and_says_so(dataset, tmp_path, capsys):
    weights = pretrained_file(dataset, tmp_path)
    trainer = make_trainer(dataset, "SSLScratchTrainer", {**SHORT, "pretrained": {"path": str(weights)}})
    trainer.on_train_start()
    stored = torch.load(weights, weights_only=True)["network_weights"]
    kernels = [key for key in stored if key.endswith("conv.weight")]
    assert all(not torch.equal(trainer.network.state_dict()[key], stored[key]) for key in kernels)
    assert trainer.initial_lr == 1e-2 and len(trainer.optimizer.param_groups) == 2
    run_epoch(trainer, 1)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-2}
    assert "not loaded" in capsys.readouterr().out
    assert not (dataset_folder(trainer) / "transfer_report.json").exists()
    from nnunet_ssl.nnunet.downstream.reports import summary

    assert summary(trainer)["pretrained"] is None


def test_plan_without_block_works_with_the_stock_loader(dataset, tmp_path, capsys):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    weights = pretrained_file(dataset, tmp_path)
    for name in TRAINERS:
        trainer = make_trainer(dataset, name, None)
        assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (1000, 250)
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(weights))
        if not trainer.protocol.pretrained:
            with pytest.raises(UserError, match="-pretrained_weights"):
                trainer.on_train_start()
            continue
        trainer.on_train_start()
        stored = torch.load(weights, weights_only=True)["network_weights"]
        assert all(torch.equal(value, stored[key]) for key, value in states(trainer.network, "backbone").items())
        assert "no ssl block" in capsys.readouterr().out


def test_the_stock_loader_overrides_the_plan_and_the_report_says_so(dataset, tmp_path, capsys):
    """Which weights a training began with is known by the backbone's hash: the option's file is not."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    from nnunet_ssl.nnunet.downstream.starting import backbone_hash

    weights = pretrained_file(dataset, tmp_path)
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", {**SHORT, "pretrained": {"path": "of_the_plan.pth"}})
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(weights))
    loaded = backbone_hash(trainer.network)
    trainer.on_train_start()
    assert "of_the_plan.pth, which ssl.pretrained names, was not used" in capsys.readouterr().out
    report = json.loads((dataset_folder(trainer) / "transfer_report.json").read_text(encoding="utf-8"))
    facts = json.loads((dataset_folder(trainer) / "downstream.json").read_text(encoding="utf-8"))["pretrained"]
    for found in (report, facts):
        assert found["backbone_sha256"] == loaded and found["overridden"] == "of_the_plan.pth"
    set_by_plan = make_trainer(dataset, "SSLFineTuneTrainer", {**SHORT, "pretrained": {"path": str(weights)}})
    set_by_plan.on_train_start()
    report = json.loads((dataset_folder(set_by_plan) / "transfer_report.json").read_text(encoding="utf-8"))
    assert report["backbone_sha256"] == loaded and report["overridden"] is None


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "SSLScratchTrainer"])
def test_refuses_to_start_from_random_weights(name, dataset):
    with pytest.raises(UserError, match="no pretrained weights"):
        make_trainer(dataset, name, SHORT).on_train_start()


def test_refuses_a_changed_or_foreign_checkpoint(dataset, tmp_path):
    weights = pretrained_file(dataset, tmp_path)
    block = {**SHORT, "pretrained": {"path": str(weights), "sha256": "0" * 64}}
    with pytest.raises(UserError, match="has changed"):
        make_trainer(dataset, "SSLFineTuneTrainer", block).on_train_start()
    torch.save({"network_weights": {"encoder.other": torch.ones(3)}}, weights)
    with pytest.raises(UserError, match="another architecture"):
        make_trainer(dataset, "SSLFineTuneTrainer", {**SHORT, "pretrained": {"path": str(weights)}}).on_train_start()
    with pytest.raises(UserError, match="No checkpoint"):
        make_trainer(dataset, "SSLFineTuneTrainer", {**SHORT, "pretrained": {"path": "gone.pth"}}).on_train_start()


def test_refuses_weights_equal_to_the_random_ones(dataset, tmp_path):
    weights = tmp_path / "same.pth"
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", {**SHORT, "pretrained": {"path": str(weights)}})
    trainer.initialize()
    torch.save({"network_weights": trainer.network.state_dict()}, weights)
    with pytest.raises(UserError, match="random weights"):
        trainer.on_train_start()


def test_refuses_cascade_and_pretraining_block(dataset):
    with pytest.raises(UserError, match=r"adapt"):
        make_trainer(dataset, "SSLFineTuneTrainer", {"objective": "vox2vec"})
    plans = json.loads(plans_path(dataset).read_text(encoding="utf-8"))
    first = plans["configurations"][dataset.configuration]
    plans["configurations"]["3d_cascade_fullres"] = {**first, "previous_stage": dataset.configuration}
    plans_path(dataset).write_text(json.dumps(plans), encoding="utf-8")
    dataset.configuration = "3d_cascade_fullres"
    with pytest.raises(UserError, match="cascade"):
        make_trainer(dataset, "SSLFineTuneTrainer", {**SHORT})


def test_continuing_equals_an_uninterrupted_training(dataset, tmp_path):
    weights = pretrained_file(dataset, tmp_path)
    ssl = {**SHORT, "seed": 3, "freeze_fraction": 0.5, "pretrained": {"path": str(weights)}}
    whole = make_trainer(dataset, "SSLFineTuneTrainer", ssl)
    whole.run_training()
    final = dataset_folder(whole) / "checkpoint_final.pth"
    expected = torch.load(final, weights_only=True)
    final.unlink()
    first = make_trainer(dataset, "SSLFineTuneTrainer", ssl)
    first.on_train_start()
    first.num_epochs = 2
    stop_after_first_epoch(first)
    second = make_trainer(dataset, "SSLFineTuneTrainer", ssl, resume=True)
    weights.unlink()  # a training that goes on needs no pretrained file
    second.load_checkpoint(str(dataset_folder(second) / "checkpoint_latest.pth"))
    second.run_training()
    found = torch.load(final, weights_only=True)
    assert same(expected["network_weights"], found["network_weights"])
    assert expected["logging"]["train_losses"] == found["logging"]["train_losses"]
    assert found["trainer_name"] == "SSLFineTuneTrainer" and found["ssl_downstream"]["pretrained"]["transferred"] == 1


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training from scratch that was stopped before its first step."""
    with pytest.MonkeyPatch.context() as patch:
        dataset = enter(tiny_dataset(tmp_path_factory.mktemp("stopped"), labelled=True), patch)
        trainer = make_trainer(dataset, "SSLScratchTrainer", SHORT)
        trainer.initialize()
        trainer.save_checkpoint(str(dataset_folder(trainer) / "checkpoint_latest.pth"))
        return dataset, dataset_folder(trainer) / "checkpoint_latest.pth"


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize(("what", "words"), [
    ("bomb", "foreign code"), ("truncated", "could not be read"), ("pretraining", "no checkpoint of a downstream"),
    ("head", "another network"), ("optimizer", 'was "sgd" when this training began and is "adam" now'),
])  # fmt: skip
def test_continuing_from_what_does_not_fit(what, words, stopped, tmp_path, monkeypatch):
    dataset, written = stopped
    enter(dataset, monkeypatch)
    monkeypatch.chdir(tmp_path)
    changes = {"head": {"head": "linear"}, "optimizer": {"optimizer": "adam"}}.get(what, {})
    path = written if changes else tmp_path / written.name
    if what == "truncated":
        path.write_bytes(written.read_bytes()[:-2000])
    elif not changes:
        content = torch.load(written, weights_only=True)
        torch.save({**content, "logging": Bomb()} if what == "bomb" else {"network_weights": {}, "ssl": {}}, path)
    trainer = make_trainer(dataset, "SSLScratchTrainer", {**SHORT, **changes}, resume=True)
    with pytest.raises(UserError, match=words):
        trainer.load_checkpoint(str(path))
    assert not Path("exploded").exists() and not trainer.resumed


def test_a_changed_weight_decay_holds_when_a_training_goes_on(stopped, monkeypatch):
    dataset, written = stopped
    enter(dataset, monkeypatch)
    trainer = make_trainer(dataset, "SSLScratchTrainer", {**SHORT, "weight_decay": 0.125}, resume=True)
    trainer.load_checkpoint(str(written))
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.125} and trainer.resumed


def stop_after_first_epoch(trainer):
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    trainer.on_epoch_end()


def test_few_labelled_cases(dataset, tmp_path):
    ssl = {**SHORT, "labelled": {"n": 1, "draw": 4}}
    trainer = make_trainer(dataset, "SSLScratchTrainer", ssl)
    trainer.on_train_start()
    record = json.loads((dataset_folder(trainer) / "labelled_cases.json").read_text(encoding="utf-8"))
    assert record["cases"] == trainer.dataloader_train.data_loader._data.identifiers and len(record["cases"]) == 1
    assert record["labelled"] == {"n": 1, "draw": 4}
    assert len(trainer.do_split()[1]) == 2  # validation keeps its cases
    two = {**ssl, "labelled": {"n": 2, "draw": 4}}
    plain = make_trainer(dataset, "SSLScratchTrainer", two, fold="all").do_split()[0]
    other = next(case for case in dataset.cases if case not in plain)
    edit_dataset_json(dataset, groups=dict.fromkeys(dataset.cases, "A") | {other: "B"})
    assert other in make_trainer(dataset, "SSLScratchTrainer", two, fold="all").do_split()[0]
    edit_dataset_json(dataset, groups=None)
    everything = make_trainer(dataset, "SSLScratchTrainer", ssl, fold="all")
    assert everything.do_split()[0] == everything.do_split()[1] and len(everything.do_split()[0]) == 1
    changed = make_trainer(dataset, "SSLScratchTrainer", {**ssl, "labelled": {"n": 2, "draw": 4}})
    changed.resumed = True
    with pytest.raises(UserError, match="began with"):
        changed.on_train_start()


@pytest.mark.parametrize(("axes", "expected"), [(None, (0, 1, 2)), ([1, 0], (0, 1)), ([], None)])
def test_mirror_axes_hold_in_training_and_prediction(axes, expected, dataset):
    trainer = make_trainer(dataset, "SSLScratchTrainer", {**SHORT, "mirror_axes": axes})
    trainer.on_train_start()
    assert trainer.inference_allowed_mirroring_axes == expected
    transforms = trainer.dataloader_train.data_loader.transforms.transforms
    mirrors = [t.allowed_axes for t in transforms if type(t).__name__ == "MirrorTransform"]
    assert mirrors == ([] if expected is None else [expected])
    trainer.disable_checkpointing = False
    trainer.save_checkpoint(str(dataset_folder(trainer) / "x.pth"))
    stored = torch.load(dataset_folder(trainer) / "x.pth", weights_only=True)
    assert stored["inference_allowed_mirroring_axes"] == expected


def test_mirror_axes_beyond_the_patch_are_refused(tmp_path, monkeypatch):
    dataset = enter(tiny_dataset(tmp_path, ndim=2, labelled=True), monkeypatch)
    with pytest.raises(UserError, match="mirror_axes"):
        make_trainer(dataset, "SSLScratchTrainer", {**SHORT, "mirror_axes": [2]}).on_train_start()


# ---- the paper's protocol


@pytest.mark.parametrize("labels", ["plain", "regions", "ignore", "regions and ignore"])
def test_paper_protocol(labels, dataset):
    names = {"background": 0, "body": 1, "organ": 2}
    if "regions" in labels:
        names = {"background": 0, "whole": [1, 2], "organ": 2}
    if "ignore" in labels:
        names["ignore"] = 3
    relabel(dataset, names, **({"regions_class_order": [1, 2]} if "regions" in labels else {}))
    trainer = make_trainer(dataset, "SSLScratchTrainer", {**SHORT, "protocol": "vox2vec"})
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    assert batch["target"].shape[1] == 2 and tuple(batch["data"].shape[2:]) == dataset.patch
    assert set(batch["target"][:, 1].unique().tolist()) <= {0, 1} and batch["target"][:, 1].any()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    assert math.isfinite(float(trainer.train_step(batch)["loss"]))
    step = trainer.validation_step(next(trainer.dataloader_val))
    assert len(step["tp_hard"]) == 2
    output = trainer.network(torch.randn(1, 1, *dataset.patch))
    outputs = trainer.label_manager.num_segmentation_heads
    assert output.shape[1] == outputs
    if "regions" not in labels:
        assert torch.all(output[:, 0] == 0)
    assert trainer.network.head.seg_layers[0].weight.shape[0] == 2
    # the predictor builds the network from the saved plan alone
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    saved = PlansManager(json.loads((dataset_folder(trainer).parent / "plans.json").read_text(encoding="utf-8")))
    rebuilt = type(trainer).build_network_architecture(saved, saved.get_configuration(trainer.configuration_name), 1,
                                                       outputs, enable_deep_supervision=False)  # fmt: skip
    rebuilt.load_state_dict(trainer.network.state_dict())


# ---- settings of the block, in effect


@pytest.mark.parametrize(("name", "kind"), [
    ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD),
])  # fmt: skip
def test_optimizer_and_weight_decay(name, kind, dataset):
    """A step without gradients is the decay alone, and each kind of optimiser decays in its own way."""
    ssl = {**SHORT, "optimizer": name, "weight_decay": 0.25, "initial_lr": 0.1}
    trainer = make_trainer(dataset, "SSLScratchTrainer", ssl)
    trainer.initialize()
    assert type(trainer.optimizer) is kind
    for group in trainer.optimizer.param_groups:
        weight = max(group["params"], key=torch.Tensor.numel)
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        trainer.optimizer.step()
        weight.grad = None
        decay = 0.25 * before
        moved = {"adam": 0.1 * decay / (decay.abs() + 1e-8), "adamw": 0.1 * decay, "sgd": 0.1 * 1.99 * decay}[name]
        assert torch.allclose(weight.detach(), before - moved, atol=1e-5)


@pytest.mark.parametrize(("share", "around_labels"), [(0.0, [False, False]), (0.5, [False, True]), (1.0, [True, True])])
def test_share_of_patches_around_labelled_voxels(share, around_labels, dataset):
    ssl = {**SHORT, "oversample_foreground_percent": share}
    trainer = make_trainer(dataset, "SSLScratchTrainer", ssl)
    trainer.on_train_start()
    loader = trainer.dataloader_train.data_loader
    assert [bool(loader.get_do_oversample(sample)) for sample in range(2)] == around_labels


@pytest.mark.parametrize(
    ("patches", "share", "warned"), [(1, 0.33, True), (1, 0.6, False), (1, 0.0, False), (2, 0.33, False)]
)
def test_a_batch_without_patches_around_labels_is_noticed(patches, share, warned, dataset, capsys):
    """The loader's own answer is the oracle."""
    plans = json.loads(plans_path(dataset).read_text(encoding="utf-8"))
    plans["configurations"][dataset.configuration]["batch_size"] = patches
    plans_path(dataset).write_text(json.dumps(plans), encoding="utf-8")
    trainer = make_trainer(dataset, "SSLScratchTrainer", {**SHORT, "oversample_foreground_percent": share})
    trainer.on_train_start()
    loader = trainer.dataloader_train.data_loader
    assert any(loader.get_do_oversample(sample) for sample in range(patches)) == (share > 0 and not warned)
    assert ("no patch is drawn around a label" in capsys.readouterr().out) == warned


def test_rate_of_the_backbone_follows_the_block(dataset, tmp_path):
    ssl = {**SHORT, "backbone_lr_factor": 0.5, "freeze_fraction": 0.0, "ramp_fraction": 0.0, "initial_lr": 0.2,
           "schedule": "constant", "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}  # fmt: skip
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", ssl)
    trainer.on_train_start()
    run_epoch(trainer, 1)
    rates = {group["role"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"head": 0.2, "backbone": pytest.approx(0.1)}


def test_a_smaller_share_of_the_weights_will_do_if_the_block_says_so(dataset, tmp_path):
    weights = pretrained_file(dataset, tmp_path)
    stored = torch.load(weights, weights_only=True)
    decoder = {key for key in stored["network_weights"] if key.startswith("decoder.") and ".encoder." not in key}
    kept = {key: value for key, value in stored["network_weights"].items() if key not in decoder}
    torch.save({**stored, "network_weights": kept}, weights)
    ssl = {**SHORT, "pretrained": {"path": str(weights)}}
    with pytest.raises(UserError, match="another architecture"):
        make_trainer(dataset, "SSLFineTuneTrainer", ssl).on_train_start()
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", {**ssl, "min_transferred": 0.25})
    trainer.on_train_start()
    report = json.loads((dataset_folder(trainer) / "transfer_report.json").read_text(encoding="utf-8"))
    assert 0.25 < report["transferred"] < 0.9


@pytest.mark.parametrize(("value", "expected"), [(None, True), (False, False)])
def test_a_probe_need_not_standardise(value, expected, dataset, tmp_path):
    ssl = {**SHORT, "standardise": value, "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}
    trainer = make_trainer(dataset, "SSLLinearProbeTrainer", ssl)
    trainer.on_train_start()
    assert trainer.network.standardise == expected
    assert any("mean_" in key for key in trainer.network.state_dict()) == expected
    run_epoch(trainer, 1)


# ---- nnU-Net's own loss and augmentation, on every kind of labels that nnU-Net knows


LABELS = {
    "regions": ({"background": 0, "whole": [1, 2], "organ": 2}, {"regions_class_order": [1, 2]}, 2, 2),
    "ignore": ({"background": 0, "body": 1, "ignore": 2}, {}, 1, 2),
    "regions and ignore": ({"background": 0, "whole": [1, 2], "organ": 2, "ignore": 3},
                           {"regions_class_order": [1, 2]}, 2, 2),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", TRAINERS)
def test_default_protocol_on_regions_and_ignored_voxels(name, labels, dataset, tmp_path):
    names, entries, classes, outputs = LABELS[labels]
    relabel(dataset, names, **entries)
    ssl = {**SHORT, "freeze_fraction": 0.0, "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}
    trainer = make_trainer(dataset, name, ssl)
    trainer.on_train_start()
    before = states(trainer.network, "head")
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    assert math.isfinite(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    assert not same(before, states(trainer.network, "head"))
    trainer.network.eval()
    with torch.no_grad():
        step = trainer.validation_step(next(trainer.dataloader_val))
        output = trainer.network(torch.randn(1, 1, *dataset.patch))
    assert math.isfinite(float(step["loss"])) and len(step["tp_hard"]) == classes
    assert (output[0] if isinstance(output, list) else output).shape == (1, outputs, *dataset.patch)


@pytest.mark.parametrize(("network", "ndim"), [("resenc", 3), ("plain", 2), ("fpn", 3)])
@pytest.mark.parametrize("name", TRAINERS)
def test_network_is_rebuilt_from_the_plan(name, network, ndim, tmp_path, monkeypatch):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset = enter(tiny_dataset(tmp_path, ndim=ndim, labelled=True, network=network, channels=2), monkeypatch)
    trainer = make_trainer(dataset, name, {**SHORT, "head": "linear"})
    trainer.initialize()
    plans = PlansManager(str(plans_path(dataset)))
    built = type(trainer).build_network_architecture(plans, plans.get_configuration(dataset.configuration), 2, 3,
                                                     enable_deep_supervision=False)  # fmt: skip
    built.load_state_dict(trainer.network.state_dict())
    x = torch.randn(1, 2, *dataset.patch)
    output = built.eval()(x)
    assert output.shape == (1, 3, *dataset.patch)
    assert torch.allclose(output, trainer.network.eval()(x), atol=1e-6)


@pytest.mark.parametrize("head", ["stock", "linear", "nonlinear"])
@pytest.mark.parametrize("name", TRAINERS)
def test_bfloat16_in_training_and_in_the_predictor(name, head, dataset, tmp_path):
    """The predictor's network, built by the class from the plan, computes like the trainer's; both near float32."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    ssl = {**SHORT, "freeze_fraction": 0.0, "head": head, "amp": "bf16",
           "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}  # fmt: skip
    trainer = make_trainer(dataset, name, ssl)
    trainer.on_train_start()
    before = states(trainer.network, "head")
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    assert math.isfinite(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    assert not same(before, states(trainer.network, "head"))
    plans, weights = PlansManager(str(plans_path(dataset))), trainer.network.state_dict()
    manager = plans.get_configuration(dataset.configuration)
    outputs: list[torch.Tensor] = []
    x = torch.randn(1, 1, *dataset.patch)
    for amp in ("bf16", "auto"):
        manager.configuration["ssl"] = {**manager.configuration["ssl"], "amp": amp}
        built = type(trainer).build_network_architecture(plans, manager, 1, 3, enable_deep_supervision=False).eval()
        built.load_state_dict(weights)
        with torch.no_grad():
            outputs = [*outputs, built(x)]
    half, exact = outputs
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    assert (half - exact).norm() < 0.05 * exact.norm()


# ---- what a GPU adds: scaled gradients, compilation, several processes


@pytest.mark.parametrize("name", ["SSLFineTuneTrainer", "SSLLinearProbeTrainer"])
def test_scaled_gradients_and_compiled_network(name, dataset, tmp_path, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    ssl = {**SHORT, "num_epochs": 1, "freeze_fraction": 0.5, "head": "linear",
           "pretrained": {"path": str(pretrained_file(dataset, tmp_path))}}  # fmt: skip
    trainer = make_trainer(dataset, name, ssl)
    trainer._do_i_compile = lambda: True
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.on_train_start()
    network = trainer.network._orig_mod
    before = states(network, "backbone"), states(network, "head")
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert same(before[0], states(network, "backbone")) and not same(before[1], states(network, "head"))
    trainer.train_step(next(trainer.dataloader_train))
    assert same(before[0], states(network, "backbone")) == (name == "SSLLinearProbeTrainer")
    trainer.save_checkpoint(str(tmp_path / "x.pth"))
    stored = torch.load(tmp_path / "x.pth", weights_only=True)["network_weights"]
    assert stored.keys() == network.state_dict().keys()


@pytest.fixture
def one_process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


DDP_CASES = [("SSLFineTuneTrainer", "linear"), ("SSLFrozenTrainer", "linear"), ("SSLFrozenTrainer", "stock"),
             ("SSLNonlinearProbeTrainer", "stock")]  # fmt: skip


@pytest.mark.parametrize(("name", "head"), DDP_CASES)
def test_every_trainable_parameter_gets_a_gradient(name, head, dataset, tmp_path, one_process_group):
    """DistributedDataParallel stops at the second step where one does not."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    set_ssl(dataset, {**SHORT, "head": head})
    plans = PlansManager(str(plans_path(dataset)))
    cls = getattr(importlib.import_module(f"nnunet_ssl.trainers.{name}"), name)
    network = cls.build_network_architecture(plans, plans.get_configuration(dataset.configuration), 1, 3)
    parallel = torch.nn.parallel.DistributedDataParallel(network)
    for _ in range(3):
        output = parallel(torch.randn(1, 1, *dataset.patch))
        sum(o.square().mean() for o in (output if isinstance(output, list) else [output])).backward()


def test_stem_is_adapted_to_other_channels(tmp_path, monkeypatch):
    dataset = enter(tiny_dataset(tmp_path, labelled=True, channels=2), monkeypatch)
    ssl = {**SHORT, "pretrained": {"path": str(pretrained_file(dataset, tmp_path, channels=1))}}
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", ssl)
    trainer.on_train_start()
    report = json.loads((dataset_folder(trainer) / "transfer_report.json").read_text(encoding="utf-8"))
    assert sum(row["status"] == "adapted" for row in report["tensors"]) == 1
