"""Trainer discovery: ``pip install`` alone is enough, and nobody else notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.packaging_tools import (
    REPOSITORY,
    build_wheel,
    clean_environment,
    copy_of_the_sources,
    fresh_venv,
    run,
)

DISCOVERY = REPOSITORY / "nnunet_ssl" / "discovery"
TRAINERS = sorted(path.stem for path in (REPOSITORY / "trainers").glob("*.py") if path.stem != "__init__")
LOOK_UP = """
import multiprocessing, os, pickle, sys

def find(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    return recursive_find_trainer_class_by_name(name)

def in_child(name):
    return find(name).__module__

if __name__ == "__main__":
    names = sys.argv[1:]
    for name in names:
        found = find(name)
        assert found.__name__ == name, found
        assert pickle.loads(pickle.dumps(found)) is found and find(name) is found
        print("FOUND", name, found.__module__)
    import nnunet_ssl
    print("PACKAGE", os.path.dirname(nnunet_ssl.__file__))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("CHILD", pool.apply(in_child, (names[0],)))
"""


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A fresh environment with the package installed in one of the two ways."""
    folder = tmp_path_factory.mktemp(request.param)
    sources = copy_of_the_sources(folder / "sources")
    venv = fresh_venv(folder / "venv")
    before = {path.name for path in venv.site.iterdir()}
    if request.param == "wheel":
        venv.pip("install", "--no-deps", "--no-index", build_wheel(sources, folder / "wheels"))
        package = venv.site
    else:
        venv.pip("install", "--no-deps", "--no-index", "--no-build-isolation", "-e", sources)
        package = sources
    return SimpleNamespace(**vars(venv), before=before, package=package, folder=folder)


def variable(python: Path, **env: str) -> str:
    code = "import os; print('<' + os.environ.get('nnUNet_extTrainer', 'unset') + '>')"
    done = run([python, "-c", code], env=clean_environment(**env))
    assert done.returncode == 0, done.stdout
    return done.stdout.strip().strip("<>")


def test_the_install_alone_is_enough(installed: SimpleNamespace, tmp_path: Path) -> None:
    script = tmp_path / "look_up.py"
    script.write_text(LOOK_UP, encoding="utf-8")
    done = run([installed.python, script, *TRAINERS], env=clean_environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for name in TRAINERS:
        assert f"FOUND {name} nnunet_ssl.trainers.{name}" in done.stdout
    assert f"PACKAGE {installed.package / 'nnunet_ssl'}" in done.stdout
    assert f"CHILD nnunet_ssl.trainers.{TRAINERS[0]}" in done.stdout


def test_a_users_value_is_kept_and_searched_first(installed: SimpleNamespace) -> None:
    ours = str(installed.package / "nnunet_ssl" / "discovery")
    assert variable(installed.python) == ours
    assert variable(installed.python, nnUNet_extTrainer="") == ours
    mine = os.pathsep.join(["/some/where", "/else where"])
    assert variable(installed.python, nnUNet_extTrainer=mine) == mine + os.pathsep + ours
    again = ours + os.pathsep + "/behind"
    assert variable(installed.python, nnUNet_extTrainer=again) == again


def test_a_users_own_class_of_the_same_name_is_found_first(installed: SimpleNamespace, tmp_path: Path) -> None:
    same, other = TRAINERS[:2]
    mine = tmp_path / "mine"
    mine.mkdir()
    mine.joinpath("my_trainer_module.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        f"class {same}(nnUNetTrainer):\n    pass\n",
        encoding="utf-8",
    )
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        f"print('FOUND', find({same!r}).__module__, find({other!r}).__module__)"
    )
    done = run([installed.python, "-c", code], env=clean_environment(nnUNet_extTrainer=str(mine)), cwd=tmp_path)
    assert f"FOUND my_trainer_module nnunet_ssl.trainers.{other}\n" in done.stdout, done.stdout


def test_it_can_be_switched_off(installed: SimpleNamespace) -> None:
    assert variable(installed.python, NNUNET_SSL_DISCOVERY="0") == "unset"


def test_a_broken_boot_module_does_not_stop_python(installed: SimpleNamespace) -> None:
    boot = installed.package / "_nnunet_ssl_boot.py"
    whole = boot.read_text(encoding="utf-8")
    try:
        boot.write_text("raise RuntimeError('broken')\n" + whole, encoding="utf-8")
        assert variable(installed.python) == "unset"
    finally:
        boot.write_text(whole, encoding="utf-8")


def test_the_command_runs(installed: SimpleNamespace) -> None:
    done = run([installed.python.with_name("nnunet_ssl"), "--version"], env=clean_environment())
    assert done.returncode == 0 and done.stdout.startswith("nnunet_ssl "), done.stdout


def test_uninstalling_leaves_nothing(installed: SimpleNamespace) -> None:
    # The last test of the module: the environment is used up.
    installed.pip("uninstall", "-y", "nnunet_ssl")
    left = {path.name for path in installed.site.iterdir()} - installed.before
    shutil.rmtree(installed.site / "__pycache__", ignore_errors=True)
    assert left <= {"__pycache__"}, left
    assert not installed.python.with_name("nnunet_ssl").exists()
    assert variable(installed.python) == "unset"


def test_an_environment_without_the_package_is_not_broken(tmp_path: Path) -> None:
    """Another environment inherits the variable: its own look-ups work, and a wrong name gets nnU-Net's own message."""
    mine = tmp_path / "mine"
    mine.mkdir()
    mine.joinpath("my_trainer_module.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class MyOwnTrainer(nnUNetTrainer):\n    pass\n",
        encoding="utf-8",
    )
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "print(find('MyOwnTrainer').__name__)\n"
        "try:\n    find('NoSuchTrainer')\n"
        "except RuntimeError as error:\n    print('STOCK MESSAGE', 'Could not find' in str(error))\n"
    )
    venv = fresh_venv(tmp_path / "venv")
    # The path that is ours comes first, so that it is certainly imported.
    env = clean_environment(nnUNet_extTrainer=os.pathsep.join([str(DISCOVERY), str(mine)]))
    done = run([venv.python, "-c", "import importlib.util as u; assert not u.find_spec('nnunet_ssl')"], env=env,
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout
    done = run([venv.python, "-c", code], env=env, cwd=tmp_path)
    assert done.returncode == 0 and "MyOwnTrainer\n" in done.stdout and "STOCK MESSAGE True" in done.stdout, done.stdout


def test_one_trainer_that_cannot_be_imported_does_not_hide_the_others(tmp_path: Path) -> None:
    package = tmp_path / "nnunet_ssl"
    (package / "trainers").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "trainers" / "__init__.py").touch()
    (package / "trainers" / "BadTrainer.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
    (package / "trainers" / "GoodTrainer.py").write_text("class GoodTrainer: pass\n", encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(DISCOVERY)!r}, {str(tmp_path)!r}]\n" \
           "import nnunet_ssl_trainers as t; print(hasattr(t, 'GoodTrainer'), hasattr(t, 'BadTrainer'))"  # fmt: skip
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, stdin=subprocess.DEVNULL,
                          encoding="utf-8", errors="replace", timeout=600)  # fmt: skip
    assert done.stdout.strip() == "True False", done.stderr
    assert "BadTrainer is left out" in done.stderr and "no_such_module_at_all" in done.stderr


def test_only_final_trainers_are_exported() -> None:
    code = f"import sys; sys.path.insert(0, {str(DISCOVERY)!r}); import nnunet_ssl_trainers as t\n" \
           "print(' '.join(sorted(n for n, v in vars(t).items() if isinstance(v, type))))"  # fmt: skip
    done = run([sys.executable, "-c", code])
    assert done.stdout.split() == TRAINERS


def test_the_folder_holds_one_module() -> None:
    assert [path.name for path in DISCOVERY.iterdir() if path.name != "__pycache__"] == ["nnunet_ssl_trainers.py"]
