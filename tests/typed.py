"""``make types``: mypy --strict on the science layer, as tests/test_layers.py lists it."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.test_layers import science_files

if __name__ == "__main__":
    files = [str(path) for path in science_files()]
    sys.exit(subprocess.run([sys.executable, "-m", "mypy", *files], stdin=subprocess.DEVNULL).returncode)
