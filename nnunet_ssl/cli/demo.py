"""``nnunet_ssl demo``: the whole way on built-in phantoms."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "demo"
HELP = "Show the whole way on phantom CTs: import, plan, pretrain, adapt, four trainings, predict, a table and a page."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("-o", "--output", default="demo_output", metavar="FOLDER", help="default: demo_output")
    parser.add_argument("--shortest", action="store_true", help="every step, but nothing has time to learn (a minute)")
    parser.add_argument("-device", default="cpu", help="nnU-Net's: cpu (default), cuda or mps")


def run(args: argparse.Namespace) -> int:
    """Run it, print the table, and say where the page is."""
    from nnunet_ssl.demo.page import text_table
    from nnunet_ssl.demo.shell import sigterm_as_interrupt
    from nnunet_ssl.demo.story import Story

    story = Story(Path(args.output), args.shortest, args.device)
    with sigterm_as_interrupt():
        page = story.tell()
    print(f"\nDice on {story.size.tests} test phantoms, labels of {story.size.labelled} for training:\n")
    print(text_table(story.results))
    print(f"\n{story.results.seconds:.0f} s. Page: {page}")
    print("Next, with your own scans: nnunet_ssl import FOLDER -d 901 -n MyCT --channel CT")
    return 0
