"""doctor names what is missing and how to mend it; its exit status says whether something is."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from nnunet_ssl.cli import doctor as command
from nnunet_ssl.cli.main import main
from nnunet_ssl.nnunet import doctor
from tests.packaging_tools import REPOSITORY, clean_environment, run

DISCOVERY = str(REPOSITORY / "nnunet_ssl" / "discovery")
TRAINERS = sorted(path.stem for path in (REPOSITORY / "trainers").glob("*.py") if path.stem != "__init__")


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables of a machine where everything is in place."""
    variables = {"nnUNet_extTrainer": DISCOVERY}
    for name in doctor.FOLDERS:
        (tmp_path / name).mkdir()
        variables[name] = str(tmp_path / name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    return variables


def without_the_slow_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "trainers", lambda: iter(()))
    monkeypatch.setattr(doctor, "torch_and_torchvision", lambda: doctor.Check("torch", "ok", "here"))


def test_the_command_finds_every_trainer_by_name(ready: dict[str, str], tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "nnunet_ssl.cli.main", "doctor"], env=clean_environment(**ready), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for name in TRAINERS:
        assert f"{name}: found in nnunet_ssl.trainers.{name}" in done.stdout
    assert "Next: nnunet_ssl import" in done.stdout


def test_a_missing_variable_is_said_with_its_line(
    ready: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("nnUNet_results")
    without_the_slow_checks(monkeypatch)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "nnUNet_results: not set" in said and "export nnUNet_results=" in said and "1 problem to mend" in said


def test_without_problems_the_exit_status_is_0(ready: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_slow_checks(monkeypatch)
    assert main(["doctor"]) == 0
    assert command.NAME == "doctor"


def test_a_folder_that_is_none(ready: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "file"))
    check = doctor.folder("nnUNet_raw")
    assert check.status == "bad" and "is not a folder" in check.found and "mkdir" in check.remedy


def test_a_folder_that_cannot_be_written(ready: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = doctor.folder("nnUNet_raw")
    assert check.status == "bad" and "Permission denied" in check.found


def test_a_full_disk_is_noted(ready: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    check = doctor.folder("nnUNet_raw")
    assert check.status == "note" and "little room" in check.remedy


@pytest.mark.parametrize(("value", "status"), [("2", "ok"), ("0", "note"), ("-1", "bad"), ("many", "bad"), ("", "bad")])
def test_numbers_of_processes(value: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    assert doctor.workers().status == status


def test_a_torchvision_that_does_not_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.torch_and_torchvision()
    assert check.status == "bad" and "torchvision::nms does not exist" in check.found
    assert check.remedy.startswith("pip install --no-deps torchvision==0.")


def test_the_line_for_a_newer_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 12, 1))
    index = "https://download.pytorch.org/whl/cpu"
    assert doctor.torchvision_line("2.13.0+cpu") == f"pip install --no-deps torchvision==0.28.* --index-url {index}"
    assert doctor.torchvision_line("2.15.0") == 'pip install --no-deps "torchvision>=0.29"'
    assert doctor.torchvision_line("2.6.0") == "pip install --no-deps torchvision==0.21.*"


@pytest.mark.parametrize(("found", "status"), [
    ((3, 9, 21), "note"), ((3, 10, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "note"),
])  # fmt: skip
def test_versions_of_python(found: tuple[int, ...], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", found)
    check = doctor.python()
    assert (check.status, check.found) == (status, ".".join(map(str, found)))
    assert ("3.10 to 3.13 are supported" in check.remedy) == (status == "note")


@pytest.mark.parametrize(("found", "status"), [("2.8.1", "ok"), ("2.8.7", "ok"), ("2.9.0", "bad"), ("2.7.0", "bad")])
def test_versions_of_nnunet(found: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: found)
    assert doctor.nnunet_version().status == status


def test_which_discovery_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/mine", DISCOVERY]))
    boot(monkeypatch)
    assert "by the file" in doctor.discovery().found  # whether this process appended it or the one that started it
    boot(monkeypatch, "0")
    assert "by the variable" in doctor.discovery().found
    monkeypatch.delitem(sys.modules, "_nnunet_ssl_boot")
    assert "by the variable" in doctor.discovery().found


def boot(monkeypatch: pytest.MonkeyPatch, switch: str | None = None) -> None:
    """What the file of the installation does when Python starts."""
    monkeypatch.delenv("NNUNET_SSL_DISCOVERY", raising=False)
    if switch is not None:
        monkeypatch.setenv("NNUNET_SSL_DISCOVERY", switch)
    spec = spec_from_file_location("_nnunet_ssl_boot", REPOSITORY / "_nnunet_ssl_boot.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "_nnunet_ssl_boot", module)


@pytest.mark.parametrize(("switch", "off"), [("0", True), ("False", True), ("1", False), ("", False), (None, False)])
def test_whether_discovery_is_switched_off(switch: str | None, off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    boot(monkeypatch, switch)
    assert (DISCOVERY in os.environ["nnUNet_extTrainer"]) != off
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")  # whatever the reason, it is not there now
    check = doctor.discovery()
    assert check.status == "bad" and "/mine" in check.remedy
    assert (f"switched off by NNUNET_SSL_DISCOVERY={switch}" in check.found) == off


def test_without_torch_every_check_is_made(ready: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "_installed", lambda name: "not installed")
    monkeypatch.setattr(doctor.sys, "version_info", (3, 12, 1))
    monkeypatch.setattr(doctor, "trainers", lambda: iter(()))
    checks = {check.name: check for check in doctor.examine()}
    assert {"torch", "device", *doctor.FOLDERS, "processes", "discovery"} <= set(checks)
    assert checks["torch"].status == checks["device"].status == "bad"
    assert "pip install torch" in checks["torch"].remedy and "torch" in checks["device"].found


def test_env_prints_the_line_and_keeps_the_users_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("/mine", os.pathsep.join(["/mine", DISCOVERY])):
        monkeypatch.setenv("nnUNet_extTrainer", value)
        assert main(["env"]) == 0
        assert capsys.readouterr().out == f'export nnUNet_extTrainer="/mine{os.pathsep}{DISCOVERY}"\n'
    monkeypatch.delenv("nnUNet_extTrainer")
    assert main(["env"]) == 0
    assert capsys.readouterr().out == f'export nnUNet_extTrainer="{DISCOVERY}"\n'
