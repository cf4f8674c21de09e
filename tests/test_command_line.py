"""The command: found by listing, one sentence for what a user can mend, exit statuses that scripts can rely on."""

from __future__ import annotations

import inspect
import re
import sys
from types import SimpleNamespace

import pytest

from nnunet_ssl.cli import main as command_line
from nnunet_ssl.errors import UserError
from tests.packaging_tools import run

NAMES = command_line.command_names()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A command ``try`` whose run can be set."""
    module = SimpleNamespace(HELP="try something", add_arguments=lambda parser: None, run=lambda args: 0)
    monkeypatch.setattr(command_line, "command_names", lambda: ["try"])
    monkeypatch.setattr(command_line, "command_module", lambda name: module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_a_command(name: str) -> None:
    module = command_line.command_module(name)
    assert name == module.NAME and name == module.__name__.rpartition(".")[2].rstrip("_")
    assert module.HELP and "\n" not in module.HELP
    assert command_line.build_parser([name]).format_help()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.main([name, "--help"])
    assert stopped.value.code == 0 and f"nnunet_ssl {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("env", "train")])  # for eval; the trainer
def test_every_command_has_a_next_one_to_print(name: str) -> None:
    assert re.search(r'Next[^"]*: ?(\\n  )?nnunet_ssl|Next:"', inspect.getsource(command_line.command_module(name)))


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and all(f"    {name} " in said for name in NAMES)


def test_a_user_error_is_one_line(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run_(args: object) -> int:
        raise UserError("found 3 cats, expected a dog; buy one")

    command.run = run_
    assert command_line.main(["try"]) == 1
    said = capsys.readouterr()
    assert said.err == "nnunet_ssl: error: found 3 cats, expected a dog; buy one\n" and not said.out


def test_an_interruption_is_130(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run_(args: object) -> int:
        raise KeyboardInterrupt

    command.run = run_
    assert command_line.main(["try"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(command: SimpleNamespace) -> None:
    def run_(args: object) -> int:
        raise ZeroDivisionError

    command.run = run_
    with pytest.raises(ZeroDivisionError):
        command_line.main(["try"])


def test_the_status_of_the_command_is_kept(command: SimpleNamespace) -> None:
    command.run = lambda args: 3
    assert command_line.main(["try"]) == 3
    command.run = lambda args: None
    assert command_line.main(["try"]) == 0


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run([sys.executable, "-m", "nnunet_ssl.cli.main", "paln"])
    assert done.returncode == 2 and "plan" in done.stdout and "Traceback" not in done.stdout


def test_only_the_wanted_command_is_imported() -> None:
    code = (
        "import sys; from nnunet_ssl.cli.main import main\n"
        "main(['env']); loaded = sorted(m for m in sys.modules if m.startswith('nnunet_ssl.cli.'))\n"
        "print(loaded, 'torch' in sys.modules)"
    )
    done = run([sys.executable, "-c", code])
    assert done.stdout.splitlines()[-1] == "['nnunet_ssl.cli.env', 'nnunet_ssl.cli.main'] False"


def test_a_strange_name_can_be_printed_without_a_locale() -> None:
    code = (
        "from nnunet_ssl.cli import main as m; from nnunet_ssl.errors import UserError\n"
        "m._never_fail_to_print(); print('Fälle \\udcff')"
    )
    done = run([sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert done.returncode == 0 and "F\\xe4lle" in done.stdout, done.stdout
