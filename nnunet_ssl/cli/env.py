"""``nnunet_ssl env``: the line to put into a shell's start file where the installed discovery file is not wanted."""

from __future__ import annotations

import argparse

NAME = "env"
HELP = 'Print the export line that makes nnU-Net find the trainers: eval "$(nnunet_ssl env)".'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the line alone, so that a shell can evaluate it."""
    from nnunet_ssl.nnunet.doctor import export_line

    print(export_line())
    return 0
