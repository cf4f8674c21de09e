"""The representation report: numbers beside chance and the untrained network, pictures, round trips."""

from __future__ import annotations

import json
from collections import Counter

import matplotlib.image
import numpy as np
import pytest
import torch
from nnunet_ssl.trainers.Vox2VecPretrainTrainer import Vox2VecPretrainTrainer

from nnunet_ssl.nnunet import dense
from nnunet_ssl.nnunet.correspondence import Standard, nearest, round_trip
from nnunet_ssl.nnunet.pictures import draw_grid, plane, values_at
from nnunet_ssl.nnunet.report import FOLDER, write_report
from nnunet_ssl.nnunet.subjects import Subject
from nnunet_ssl.nnunet.windows import read_window
from tests.tiny_dataset import tiny_dataset

SSL = {"pairs_per_batch": 2, "voxels_per_pair": 48, "projector_hidden": [16], "projector_out": 8,
       "num_val_iterations_per_epoch": 2, "num_epochs": 1, "num_iterations_per_epoch": 1}  # fmt: skip


def round_trip_literal(a, points_a, b, spacing):
    distances = []
    for i in range(len(a)):
        j = max(range(len(b)), key=lambda k: float(a[i].double() @ b[k].double()))
        back = max(range(len(a)), key=lambda k: float(b[j].double() @ a[k].double()))
        distances.append(np.sqrt((((points_a[i] - points_a[back]) * spacing) ** 2).sum()))
    return np.array(distances)


def test_round_trip_equals_the_literal_search():
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(40, 5, generator=generator), dim=1)
    b = torch.nn.functional.normalize(torch.randn(30, 5, generator=generator), dim=1)
    points = np.random.default_rng(0).integers(0, 20, (40, 3))
    spacing = np.array([3.0, 1.0, 0.5])
    result = round_trip(a, points, b, spacing)
    expected = round_trip_literal(a, points, b, spacing)
    assert result["round_trip_mm_mean"] == pytest.approx(expected.mean())
    assert result["round_trip_mm_median"] == pytest.approx(np.median(expected))
    assert result["round_trip_mm_mean_chance"] > 0


def test_unique_vectors_lead_home_and_noise_does_not():
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=1)
    points = np.random.default_rng(0).integers(0, 50, (200, 3))
    home = round_trip(a, points, a[torch.randperm(200, generator=generator)], (1, 1, 1))
    assert home["round_trip_mm_mean"] == 0 and home["round_trip_returned"] == 1
    other = torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=1)
    assert round_trip(a, points, other, (1, 1, 1))["round_trip_mm_mean"] > 5


