"""The recipe: the paper's numbers, JSON, and values that are refused by name."""

import dataclasses
import json

import pytest

from nnunet_ssl.objectives.vox2vec import Recipe
from nnunet_ssl.probe import ProbeSettings


def test_defaults_are_those_of_the_published_code():
    recipe = Recipe()
    recipe.validate()
    assert (recipe.volumes_per_batch, recipe.voxels_per_pair) == (1, 1024)
    assert recipe.pairs_per_batch is None  # the preset's batch_size is 10
    assert (recipe.loss, recipe.temperature) == ("info_nce", 0.1)
    assert (recipe.level_width, recipe.level_reading) == ("native", "nearest")
    assert (recipe.spatial, recipe.flip_axes) == ("none", [])
    assert (recipe.blur_sharpen_p, recipe.noise_p, recipe.window_p) == (0.5, 0.5, 0.8)
    assert (recipe.blur_sigma, recipe.sharpen_sigma, recipe.sharpen_amount) == ([0.25, 1.5], [0.5, 1.0], [10, 30])
    assert (recipe.noise_hu, recipe.window_lo_hu, recipe.window_hi_hu) == ([0, 30], [-1350, -1000], [300, 1000])
    assert (recipe.optimizer, recipe.schedule, recipe.initial_lr, recipe.clip) == ("adam", "constant", 3e-4, 1.0)


def test_it_travels_through_json():
    recipe = Recipe(spatial="affine", rotation_deg=[10, 0, 0], projector_hidden=[64], probe={"dataset": 4, "every": 10})
    recipe.validate()
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_every_field_has_a_rule():
    assert {field.name for field in dataclasses.fields(Recipe)} == set(Recipe.RULES)


def test_recipes_do_not_share_their_lists():
    assert Recipe().scale is not Recipe().scale


def test_widths_of_the_projector():
    assert Recipe().hidden_widths(1008) == [1008, 1008]
    assert Recipe(loss="vicreg").hidden_widths(1008) == [8192, 8192]
    assert Recipe(projector_hidden=[]).hidden_widths(1008) == []
    widths = [Recipe(loss=loss).embedding_width for loss in ("info_nce", "vicreg", "barlow_twins")]
    assert widths == [128, 8192, 128] and Recipe(loss="vicreg", projector_out=64).embedding_width == 64
    assert [Recipe(loss=loss).normalised for loss in ("info_nce", "vicreg", "barlow_twins")] == [True, False, False]


def test_affine_views_are_read_linearly_unless_told_otherwise():
    assert [Recipe(spatial=spatial).level_reading for spatial in ("none", "affine")] == ["nearest", "linear"]
    assert Recipe(spatial="affine", reading="nearest").level_reading == "nearest"
    assert Recipe(reading="linear").level_reading == "linear"


GOOD = [
    {"pairs_per_batch": None}, {"projector_out": 64}, {"clip": None}, {"level_width": 32}, {"rotation_deg": 0},
    {"rotation_deg": [180.0]}, {"flip_axes": [0, 1, 2]}, {"flip_axes": (2,)}, {"mirror_axes": []}, {"noise_p": 0},
    {"gain": [1, 1]}, {"num_val_iterations_per_epoch": 0}, {"seed": 12345},
]

BAD = [
    ("loss", "infonce", "'info_nce' or 'vicreg'"), ("objective", "pix2rep", "'vox2vec'"), ("spatial", None, "'affine'"),
    ("temperature", 0.0, "> 0"), ("temperature", float("nan"), "a number"), ("temperature", "0.1", "a number"),
    ("temperature", True, "a number"), ("noise_p", 1.5, "<= 1"), ("window_p", -0.1, ">= 0"),
    ("voxels_per_pair", 0, ">= 1"), ("voxels_per_pair", 10.0, "a whole number"), ("volumes_per_batch", True, "whole"),
    ("pairs_per_batch", 0, "null or a whole number"), ("clip", 0, "null or a number > 0"),
    ("reading", "cubic", "null or 'nearest'"), ("projector_out", 0, "null or a whole number"),
    ("level_width", "wide", "'native' or a whole number"),
    ("level_width", 0, "'native' or"), ("projector_hidden", 64, "a list"), ("projector_hidden", [64, 0], "each member"),
    ("rotation_deg", 200, "<= 180"), ("rotation_deg", [-1.0], "list"), ("scale", [0.0, 1.0], "> 0"),
    ("scale", [1.2, 0.8], r"\[least, greatest\]"), ("scale", 1.0, "list of 2"), ("flip_axes", [3], "0 to 2"),
    ("flip_axes", [1, 1], "none twice"), ("flip_axes", None, "a list"), ("mirror_axes", "012", "null or a list"),
    ("probe", {"every": 3}, "'dataset'"), ("shift", [0.1, float("inf")], "a number"),
    ("window_lo_hu", [-1000.0, 400.0], "window_hi_hu"),
]


BAD_PROBES = [
    ({"evry": 3}, r"probe has the unknown key 'evry'. Did you mean 'every'"),
    ({"dataset": 1.5}, "probe.dataset is 1.5; expected a whole number >= 0 or a name"),
    ({"dataset": ""}, "probe.dataset is ''"), ({"every": 0}, "probe.every is 0"), ({"every": True}, "probe.every"),
    ({"cases": 0}, "probe.cases is 0"), ({"cases": []}, "at least one"), ({"cases": ["a", "a"]}, "none twice"),
    ({"held_out": [1]}, "probe.held_out"), ({"plans": 3}, "probe.plans is 3"), ({"configuration": []}, "configuration"),
    ({"balance": None}, "probe.balance is None; expected a number >= 0 and <= 1"), ({"balance": 1.5}, "<= 1"),
    ({"l2": "x"}, "probe.l2 is 'x'"), ({"l2": -1.0}, ">= 0"), ({"max_iter": 0}, "max_iter"),
    ({"per_class": 1.0}, "per_class"), ({"background": 0}, "background"), ({"max_windows": None}, "max_windows"),
    ({"step": 0}, "probe.step is 0; expected a number > 0 and <= 1"), ({"step": 1.5}, "<= 1"), ({"seed": -1}, "seed"),
]


@pytest.mark.parametrize(("change", "expected"), BAD_PROBES, ids=str)
def test_a_probe_is_checked_with_the_recipe(change, expected):
    """Long before it is measured for the first time; each of its fields."""
    assert {name for bad, _ in BAD_PROBES[1:] for name in bad} == {f.name for f in dataclasses.fields(ProbeSettings)}
    Recipe(probe={"dataset": 4, "cases": ["a", "b"], "plans": "nnUNetPlans", "balance": 1, "step": 1}).validate()
    with pytest.raises(ValueError, match=expected):
        Recipe(probe={"dataset": 4, **change}).validate()


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_good_values_pass(values):
    Recipe(**values).validate()


@pytest.mark.parametrize(("name", "value", "expected"), BAD, ids=str)
def test_bad_values_are_refused_by_name_with_what_is_allowed(name, value, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        Recipe(**{name: value}).validate()
    assert str(caught.value).startswith(f"{name} is {value!r}")
