"""Members of a family are found by listing: a new trainer, loss, objective or preset is tested by being there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nnunet_ssl.nnunet.recipe import parse, to_block
from tests.test_layers import REPOSITORY
from tests.tiny_dataset import tiny_dataset

TRAINERS = sorted(path.stem for path in (REPOSITORY / "trainers").glob("*.py") if path.stem != "__init__")
LOSSES = sorted(path.stem for path in (REPOSITORY / "nnunet_ssl" / "losses").glob("*.py") if path.stem != "__init__")
OBJECTIVES = sorted(p.stem for p in (REPOSITORY / "nnunet_ssl" / "objectives").glob("*.py") if p.stem != "__init__")
PRESETS = sorted((REPOSITORY / "plans").glob("*.json"))
FIVE = ["self", "plans", "configuration", "fold", "dataset_json", "device"]


def trainer(name: str) -> type:
    return getattr(importlib.import_module(f"nnunet_ssl.trainers.{name}"), name)


def objective(name: str) -> ModuleType:
    return importlib.import_module(f"nnunet_ssl.objectives.{name}")


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_is_one_that_nnunet_can_use(name: str) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    found = trainer(name)
    assert issubclass(found, nnUNetTrainer) and found.__module__ == f"nnunet_ssl.trainers.{name}"
    assert found.__doc__ and found.__doc__ != nnUNetTrainer.__doc__
    # nnU-Net reads the arguments of the constructor by name, and the predictor builds the network without an instance.
    assert list(inspect.signature(found.__init__).parameters) == FIVE
    assert callable(found.build_network_architecture)
    signature = inspect.signature(found.build_network_architecture)
    assert list(signature.parameters)[:2] == ["plans_manager", "configuration_manager"]
    assert pickle.loads(pickle.dumps(found)) is found


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_file_defines_one_class(name: str) -> None:
    module = importlib.import_module(f"nnunet_ssl.trainers.{name}")
    assert [v.__name__ for v in vars(module).values()
            if inspect.isclass(v) and v.__module__ == module.__name__] == [name]  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_takes_two_sets_of_embeddings(name: str) -> None:
    import nnunet_ssl.losses as family

    loss = getattr(family, name)
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = (torch.nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=1) for _ in range(2))
    z_a.requires_grad_()
    value = loss(z_a, z_b)
    value.backward()
    assert value.shape == () and value.isfinite() and z_a.grad is not None and z_a.grad.isfinite().all()
    order = torch.randperm(12, generator=generator)
    assert torch.allclose(loss(z_a[order], z_b[order]), value, rtol=1e-4)  # the order of the points says nothing
    assert loss(z_a, z_a) < value  # pairs that agree cost less than strangers
    with pytest.raises(ValueError):
        loss(z_a, z_b[:-1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_recipe_can_be_written_into_a_plan_and_read_again(name: str) -> None:
    recipe_class = objective(name).Recipe
    recipe = recipe_class()
    recipe.validate()
    assert dataclasses.is_dataclass(recipe_class) and recipe.objective == name
    block = json.loads(json.dumps(to_block(recipe)))
    assert set(block) == {field.name for field in dataclasses.fields(recipe_class)}
    assert parse(block, recipe_class) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.num_epochs = 1
    with pytest.raises(ValueError, match="num_epochs"):
        dataclasses.replace(recipe, num_epochs=0).validate()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_its_trainer(name: str) -> None:
    (found,) = (trainer for trainer in TRAINERS if trainer.lower() == f"{name}pretraintrainer")
    assert trainer(found).recipe_class is objective(name).Recipe


def test_a_pretraining_network_is_built_by_the_objective_of_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An objective is a file in the folder: its fields are known where nnU-Net builds the network from a plan alone."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ssl import objectives
    from nnunet_ssl.nnunet.pretrain import PretrainTrainer

    (tmp_path / "another.py").write_text(
        "from dataclasses import dataclass\nfrom nnunet_ssl.objectives import vox2vec\n\n@dataclass(frozen=True)\n"
        "class Recipe(vox2vec.Recipe):\n    objective: str = 'another'\n    field_of_its_own: int = 5\n\n"
        "    def validate(self):\n        pass\n\n"
        "    @property\n    def embedding_width(self):\n        return self.field_of_its_own\n"
    )
    monkeypatch.setattr(objectives, "__path__", [str(tmp_path), *objectives.__path__])
    monkeypatch.setitem(sys.modules, "nnunet_ssl.objectives.another", None)
    del sys.modules["nnunet_ssl.objectives.another"]
    block = {"objective": "another", "field_of_its_own": 7}
    tiny = tiny_dataset(tmp_path / "data", cases=1, ssl=block)
    plans = PlansManager(str(tiny.preprocessed / tiny.dataset_name / f"{tiny.plans_name}.json"))
    network = PretrainTrainer.build_network_architecture(plans, plans.get_configuration(tiny.configuration), 1, 2)
    assert network.projector.mlp(torch.zeros(3, 36)).shape == (3, 7)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_holds_values_that_its_objective_knows(path: Path) -> None:
    preset = json.loads(path.read_text(encoding="utf-8"))
    assert preset["description"] and preset["configurations"]
    block = preset["ssl"]
    assert parse(block, objective(block["objective"]).Recipe).objective == block["objective"]


def test_the_families_are_not_empty() -> None:
    assert len(TRAINERS) >= 6 and len(LOSSES) >= 3 and OBJECTIVES and len(PRESETS) >= 4
