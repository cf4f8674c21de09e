"""Means over tasks, tables by class and scores on a further grid, against answers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nnunet_ssl.bench.cubes import cube_of
from nnunet_ssl.bench.grid import Job
from nnunet_ssl.bench.means import means_of
from nnunet_ssl.bench.published_rows import all_published, as_markdown
from nnunet_ssl.bench.report import arms_of, write_report
from nnunet_ssl.bench.tables import duration, table_rows, target_rows
from nnunet_ssl.bench.task import load_task
from tests.bench_results import grid_with_results

GRID = """
[[datasets]]
id = 4
labelled = [1, 2]
draws = 2
[[datasets]]
id = 5
labelled = [1]
draws = 2
[[pretrainings]]
name = "v"
checkpoint = "weights.pth"
[[protocols]]
name = "linear"
[[protocols]]
name = "scratch"
"""
CLASSES = {4: ["a", "b", "c"], 5: ["d"]}
SUBJECTS = 9


def value(job: Job, subject: int, name: str) -> float:
    """Classes of dataset 4 at .3, .4, .5, that of dataset 5 at .8; scratch .1 lower, and no two differences alike."""
    base = {"a": 0.3, "b": 0.4, "c": 0.5, "d": 0.8}[name]
    return base - (0.1 + 0.001 * subject) * (job.protocol.name == "scratch") + 0.02 * job.draw + 0.003 * subject**1.5


def test_every_class_counts_once(tmp_path: Path) -> None:
    grid = grid_with_results(tmp_path, GRID, value, CLASSES, SUBJECTS)
    rows = {(row["labelled"], row["arm"]): row for row in means_of(arms_of(grid))}
    linear = rows[(1, "v linear")]
    common = 0.01 + np.mean(0.003 * np.arange(SUBJECTS) ** 1.5)
    assert linear["dice"] == pytest.approx(0.5 + common) and linear["whole"]  # (.3 + .4 + .5 + .8) / 4
    assert linear["difference"] == pytest.approx(0.1 + 0.001 * 4) and linear["signs"] == "4 of 4 classes up"
    assert linear["low"] < linear["dice"] < linear["high"] and linear["p"] is None and linear["note"] == ""
    assert linear["dataset"] == "mean of 4 classes (2 of 2 datasets)" and (linear["jobs"], linear["asked"]) == (4, 4)
    alone = rows[(2, "v linear")]  # which dataset 5 is not asked for
    assert alone["dice"] == pytest.approx(0.4 + common) and not alone["whole"]
    assert alone["note"] == "over 3 classes (1 of 2 datasets)"


def test_the_interval_of_a_mean_resamples_every_dataset_by_itself(tmp_path: Path) -> None:
    """Two independent datasets of one class: against SciPy's bootstrap of two samples (one draw each)."""
    rng = np.random.default_rng(0)
    samples = {4: rng.normal(0.6, 0.1, SUBJECTS), 5: rng.normal(0.5, 0.05, SUBJECTS)}
    text = GRID.replace("draws = 2", "draws = 1").replace("labelled = [1, 2]", "labelled = [1]")
    grid = grid_with_results(tmp_path, text, lambda job, i, _: float(samples[job.dataset.id][i]),
                             {4: ["a"], 5: ["d"]}, SUBJECTS)  # fmt: skip
    row = next(row for row in means_of(arms_of(grid)) if row["arm"] == "v linear")
    expected = stats.bootstrap(tuple(samples.values()), lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2,
                               n_resamples=20000, method="percentile", rng=rng).confidence_interval  # fmt: skip
    assert row["low"] == pytest.approx(expected.low, abs=0.004)
    assert row["high"] == pytest.approx(expected.high, abs=0.004)


