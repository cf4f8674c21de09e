"""``nnunet_ssl bench``: run a grid of trainings, and make its tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
    report_parser = actions.add_parser("report", help="tables (CSV, Markdown, LaTeX) and a page of what is done")
    report_parser.add_argument("grid", metavar="FILE.toml")
    report_parser.add_argument("-o", "--output", metavar="FOLDER", help="default: beside the grid, <name>_report")
    tasks_parser = actions.add_parser("tasks", help="the public datasets that the benchmark knows; NAME: all of one")
    tasks_parser.add_argument("name", nargs="?", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where a job failed."""
    action: Callable[[argparse.Namespace], int] = {"run": _run, "report": _report, "tasks": _tasks}[args.action]
    return action(args)


def _tasks(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.task import description, load_task, table

    print("\n".join(description(load_task(args.name)) if args.name else table()))
    print(f"\nNext: nnunet_ssl bench {f'prepare {args.name} --source FOLDER -d ID' if args.name else 'tasks NAME'}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.grid import read_grid
    from nnunet_ssl.bench.report import write_report

    folder = write_report(read_grid(args.grid), args.output)
    print(f"Next: open {folder / 'index.html'}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from nnunet_ssl.bench.grid import read_grid
    from nnunet_ssl.bench.runner import Runner, estimate
    from nnunet_ssl.errors import UserError

    grid = read_grid(args.grid)
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; expected a number from 1 up.")
    runner = Runner(grid, args.device, args.jobs)
    if args.dry_run:
        print("\n".join(estimate(grid, runner.todo())))
        return 0
    rows = runner.all()
    failed = [row for row in rows if row["status"] != "done"]
    for row in failed:
        print(f"failed: {row['job']}: {row['error']}")
    print(f"\n{len(rows) - len(failed)} jobs done, {len(failed)} failed; results in {grid.results}")
    print(f"Next: nnunet_ssl bench report {args.grid}")
    return 1 if failed else 0
