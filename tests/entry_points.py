"""Run several of nnU-Net's commands in one fresh process.

    python entry_points.py '[["module:function", "argument", ...], ...]'

Each is called as its console script calls it. Starting a process for each would spend most of a test on imports.
"""

from __future__ import annotations

import importlib
import json
import sys


def main() -> None:
    for entry, *arguments in json.loads(sys.argv[1]):
        module, _, function = entry.partition(":")
        sys.argv = [function, *arguments]
        print(f"### {function} {' '.join(arguments)}", flush=True)
        getattr(importlib.import_module(module), function)()


if __name__ == "__main__":  # spawned children import this file again
    main()