def test_standard_makes_channels_equal():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.0]) + 5
    z = Standard.of(x[:50], x[50:])(x)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(100))
    assert (z[:, 2] == 0).all()
    assert z[:, 0].abs().mean() == pytest.approx(z[:, 1].abs().mean().item(), rel=0.2)
    assert nearest(z, z).tolist() == list(range(100))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_hold_the_voxels_that_they_name(axis):
    image = np.random.default_rng(0).normal(size=(2, 7, 300, 5)).astype(np.float32)
    shown = plane(image.shape[1:], axis, 3, (4.0, 1.0, 2.0))
    values = values_at(image, shown)
    assert values.shape == shown.shape and max(shown.shape) <= 128
    assert (shown.points[:, axis] == 3).all()
    np.testing.assert_array_equal(values.ravel(), image[0][tuple(shown.points.T)])
    column, row = shown.pixel_of(shown.points[len(shown.points) // 2])
    assert row * shown.shape[1] + column == len(shown.points) // 2
    # the picture's proportions are the body's
    rows, columns = (a for a in range(3) if a != axis)
    spacing = (4.0, 1.0, 2.0)
    mm = image.shape[1 + rows] * spacing[rows] / (image.shape[1 + columns] * spacing[columns])
    assert shown.aspect * shown.shape[0] / shown.shape[1] == pytest.approx(mm, rel=0.02)


def test_queries_lie_apart_in_the_middle():
    subject = Subject("c", True, None, np.ones((20, 20, 20), dtype=bool), (1.0, 1.0, 1.0))
    points = subject.draw(500, np.random.default_rng(0))
    chosen = points[subject.spread(points, 4)]
    assert len(np.unique(points, axis=0)) == 500 and len(chosen) == 4
    gaps = np.linalg.norm(chosen[:, None] - chosen[None], axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() > 5 and (np.abs(chosen - 9.5) <= 8).all()
    assert subject.mask[subject.centre()]


def test_a_grid_with_an_empty_cell_is_drawn(tmp_path):
    shown = plane((4, 5, 6), 0, 1, (1, 1, 1))
    cell = {"image": np.full(shown.shape, 2.0), "plane": shown, "mark": (1, 2, 3)}
    draw_grid(tmp_path / "x.png", [[cell, None], [cell, cell]], ["a", "b"], "title", "note")
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0


@pytest.mark.parametrize(("options", "count"), [
    ({"cases": 4}, 2),
    ({"cases": 1}, 1),
    ({"cases": 4, "ndim": 2}, 2),
    ({"cases": 4, "network": "fpn", "labelled": True, "marked": False}, 2),
])  # fmt: skip
def test_the_report_of_a_trainer(tmp_path, monkeypatch, options, count):
    data = tiny_dataset(tmp_path, ssl=SSL, **options)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_compile", "nnUNet_n_proc_DA"):
        monkeypatch.setenv(name, data.env[name])
    trainer = make_trainer(data)
    with torch.no_grad():  # stands for a training: the report must tell it from the network it started from
        for parameter in trainer.network.parameters():
            parameter.mul_(1.3)
    report = write_report(trainer)
    folder = tmp_path / "nnUNet_results" / data.dataset_name
    written = next(folder.rglob(FOLDER))
    content = json.loads((written / "representation.json").read_text(encoding="utf-8"))
    assert len(content["cases"]) == count
    expected = {f"pca_{row['case']}.png" for row in content["cases"]}
    if count > 1:
        expected.add(f"similarity_{content['cases'][0]['case']}_{content['cases'][1]['case']}.png")
        trips = content["correspondence"]
        assert trips["pretrained"]["round_trip_mm_mean_chance"] > 0
        assert trips["pretrained"]["round_trip_mm_mean"] >= 0
    else:
        assert content["correspondence"] is None
    assert {path.name for path in written.iterdir()} == expected | {"representation.json"}
    assert set(content["pictures"]) == expected
    for name in expected:
        assert matplotlib.image.imread(written / name).std() > 0.01
    pairs = content["held_back_pairs"]
    assert 0 < pairs["pretrained"]["retrieval_chance"] <= pairs["pretrained"]["retrieval_at_1"] + 0.05
    assert pairs["pretrained"]["alignment"] != pairs["untrained"]["alignment"]
    assert report["held_back_pairs"]["pretrained"]["retrieval_at_1"] == pairs["pretrained"]["retrieval_at_1"]


def test_a_window_is_read_once_for_all_pictures(tmp_path, monkeypatch):
    data = tiny_dataset(tmp_path, ssl=SSL, cases=4, shape=(24, 40, 24))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_compile", "nnUNet_n_proc_DA"):
        monkeypatch.setenv(name, data.env[name])
    reads = Counter()

    def counted(image, window, patch):
        reads[id(image), window.start] += 1
        return read_window(image, window, patch)

    monkeypatch.setattr(dense, "read_window", counted)
    write_report(make_trainer(data))
    images = {image: [count for (i, _), count in reads.items() if i == image] for image, _ in reads}
    first, second = images.values()  # held in the order in which they were read
    assert len(first) == len(second) == 2 * 4 * 2  # windows of the volume, all of which hold some of the points
    assert set(first) == {2}  # a time for each of the two networks
    assert set(second) <= {2, 4} and 4 in second  # and once more where matches lie, which the first time tells


def make_trainer(data):
    """An initialised pretraining trainer on a tiny dataset, in this process."""
    base = data.preprocessed / data.dataset_name
    plans = json.loads((base / f"{data.plans_name}.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    dataset_json = json.loads((base / "dataset.json").read_text(encoding="utf-8"))
    trainer = Vox2VecPretrainTrainer(plans, data.configuration, "all", dataset_json, torch.device("cpu"))
    trainer.initialize()
    return trainer