def test_a_mean_over_unequal_jobs_says_so(tmp_path: Path) -> None:
    def skip(job: Job) -> bool:
        key = (job.dataset.id, job.labelled, job.protocol.name)
        return key == (5, 1, "scratch") or (*key, job.draw) == (4, 1, "linear", 1)

    grid = grid_with_results(tmp_path, GRID, value, CLASSES, SUBJECTS, skip)
    rows = {(row["labelled"], row["arm"]): row for row in means_of(arms_of(grid))}
    linear, scratch = rows[(1, "v linear")], rows[(1, "scratch (v's plan)")]
    assert linear["note"] == "incomplete: dataset 4 (1 of 2 jobs); difference over dataset 4 only"
    assert scratch["note"] == "over 3 classes (1 of 2 datasets); lacks dataset 5" and not scratch["whole"]
    assert "lacks dataset 5" in (write_report(grid) / "table.md").read_text()


def test_arms_with_other_subjects_are_compared_on_those_that_both_have(tmp_path: Path) -> None:
    """Scratch lacks a fold, and with it the subjects of that fold."""
    text = GRID.replace("draws = 2", 'draws = 1\nfolds = [0, 1]\ncases = "validation"').replace("[1, 2]", "[1]")

    def by_fold(job: Job, subject: int, name: str) -> float | None:
        return value(job, subject, name) if subject % 2 == job.fold else None

    grid = grid_with_results(tmp_path, text, by_fold, CLASSES, SUBJECTS,
                             lambda job: job.protocol.name == "scratch" and job.fold == 1)  # fmt: skip
    arm = next(arm for arm in arms_of(grid) if arm.title == "v linear" and arm.key[0] == 4)
    assert arm.comparison is not None and arm.comparison.subjects == 5
    assert arm.comparison.difference == pytest.approx(np.mean([0.1 + 0.001 * i for i in range(0, SUBJECTS, 2)]))


def test_one_dataset_has_no_mean_of_its_own(tmp_path: Path) -> None:
    text = GRID.replace("[[datasets]]\nid = 5\nlabelled = [1]\ndraws = 2\n", "")
    assert means_of(arms_of(grid_with_results(tmp_path, text, value, CLASSES))) == []


def test_a_class_has_its_own_mean_interval_and_test(tmp_path: Path) -> None:
    """Four classes in one family: SciPy's test of each over subjects, draws averaged first, corrected by hand."""
    rng = np.random.default_rng(1)
    noise = {(p, n, i): 0.05 * rng.normal() for p in ("linear", "scratch") for n in "abc" for i in range(SUBJECTS)}
    text = GRID.replace("[[datasets]]\nid = 5\nlabelled = [1]\ndraws = 2\n", "").replace("[1, 2]", "[1]")
    grid = grid_with_results(
        tmp_path, text, lambda j, i, n: value(j, i, n) + noise[j.protocol.name, n, i], CLASSES, SUBJECTS
    )
    rows = {(row["arm"], row["class"]): row for row in target_rows(arms_of(grid))}
    expected = {}
    for name in "abc":
        found = rows[("v linear", name)]
        differences = [0.1 + 0.001 * i + noise["linear", name, i] - noise["scratch", name, i] for i in range(SUBJECTS)]
        assert found["difference"] == pytest.approx(np.mean(differences)) and found["signs"] == "++"
        expected[name] = stats.wilcoxon(differences).pvalue
        assert found["p"] == pytest.approx(expected[name]) and found["sd"] > 0
    smallest = min(expected, key=expected.__getitem__)
    assert rows[("v linear", smallest)]["p_holm"] == pytest.approx(min(1, 3 * expected[smallest]))


def test_folds_and_gaps_are_averaged_where_they_are() -> None:
    """Two folds score subject x, one lacks class b of it; draw 1 knows subject y alone."""
    def row(draw: int, fold: int, scores: dict[str, dict[str, float | None]]) -> dict:
        return {"job": {"draw": draw, "fold": fold},
                "scores": {s: {c: {"dice": v, "nsd": None} for c, v in by.items()} for s, by in scores.items()}}

    cube = cube_of([row(0, 0, {"x": {"a": 0.2, "b": None}}), row(0, 1, {"x": {"a": 0.4, "b": 0.9}}),
                    row(1, 0, {"y": {"a": 0.5, "b": None}})])  # fmt: skip
    assert (cube.draws, cube.subjects, cube.classes) == ([0, 1], ["x", "y"], ["a", "b"])
    nan = np.nan
    np.testing.assert_allclose(cube.table("dice"), [[(0.3 + 0.9) / 2, nan], [nan, 0.5]])
    np.testing.assert_allclose(cube.table("dice", "b"), [[0.9, nan], [nan, nan]])
    assert np.isnan(cube.table("nsd")).all()


