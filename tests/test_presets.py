"""Every preset is complete and consistent; its topology and patch rules."""

from __future__ import annotations

import pytest
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.memory import build, measure, projector_parameters, step_gib, total_stride
from nnunet_ssl.nnunet.presets import (
    limit_patch,
    load_preset,
    preset_block,
    preset_names,
    topology,
    window_normalisation,
)
from nnunet_ssl.nnunet.settings import complete, parse_setting, recipe_class
from nnunet_ssl.objectives.vox2vec import Recipe

KEYS = {"description", "planner", "configurations", "num_channels", "spacing_mm", "patch_size", "batch_size",
        "window_hu", "architecture", "ssl", "by_configuration"}  # fmt: skip
PATCH = [32, 128, 128]


def test_the_presets_are_found_by_listing() -> None:
    assert set(preset_names()) >= {"vox2vec", "nnunet", "portable", "tiny"}
    with pytest.raises(UserError, match=r"tiny2.*nnunet, pix2rep, pix2rep_3d, pix2rep_v2, portable, tiny, vox2vec"):
        load_preset("tiny2")


@pytest.mark.parametrize("name", preset_names())
def test_preset(name: str) -> None:
    preset = load_preset(name)
    assert set(preset) <= KEYS
    assert set(preset.get("by_configuration", {})) <= set(preset["configurations"])
    for configuration in preset["configurations"]:
        block = complete(preset_block(name, configuration))
        assert block.keys() == recipe_class(block)().to_dict().keys()
    if "architecture" in preset:
        arguments = preset["architecture"]["arch_kwargs"]
        if arguments["strides"] == "by_spacing":
            arguments["kernel_sizes"], arguments["strides"] = topology([1.0, 1.0, 1.0], arguments["n_stages"])
        build(preset["architecture"], 1)
        strides = total_stride(preset["architecture"])
        assert all(p % s == 0 for p, s in zip(preset["patch_size"], strides, strict=True))


def test_vox2vec_is_the_paper() -> None:
    preset = load_preset("vox2vec")
    cost = measure(preset["architecture"], 1, preset["patch_size"])
    assert cost.parameters == 47_624_448 and preset["batch_size"] == 10
    assert cost.channels == (16, 32, 64, 128, 256, 512)
    recipe = recipe_class(preset["ssl"])()
    # Linear(1008, 1008) - BN - ReLU twice, Linear(1008, 128)
    assert projector_parameters(cost, recipe) == 2 * (1008 * 1008 + 1008 + 2 * 1008) + 1008 * 128 + 128
    assert 4 < step_gib(cost, 10, PATCH, recipe, half=True) < 40
    five, ten, wide = (step_gib(cost, n, PATCH, recipe, half) for n, half in ((5, True), (10, True), (10, False)))
    assert five < ten < wide
    vicreg, narrow = Recipe(loss="vicreg"), Recipe(loss="vicreg", projector_out=8)
    assert projector_parameters(cost, vicreg) - projector_parameters(cost, narrow) == (8192 + 1) * (8192 - 8)
    assert step_gib(cost, 10, PATCH, vicreg, half=True) > step_gib(cost, 10, PATCH, narrow, half=True) + 1


@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 0.7, 0.7), (2.5, 1, 1), (1.9, 1, 1), (12, 1.4, 1.4)])
def test_topology_follows_nnunet(spacing: tuple[float, ...]) -> None:
    kernels, strides = topology(spacing, 4)
    _, theirs, kernels_theirs, _, _ = get_pool_and_conv_props(spacing, (64, 64, 64), 4, 3)
    assert strides == [list(s) for s in theirs[:4]]
    # nnU-Net keeps 3 wherever the previous stages had 3; so does the rule, as spacings only come closer
    assert kernels == [list(k) for k in kernels_theirs[:4]]


def test_limit_patch() -> None:
    assert limit_patch([24, 32, 32], [36, 50, 35], [8, 8, 8], 0.75) == [24, 32, 24]
    assert limit_patch([32, 128, 128], [150, 300, 300], [32, 32, 32], 0.75) == [32, 128, 128]
    assert limit_patch([40, 56, 40], [36, 50, 35], [8, 8, 8], 0.75) == [24, 32, 24]
    assert limit_patch([32, 128, 128], [17, 50, 35], [32, 32, 32], 0.75) == [32, 32, 32]  # one stride at least


def test_window_normalisation_maps_the_window_to_0_1() -> None:
    import numpy as np
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    properties = window_normalisation({"median": 3.0}, [-1350, 1000])
    scheme = CTNormalization(use_mask_for_norm=False, intensityproperties=properties)
    found = scheme.run(np.array([-3000.0, -1350.0, -175.0, 1000.0, 3000.0]), None)
    np.testing.assert_allclose(found, [0, 0, 0.5, 1, 1], atol=1e-6)
    assert properties["median"] == 3.0


def test_values_of_set_are_json_or_text() -> None:
    written = {"ssl.clip=null": None, "ssl.clip=None": None, "ssl.intensity=none": "none", "ssl.seed=3": 3,
               "ssl.flip_axes=[0,2]": [0, 2], "ssl.loss=vicreg": "vicreg", "ssl.x=True": True}  # fmt: skip
    for text, value in written.items():
        key = text.partition("=")[0].partition(".")[2]
        assert parse_setting(text) == {"ssl": {key: value}}
