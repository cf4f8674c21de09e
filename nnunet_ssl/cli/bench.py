"""``nnunet_ssl bench``: run a grid of trainings, and make its tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

NAME = "bench"
HELP = "Compare pretrainings, protocols and numbers of labelled cases: run a grid (TOML), report its tables."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run_parser = actions.add_parser(
        "run", help="run what a grid still lacks; killed jobs go on, failed ones are retried"
    )
    run_parser.add_argument("grid", metavar="FILE.toml", help="datasets, pretrainings, protocols, labelled cases")
    run_parser.add_argument("--jobs", type=int, default=1, metavar="K", help="at a time; on GPUs one a GPU (default 1)")
    run_parser.add_argument("-device", dest="device", help="cpu, cuda or mps, as nnU-Net's")
    run_parser.add_argument("--dry-run", action="store_true", help="print the jobs and an estimate, run nothing")
    run_parser.add_argument("--allow-leakage", action="store_true",
                            help="run though a pretraining has seen scored cases; rows and tables say so")
    run_parser.add_argument("--slurm", action="append", nargs="?", const="", metavar="KEY=VALUE",
                            help="each job as a job of Slurm; options over those of the file's [slurm], repeatable")
    _add_search(actions.add_parser("search", help="every arm's learning rate, chosen on training cases"))
    report_parser = actions.add_parser("report", help="tables (CSV, Markdown, LaTeX) and a page of what is done")
    report_parser.add_argument("grid", metavar="FILE.toml")
    report_parser.add_argument("-o", "--output", metavar="FOLDER", help="default: beside the grid, <name>_report")
    tasks_parser = actions.add_parser("tasks", help="the public datasets that the benchmark knows; NAME: all of one")
    tasks_parser.add_argument("name", nargs="?", metavar="NAME")
    _add_prepare(actions.add_parser("prepare", help="a downloaded public dataset -> an nnU-Net raw dataset with folds"))


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", metavar="FILE.toml", help="its arms are tried at rates about their own, a factor of "
                        "three apart, and scored on a fold's validation cases; pretrainings may have seen these")
    parser.add_argument("--labelled", metavar="N", help='labelled cases, or "all" (default: the middle of the grid\'s)')
    parser.add_argument("--draws", type=int, default=1, metavar="K", help="draws of them (default 1)")
    parser.add_argument("--fold", default="0", metavar="FOLD", help="not one that the grid scores (default 0)")
    parser.add_argument("--more", type=int, default=3, metavar="K",
                        help="most rates beyond the first three, where the best is the least or greatest (default 3)")
    parser.add_argument("--jobs", type=int, default=1, metavar="K", help="as of run")
    parser.add_argument("-device", dest="device", help="cpu, cuda or mps, as nnU-Net's")


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="as `nnunet_ssl bench tasks` lists them")
    parser.add_argument("--source", required=True, metavar="FOLDER", help="the unpacked download")
    parser.add_argument("-d", "--dataset-id", type=int, required=True, help="number of the new dataset")
    parser.add_argument("-n", "--name", help="its name (default: the task's)")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace the raw dataset that has this number; its preprocessed data goes, plans stay")
    parser.add_argument("--partial", action="store_true",
                        help="take the cases that are there; what is missing is recorded, what is wrong still refused")
    parser.add_argument("-np", "--num-processes", type=int, default=None, metavar="N",
                        help="worker processes (default: nnUNet_def_n_proc or 8, at most the number of cores)")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where a job failed."""
    actions: dict[str, Callable[[argparse.Namespace], int]]
    actions = {"run": _run, "search": _search, "report": _report, "tasks": _tasks, "prepare": _prepare}
    return actions[args.action](args)