def test_scores_on_a_further_grid_have_their_own_rows_and_family(tmp_path: Path) -> None:
    text = 'protocol = "vox2vec"\n' + GRID
    arms = arms_of(grid_with_results(tmp_path, text, value, CLASSES, SUBJECTS))
    rows = [row for row in table_rows(arms) if row["dataset"] == 4 and row["labelled"] == 1]
    assert [(row["arm"], row["grid"]) for row in rows] == [
        ("v linear-vox2vec", "original"), ("v linear-vox2vec", "1 x 1 x 2 mm"),
        ("scratch-vox2vec (v's plan)", "original"), ("scratch-vox2vec (v's plan)", "1 x 1 x 2 mm"),
    ]  # fmt: skip
    # three comparisons on each grid: the second grid does not make the first one's correction harder
    assert rows[0]["p"] == pytest.approx(2 / 2**SUBJECTS) and rows[0]["p_holm"] == pytest.approx(3 * rows[0]["p"])
    assert {row["protocol"] for row in rows} == {"vox2vec"}


def test_a_protocol_is_compared_with_scratch_under_the_same_one(tmp_path: Path) -> None:
    text = GRID + '[[protocols]]\nname = "linear"\nprotocol = "vox2vec"\n'
    arms = {arm.title: arm for arm in arms_of(grid_with_results(tmp_path, text, value, CLASSES))}
    assert arms["v linear"].comparison is not None and arms["v linear-vox2vec"].comparison is None


def test_an_arm_is_compared_with_scratch_of_as_many_steps(tmp_path: Path) -> None:
    """The first scratch arm of a grid may have been trained for a tenth of the time."""
    kinds = (("scratch", "scratch-long", 90), ("finetune", "finetune-long", 90), ("finetune", "finetune-odd", 7))
    text = GRID + "".join(f'[[protocols]]\nname = "{name}"\nlabel = "{label}"\nsettings = {{num_epochs = {epochs}}}\n'
                          for name, label, epochs in kinds)  # fmt: skip
    grid = grid_with_results(tmp_path, text, value, CLASSES)
    arms = {arm.key[3]: arm for arm in arms_of(grid) if arm.key[:2] == (4, 1)}
    assert arms["finetune-long"].twin is arms["scratch-long"] and arms["linear"].twin is arms["scratch"]
    assert arms["finetune-odd"].twin is None
    assert arms["finetune-odd"].note == "not compared: no scratch arm of 1,750 steps"
    assert arms["linear"].note == ""


def test_an_arm_says_which_of_two_scratch_arms_it_is_compared_with(tmp_path: Path) -> None:
    text = GRID + '[[protocols]]\nname = "scratch"\nlabel = "scratch-fast"\nsettings = {initial_lr = 0.3}\n'
    arms = {arm.key[3]: arm for arm in arms_of(grid_with_results(tmp_path, text, value, CLASSES))
            if arm.key[:2] == (4, 1)}  # fmt: skip
    assert arms["linear"].twin is arms["scratch"]
    assert arms["linear"].note == "compared with scratch (v's plan), the grid's first of 2 scratch arms"


def test_published_figures_name_their_task_and_protocol() -> None:
    found = all_published()
    assert {load_task(one.task).name for one in found} == {"BTCV", "ACDC"}
    for one in found:
        assert one.paper and one.conditions and all(row.get("dice") or row.get("difference") for row in one.rows)
    text = as_markdown(found)
    assert "| scratch | all | 0.77 ± 0.03 |" in text and "| Pix2Rep finetune | 1 |  | +0.31 |" in text


def test_durations_have_the_unit_that_suits_them() -> None:
    assert [duration(s) for s in (12.3, 90, 7200)] == ["12 s", "1.5 min", "2.0 h"]
