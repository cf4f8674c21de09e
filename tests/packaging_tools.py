"""Cheap fresh environments: a bare venv that borrows this interpreter's packages, but not its .pth files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

REPOSITORY = Path(__file__).parents[1]
SHIPPED = ("nnunet_ssl", "trainers", "plans", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE",
           "_nnunet_ssl_boot.py", "nnunet_ssl_discovery.pth")  # fmt: skip


def run(command: list[str | Path], **kwargs) -> subprocess.CompletedProcess[str]:
    """A subprocess that reads nothing, with its output as text."""
    return subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", timeout=600, **kwargs,
    )  # fmt: skip


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment without what would find our trainers or our package by another way."""
    dropped = ("nnUNet_extTrainer", "NNUNET_SSL_DISCOVERY", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {**{k: v for k, v in os.environ.items() if k not in dropped}, **variables}


def copy_of_the_sources(folder: Path) -> Path:
    """What a release holds, copied: building leaves files beside the sources."""
    folder.mkdir(parents=True)
    for name in SHIPPED:
        source = REPOSITORY / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder / name)
    return folder


def build_wheel(sources: Path, folder: Path) -> Path:
    """The wheel of these sources, built without the network."""
    done = run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation",
                "--disable-pip-version-check", "-w", folder, sources], env=clean_environment())  # fmt: skip
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("nnunet_ssl-*.whl")
    return wheel


def fresh_venv(folder: Path) -> SimpleNamespace:
    """A venv: python, site (its own site-packages) and pip(*arguments), which works on it from outside."""
    done = run([sys.executable, "-m", "venv", "--without-pip", folder])
    assert done.returncode == 0, done.stdout
    python = folder / "bin" / "python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip())
    # A path line adds the folder alone: .pth files inside it, an editable install of ours among them, are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def pip(*arguments: str | Path) -> str:
        quiet = ["--disable-pip-version-check", "--python", python]
        done = run([sys.executable, "-m", "pip", *quiet, *arguments], env=clean_environment())
        assert done.returncode == 0, done.stdout
        return done.stdout

    return SimpleNamespace(python=python, site=site, pip=pip)
