"""``nnunet_ssl doctor``: is this machine ready? The exit status says it."""

from __future__ import annotations

import argparse

NAME = "doctor"
HELP = "Check variables, disk, versions, GPU and trainer discovery; exit status 1 if something would stop a run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print every check as it is made."""
    from nnunet_ssl.nnunet import doctor

    bad = 0
    for check in doctor.examine():
        print(check, flush=True)
        bad += check.status == "bad"
    if bad:
        print(f"\n{bad} problem{'s' if bad > 1 else ''} to mend; each line above with '->' says how.")
        return 1
    print("\nReady. Next: nnunet_ssl import FOLDER -d 901 -n MyCT --channel CT   (or: nnunet_ssl demo -o demo_output)")
    return 0
