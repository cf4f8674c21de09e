"""Is this machine ready? One line for everything that a run depends on, with what to do where something is missing."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import nnunet_ssl

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
SUPPORTED = (2, 8)
DISCOVERY = Path(nnunet_ssl.__file__).resolve().parent / "discovery"
VARIABLE = "nnUNet_extTrainer"
LOW_DISK_GB = 10
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Check:
    """What was looked at, ``ok`` | ``note`` | ``bad``, what was found, and what to do about it."""

    name: str
    status: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"[{self.status:^4}] {self.name}: {self.found}" + (f"\n       -> {self.remedy}" if self.remedy else "")


def examine() -> Iterator[Check]:
    """All checks, the quick ones first; looking up the trainers takes seconds."""
    for check in (python, nnunet_version, torch_and_torchvision, device):
        yield _caught(check)
    for name in FOLDERS:
        yield _caught(folder, name)
    yield _caught(workers)
    yield _caught(discovery)
    yield from trainers()


def _caught(check: Callable[..., Check], *arguments: str) -> Check:
    """A check that cannot be made is a problem; the others are made all the same."""
    try:
        return check(*arguments)
    except Exception as error:
        return Check(" ".join([check.__name__, *arguments]), "bad", _in_a_line(error), "mend the lines above first")


def python() -> Check:
    """3.10 to 3.13 are supported."""
    found = ".".join(map(str, sys.version_info[:3]))
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Check("Python", "ok" if good else "note", found, "" if good else "3.10 to 3.13 are supported")


def nnunet_version() -> Check:
    """Whether nnunetv2 is of the supported minor version."""
    remedy = 'pip install "nnunetv2>=2.8,<2.9"'
    try:
        found = version("nnunetv2")
    except PackageNotFoundError:
        return Check("nnunetv2", "bad", NOT_INSTALLED, remedy)
    good = tuple(int(part) for part in found.split(".")[:2]) == SUPPORTED
    return Check("nnunetv2", "ok" if good else "bad", found, "" if good else remedy)


def torch_and_torchvision() -> Check:
    """A torchvision that does not match torch stops nnU-Net's search for any trainer but its default one."""
    found = "torch {}, torchvision {}".format(*(_installed(name) for name in ("torch", "torchvision")))
    if _installed("torch") == NOT_INSTALLED:
        return Check("torch", "bad", found, "pip install torch, as its web page says for your machine")
    # In another process: a failed import leaves half-initialised modules behind.
    done = subprocess.run([sys.executable, "-c", "import torchvision"], stdin=subprocess.DEVNULL, capture_output=True,
                          encoding="utf-8", errors="replace", timeout=600)  # fmt: skip
    if done.returncode == 0:
        return Check("torch", "ok", found)
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Check("torch", "bad", f"{found}: {reason}", torchvision_line(_installed("torch")))


def torchvision_line(torch_version: str) -> str:
    """The pip command that gives this torch (like ``2.13.0+cpu``) a torchvision that imports."""
    if sys.version_info < (3, 12):
        return "pip install --no-deps torchvision==0.16.2"
    number, _, build = torch_version.partition("+")
    minor = int(number.split(".")[1])
    # From 0.29 on one torchvision serves every torch from 2.14 on; before, each torch had its own.
    wanted = '"torchvision>=0.29"' if minor >= 14 else f"torchvision==0.{minor + 15}.*"
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --no-deps {wanted}{index}"


def device() -> Check:
    """GPUs with their memory, or how to do without one."""
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found = ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
        return Check("device", "ok", found)
    found = f"no GPU, {os.cpu_count()} CPU cores"
    return Check("device", "note", found, "train with -device cpu and a small plan: nnunet_ssl plan "
                 "--preset tiny; with nnUNet_n_proc_DA=0, nnUNet_def_n_proc=1 and nnUNet_compile=f nnU-Net starts no "
                 "processes that the cores have no room for")


def folder(variable: str) -> Check:
    """One of nnU-Net's three folders: set, there, writable, with room."""
    value = os.environ.get(variable, "").strip()
    if not value:
        return Check(variable, "bad", "not set", f"export {variable}=/a/folder/with/room")
    path = Path(value)
    if not path.is_dir():
        return Check(variable, "bad", f"{value} is not a folder", f'mkdir -p "{value}"')
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Check(variable, "bad", f"{value} cannot be written: {error.strerror}", "choose a folder that you own")
    free = shutil.disk_usage(path).free / 1e9
    remedy = "" if free >= LOW_DISK_GB else "little room for preprocessed images and checkpoints"
    return Check(variable, "note" if remedy else "ok", f"{value}, {free:.0f} GB free", remedy)


def workers() -> Check:
    """nnU-Net's numbers of processes, which it reads without checking."""
    wrong, found = [], []
    for variable, least in (("nnUNet_n_proc_DA", 0), ("nnUNet_def_n_proc", 1)):
        value = os.environ.get(variable)
        found.append(f"{variable}={value if value is not None else '(nnU-Net decides)'}")
        if value is not None and not (value.strip().isdigit() and int(value) >= least):
            wrong.append(f"set {variable} to a whole number from {least} up, or unset it")
    if not wrong and os.environ.get("nnUNet_n_proc_DA", "").strip() == "0":
        advice = "right for CPU training; unset nnUNet_n_proc_DA for nnUNetv2_plan_and_preprocess"
        return Check("processes", "note", ", ".join(found), advice)
    return Check("processes", "bad" if wrong else "ok", ", ".join(found), "; ".join(wrong))


def discovery() -> Check:
    """Whether nnU-Net is told where our trainers are, and by which of the two ways."""
    listed = os.environ.get(VARIABLE, "").split(os.pathsep)
    boot = sys.modules.get("_nnunet_ssl_boot")
    if any(entry and Path(entry).resolve() == DISCOVERY for entry in listed):
        by_file = getattr(boot, "active", False)
        return Check("discovery", "ok", "by the file of the installation (nnunet_ssl_discovery.pth)" if by_file
                     else f"by the variable {VARIABLE}")  # fmt: skip
    reason = "no discovery file is active"
    if boot is not None and boot.switched_off():
        reason = f"switched off by NNUNET_SSL_DISCOVERY={os.environ['NNUNET_SSL_DISCOVERY']}"
    return Check("discovery", "bad", f"{VARIABLE} does not name {DISCOVERY}; {reason}", export_line())


def export_line() -> str:
    """The shell line that makes nnU-Net find our trainers, behind what the variable already names."""
    mine = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    mine = [entry for entry in mine if Path(entry).resolve() != DISCOVERY]
    return f'export {VARIABLE}="{os.pathsep.join([*mine, str(DISCOVERY)])}"'


def trainers() -> Iterator[Check]:
    """Every trainer of ours, looked up as nnU-Net looks it up."""
    listed = (Path(entry.name) for entry in files("nnunet_ssl.trainers").iterdir())
    for name in sorted(path.stem for path in listed if path.suffix == ".py" and path.stem != "__init__"):
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                search = importlib.import_module("nnunetv2.utilities.find_objects").recursive_find_trainer_class_by_name
                found = search(name)
        except Exception as error:
            yield Check(name, "bad", _in_a_line(error), "mend the lines above first")
        else:
            yield Check(name, "ok", f"found in {found.__module__}")


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: " + (str(error).splitlines() or ["no message"])[0].split(" (")[0]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