def _tasks(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.task import description, load_task, table

    if args.name is None:
        print("\n".join(table()))
        print("\nNext: nnunet_ssl bench tasks NAME")
        return 0
    task = load_task(args.name)
    print("\n".join(description(task)))
    print(f"\nNext: nnunet_ssl bench prepare {task.name} --source FOLDER -d ID")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.prepare import PrepareRequest, prepare
    from nnunet_ssl.nnunet.datasets import processes

    number = processes() if args.num_processes is None else max(0, args.num_processes)
    made = prepare(
        PrepareRequest(args.task, args.source, args.dataset_id, args.name, args.overwrite, args.partial, number)
    )
    task, report = made.task, made.report
    print(f"{made.folder}: {len(report['volumes'])} training and {len(report['test_volumes'])} test cases")
    if report["missing"]:
        number = len(report["missing"])
        print(f"  WARNING: the download is not complete (import_report.json lists what is missing: {number}); scores")
        print(f"  on this dataset are not comparable with those on the whole {task.name}")
    print(f"  {task.split['folds']} folds (splits_final.json), which nnU-Net takes over when it plans")
    print(f"  licence: {task.licence}; cite: {task.citation[0]}")
    folds = ", ".join(map(str, range(task.split["folds"])))
    print(f"\nFor a grid:\n  [[datasets]]\n  id = {args.dataset_id}\n  folds = [{folds}]")
    print(f'  cases = "{task.score}"\n  tolerance_mm = {task.metric["tolerance_mm"]}\n  task = "{task.name}"')
    print(f"\nNext:\n  nnUNetv2_plan_and_preprocess -d {args.dataset_id} -c 3d_fullres")
    print(f"  nnunet_ssl adapt -d {args.dataset_id} -w checkpoint_final.pth --preprocess   # with pretrained weights")
    return 0


def _search(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.grid import read_grid
    from nnunet_ssl.bench.preparing import require_possible
    from nnunet_ssl.bench.runner import Runner
    from nnunet_ssl.bench.search import Search, lines_of, run_search, search_of

    def run(search: Search) -> None:
        runner = Runner(search, args.device, _positive("--jobs", args.jobs), allow_leakage=True)
        require_possible(list(search.jobs()))
        runner.all()

    def number(text: str) -> int | str:
        return int(text) if text.isdecimal() else text

    labelled = None if args.labelled is None else number(args.labelled)
    search = search_of(read_grid(args.grid), labelled, _positive("--draws", args.draws), number(args.fold))
    found = run_search(search, run, args.more)
    print("\n".join(["", *lines_of(search, found), f"\nEvery score: {search.results}"]))
    print(f"Next: the rates into {args.grid}, then nnunet_ssl bench run {args.grid}")
    return 1 if any(one.best is None for one in found) else 0


def _positive(option: str, value: int) -> int:
    from nnunet_ssl.errors import UserError

    if value < 1:
        raise UserError(f"{option} is {value}; expected a number from 1 up.")
    return value


def _report(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.grid import read_grid
    from nnunet_ssl.bench.report import write_report

    folder = write_report(read_grid(args.grid), args.output)
    print(f"Next: open {folder / 'index.html'}")
    return 0


def _on_slurm(runner: Any, settings: Sequence[str]) -> list[dict[str, Any]]:
    from nnunet_ssl.bench.slurm import options_of, run_on_slurm

    return run_on_slurm(runner, options_of(runner.grid, filter(None, settings)))


def _run(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.estimates import estimate
    from nnunet_ssl.bench.grid import read_grid
    from nnunet_ssl.bench.preparing import require_possible
    from nnunet_ssl.bench.runner import Runner

    grid = read_grid(args.grid)
    runner = Runner(grid, args.device, _positive("--jobs", args.jobs), allow_leakage=args.allow_leakage)
    require_possible(list(grid.jobs()))
    if args.dry_run:
        print("\n".join(estimate(grid, runner.todo())))
        return 0
    rows = runner.all() if args.slurm is None else _on_slurm(runner, args.slurm)
    failed = [row for row in rows if row["status"] != "done"]
    for row in failed:
        print(f"failed: {row['job']}: {row['error']}")
    before = len(list(grid.jobs())) - len(rows)
    said = f", {before} were done before" if before else ""
    print(f"\n{len(rows) - len(failed)} jobs done, {len(failed)} failed{said}; results in {grid.results}")
    print(f"Next: nnunet_ssl bench report {args.grid}")
    return 1 if failed else 0
