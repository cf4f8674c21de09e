"""Learning rates chosen on training cases: what is tried, what is chosen, what is refused."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ssl.bench.grid import TRAINERS, read_grid
from nnunet_ssl.bench.results import add_row
from nnunet_ssl.bench.search import FIRST, PROTOCOLS, Search, lines_of, own_rate, run_search, rung, search_of
from nnunet_ssl.errors import UserError

GRID = """
[settings]
num_epochs = 2
[[datasets]]
id = 4
labelled = [1, 5, "all"]
draws = 3
folds = [1]
[[pretrainings]]
name = "one"
checkpoint = "/one.pth"
[[pretrainings]]
name = "two"
checkpoint = "/two.pth"
twin = "one"
[[protocols]]
name = "finetune"
settings = {initial_lr = 0.1}
[[protocols]]
name = "scratch"
"""


def search(tmp_path: Path, old: str = "", new: str = "", **more: object) -> Search:
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace(old, new), encoding="utf-8")
    return search_of(read_grid(path), **more)


def runs(dice: Callable[[str, str, float], float | None], ran: list[str]) -> Callable[[Search], None]:
    """Stands for the runner: what is not done is done, or tried again."""
    done: set[str] = set()

    def run(grid: Search) -> None:
        for job in grid.jobs():
            if str(job) in done:
                continue
            ran.append(str(job))
            found = dice(job.pretraining.name, job.protocol.name, job.settings["initial_lr"])
            row = {"job": job.key, "status": "failed", "error": "diverged"}
            if found is not None:
                scores = {"a": {"x": {"dice": found}, "y": {"dice": None}}, "b": {"x": {"dice": found}}}
                row = {"job": job.key, "status": "done", "scores": scores}
                done.add(str(job))
            add_row(grid.results, row)

    return run


def test_rungs_are_half_powers_of_ten_with_one_digit() -> None:
    assert [rung(0.1, step) for step in range(-3, 4)] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    assert [rung(0.00047, step) for step in FIRST] == [0.0001, 0.00047, 0.001]


def test_own_rates_are_the_trainers() -> None:
    """Every kind of training, by listing: what a grid leaves open is what its trainer takes."""
    assert list(PROTOCOLS) == list(TRAINERS)
    for kind, name in TRAINERS.items():
        trainer = getattr(importlib.import_module(f"nnunet_ssl.trainers.{name}"), name)
        module = importlib.import_module(f"nnunet_ssl.nnunet.downstream.protocols.{PROTOCOLS[kind]}")
        assert trainer.protocol is module.PROTOCOL


def test_a_search_is_the_grid_on_training_cases(tmp_path: Path) -> None:
    found = search(tmp_path)
    jobs = list(found.jobs())
    assert {(job.dataset.cases, job.fold, job.labelled, job.draw) for job in jobs} == {("validation", 0, 5, 0)}
    assert {job.plans for job in jobs} == {"bench_one-searchPlans", "bench_two-searchPlans"}
    rates = {}
    for job in jobs:
        rates.setdefault((job.pretraining.name, job.protocol.name), []).append(job.settings["initial_lr"])
        assert own_rate(job) == job.settings["initial_lr"] and job.settings["num_epochs"] == 2
    # two's scratch arm is one's; scratch has the trainer's own rate
    assert rates == {("one-search", "finetune"): [0.03, 0.1, 0.3], ("one-search", "scratch"): [0.003, 0.01, 0.03],
                     ("two-search", "finetune"): [0.03, 0.1, 0.3]}  # fmt: skip
    assert len({(job.plans, job.configuration) for job in jobs}) == len(jobs)  # a folder each
    assert all(set(job.configuration) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for job in jobs)
    assert found.results.name == "grid_search.results.jsonl"
    assert {job.draw for job in search(tmp_path, labelled="all", draws=2).jobs()} == {0}
    assert {(job.labelled, job.draw) for job in search(tmp_path, labelled=1, draws=2).jobs()} == {(1, 0), (1, 1)}


def test_each_arm_is_bracketed(tmp_path: Path) -> None:
    """An arm whose best lies at an end gets one more, until it does not; nothing is run twice."""
    best = {("one-search", "finetune"): 0.1, ("two-search", "finetune"): 1.0, ("one-search", "scratch"): 0.001}
    ran: list[str] = []
    run = runs(lambda name, kind, rate: 0.9 - 0.1 * abs(math.log10(rate / best[name, kind])), ran)
    found = run_search(search(tmp_path), run, more=3)
    assert {(one.arm.pretraining, one.arm.protocol): one.best for one in found} == best
    assert all(one.beyond == 0 for one in found)
    tried = {(one.arm.pretraining, one.arm.protocol): list(one.dice) for one in found}
    assert tried["two-search", "finetune"] == [0.03, 0.1, 0.3, 1.0, 3.0]
    assert tried["one-search", "scratch"] == [0.0003, 0.001, 0.003, 0.01, 0.03]
    assert len(ran) == 3 + 5 + 5 == len(set(ran))
    text = "\n".join(lines_of(search(tmp_path), found))
    assert "dataset 4: 5 labelled cases, draws: 1, Dice on the validation cases of fold 0" in text
    assert "one, finetune:  0.03: 0.848  0.1: 0.900  0.3: 0.852  -> initial_lr = 0.1, as it is" in text
    assert "two, finetune:" in text and "-> initial_lr = 1\n" in text + "\n"
    again = run_search(search(tmp_path), run, more=3)
    assert again == found and len(ran) == 13


def test_what_is_not_bracketed_says_so(tmp_path: Path) -> None:
    found = run_search(search(tmp_path), runs(lambda name, kind, rate: rate / 10, []), more=1)
    assert all(one.beyond == 1 and len(one.dice) == 4 for one in found)
    assert all("at an end of what was tried" in line for line in lines_of(search(tmp_path), found)[1:])


def test_a_rate_at_which_a_training_fails_is_not_chosen(tmp_path: Path) -> None:
    def dice(name: str, kind: str, rate: float) -> float | None:
        if kind == "scratch":
            return None
        return rate / 10 if name.startswith("two") else None if rate >= 0.3 else rate

    ran: list[str] = []
    found = {(one.arm.pretraining, one.arm.protocol): one for one in
             run_search(search(tmp_path), runs(dice, ran), more=3)}  # fmt: skip
    one = found["one-search", "finetune"]
    assert one.best == 0.1 and one.beyond == 0 and one.dice[0.3] is None and len(one.dice) == 3
    assert found["one-search", "scratch"].best is None and len(found["one-search", "scratch"].dice) == 3
    assert len(ran) == len(set(ran)) == 12  # two goes on to higher rates; nothing that failed is tried again
    text = "\n".join(lines_of(search(tmp_path), list(found.values())))
    assert "0.3: failed" in text and "every training failed" in text


def test_what_the_grid_scores_is_not_chosen_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chosen on what is scored"):
        search(tmp_path, "folds = [1]", 'folds = [0, 1]\ncases = "validation"', fold=0)
    assert search(tmp_path, "folds = [1]", 'folds = [1]\ncases = "validation"', fold=0).datasets[0].folds == (0,)
    with pytest.raises(UserError, match=r"datasets\.labelled"):
        search(tmp_path, labelled="some")
