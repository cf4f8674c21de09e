"""``nnunet_ssl COMMAND ...``: every module of ``nnunet_ssl.cli`` with a ``run`` is a command.

A command module has NAME (its file name without a closing underscore), HELP (one line), ``add_arguments(parser)`` and
``run(args) -> int``, the exit status. Only the module of the command that is asked for is imported: the others may
take seconds.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from nnunet_ssl import __version__, cli
from nnunet_ssl.errors import UserError

DESCRIPTION = "Voxel-level self-supervised pretraining for stock nnU-Net v2; train with nnUNetv2_train -tr."


def command_names() -> list[str]:
    """All commands, by listing the folder."""
    names = (module.name for module in pkgutil.iter_modules(cli.__path__))
    return sorted(name.rstrip("_") for name in names if name != "main" and not name.startswith("_"))


def command_module(name: str) -> ModuleType:
    """The module of one command (``import`` is a keyword of Python, so its file is ``import_.py``)."""
    files = {module.name.rstrip("_"): module.name for module in pkgutil.iter_modules(cli.__path__)}
    return importlib.import_module(f"{cli.__name__}.{files[name]}")


def build_parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """The command line with the commands ``wanted`` spelled out."""
    parser = argparse.ArgumentParser(prog="nnunet_ssl", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"nnunet_ssl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in wanted:
        module = command_module(name)
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 (said on stderr in a sentence), 2 (usage) or 130 (interrupted)."""
    _never_fail_to_print()
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = command_names()
    asked = [arguments[0]] if arguments and arguments[0] in names else names
    try:
        args = build_parser(asked).parse_args(arguments)
        return int(args.run(args) or 0)
    except UserError as error:
        sys.stdout.flush()
        print(f"nnunet_ssl: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnunet_ssl: interrupted", file=sys.stderr)
        return 130


def _never_fail_to_print() -> None:
    # Without a locale Python may encode the output as ASCII, and a case's name must not end a run.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
