"""Mean Teacher behind the fine-tune trainer: the moving average, the consistency, and whose cases it reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.mean_teacher import MeanTeacher, MeanTeacherSettings
from nnunet_ssl.nnunet.downstream.network import bare
from tests.downstream_tools import SHORT, make_trainer, pretrained_file, same
from tests.tiny_dataset import tiny_dataset

LABELLED = {"n": 1, "draw": 0}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = tiny_dataset(tmp_path, labelled=True)
    for key, value in made.env.items():
        monkeypatch.setenv(key, value)
    return made


def block(dataset: SimpleNamespace, tmp_path: Path, **more: Any) -> dict[str, Any]:
    weights = tmp_path / "pretrained.pth"
    path = weights if weights.exists() else pretrained_file(dataset, tmp_path)
    return {**SHORT, "pretrained": {"path": str(path)}, "labelled": LABELLED, "mean_teacher": {}, **more}


def fake(network: torch.nn.Module, epochs: int = 10, steps: int = 10) -> MeanTeacher:
    teacher = object.__new__(MeanTeacher)
    teacher.settings, teacher.rise = MeanTeacherSettings(decay=0.9, weight=2.0), 40
    teacher.trainer = SimpleNamespace(network=network, label_manager=SimpleNamespace(has_regions=False))
    teacher.network = torch.nn.Conv2d(2, 3, 1)
    return teacher


def test_the_teacher_is_the_moving_average_of_the_student() -> None:
    student = torch.nn.Conv2d(2, 3, 1)
    teacher = fake(student)
    expected = {key: value.clone().double() for key, value in teacher.network.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            student.weight.normal_()
        teacher.follow(step)
        keep = min(0.9, 1 - 1 / (step + 1))
        for key, value in student.state_dict().items():
            expected[key] = keep * expected[key] + (1 - keep) * value.double()
        assert all(torch.allclose(v.double(), expected[k], atol=1e-5) for k, v in teacher.network.state_dict().items())


def test_consistency_and_its_weight() -> None:
    """Against the formula in float64; the teacher gets no gradient, the weight rises by a Gaussian of time."""
    torch.manual_seed(0)
    teacher = fake(torch.nn.Identity())
    teacher.settings = MeanTeacherSettings(weight=2.0, noise=0.0)
    patches, logits = torch.randn(2, 2, 5, 5), torch.randn(2, 3, 5, 5, requires_grad=True)
    found = teacher.consistency([logits, logits[..., ::2]], patches, 40)
    with torch.no_grad():
        wanted = teacher.network(patches).double().softmax(1)
    expected = 2.0 * (logits.double().softmax(1) - wanted).square().mean()
    assert torch.allclose(found.double(), expected, atol=1e-7)
    found.backward()
    assert logits.grad is not None and teacher.network.weight.grad is None
    assert [teacher.weight(s) for s in (0, 20, 40, 400)] == pytest.approx(
        [2 * math.exp(-5), 2 * math.exp(-1.25), 2.0, 2.0])  # fmt: skip
    teacher.trainer.label_manager.has_regions = True
    regions = teacher.consistency(logits, patches, 40)
    with torch.no_grad():
        difference = logits.double().sigmoid() - teacher.network(patches).double().sigmoid()
    assert torch.allclose(regions.double(), 2.0 * difference.square().mean(), atol=1e-7)


def test_noise_is_bounded() -> None:
    teacher = fake(torch.nn.Identity())
    noise = teacher.noisy(torch.zeros(20000))
    assert noise.abs().max() <= 0.2 and 0.08 < noise.std() < 0.1


@pytest.mark.parametrize("head", ["stock", "linear", "nonlinear"])
def test_a_training_reads_the_cases_that_are_left_out(
    head: str, dataset: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(dataset, "SSLFineTuneTrainer", block(dataset, tmp_path, head=head), fold="all")
    trainer.on_train_start()
    labelled = trainer.do_split()[0]
    assert len(labelled) == 1 and set(trainer.unlabelled_cases()) == set(dataset.cases) - set(labelled)
    inner = trainer.teacher.loader.data_loader
    assert inner._data.identifiers == trainer.unlabelled_cases() and inner.oversample_foreground_percent == 0
    assert trainer.oversample_foreground_percent == 0.33 and trainer.do_split()[0] == labelled
    assert trainer.dataloader_train.data_loader._data.identifiers == labelled
    before = {key: value.clone() for key, value in trainer.teacher.network.state_dict().items()}
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    seen = []
    plain = trainer.teacher.consistency
    monkeypatch.setattr(trainer.teacher, "consistency", lambda *a: seen.append(plain(*a)) or seen[-1])
    result = trainer.train_step(next(trainer.dataloader_train))
    assert math.isfinite(float(result["loss"])) and len(seen) == 1 and float(seen[0]) > 0
    assert not same(before, trainer.teacher.network.state_dict())


def test_the_final_weights_are_the_teachers_and_continuing_is_exact(dataset: SimpleNamespace, tmp_path: Path) -> None:
    ssl = block(dataset, tmp_path, seed=3)
    whole = make_trainer(dataset, "SSLFineTuneTrainer", ssl)
    whole.run_training()
    final = Path(whole.output_folder) / "checkpoint_final.pth"
    expected = torch.load(final, weights_only=True)
    assert same(expected["network_weights"], expected["mean_teacher_weights"])
    assert same(expected["network_weights"], bare(whole.network).state_dict())
    final.unlink()
    first = make_trainer(dataset, "SSLFineTuneTrainer", ssl)
    first.on_train_start()
    first.on_epoch_start()
    first.on_train_epoch_start()
    first.on_train_epoch_end([first.train_step(next(first.dataloader_train)) for _ in range(2)])
    with torch.no_grad():
        first.on_validation_epoch_start()
        first.on_validation_epoch_end([first.validation_step(next(first.dataloader_val))])
    first.on_epoch_end()
    second = make_trainer(dataset, "SSLFineTuneTrainer", ssl, resume=True)
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    found = torch.load(final, weights_only=True)
    assert same(expected["network_weights"], found["network_weights"])
    assert json.loads((final.parent / "downstream.json").read_text())["recipe"]["mean_teacher"] == {}


def test_what_is_refused(dataset: SimpleNamespace, tmp_path: Path) -> None:
    ssl = block(dataset, tmp_path)
    with pytest.raises(UserError, match="there are none: all are labelled"):
        make_trainer(dataset, "SSLFineTuneTrainer", {**ssl, "labelled": None}).on_train_start()
    for bad, words in (({"decay": 2}, "mean_teacher.decay is 2; expected"), ({"rate": 1}, "unknown key 'rate'")):
        with pytest.raises(UserError, match=words):
            make_trainer(dataset, "SSLFineTuneTrainer", {**ssl, "mean_teacher": bad})
    with pytest.raises(UserError, match=r"protocol is 'vox2vec'.*default with mean_teacher"):
        make_trainer(dataset, "SSLFineTuneTrainer", {**ssl, "protocol": "vox2vec"})


@pytest.mark.parametrize("name", ["SSLScratchTrainer", "SSLFrozenTrainer"])
def test_other_trainers_do_without(name: str, dataset: SimpleNamespace, tmp_path: Path) -> None:
    trainer = make_trainer(dataset, name, block(dataset, tmp_path))
    trainer.on_train_start()
    assert trainer.teacher is None
