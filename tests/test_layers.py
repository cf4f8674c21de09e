"""Imports go one way: science <- nnunet <- trainers, cli. And everything keeps its size."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "nnunet_ssl"
# Everything of the package is science but these: a new file is under the strict rule unless it goes to one of them.
BRIDGE = ("nnunet", "cli", "discovery", "bench")
NEITHER = ("demo", "phantom.py")  # the demo runs commands; the phantom is made with numpy and scipy
HEAVY = {"nnunetv2", "SimpleITK", "blosc2", "batchgenerators", "batchgeneratorsv2", "acvl_utils",
         "dynamic_network_architectures"}  # fmt: skip
MORE = {"kernels.py": {"triton"}}  # imported by fused.py where it is installed
FIXED_LIMITS = {"function": 40, "file": 250, "trainer": 40}


def science_files() -> list[Path]:
    """The files that import torch, numpy, the standard library and one another, nothing else."""
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(PACKAGE / path for path in files if path.parts[0] not in (*BRIDGE, *NEITHER))


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(REPOSITORY / "trainers").glob("*.py")])


def name_of(path: Path) -> str:
    """The dotted name under which a source file is imported."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    parts = ("nnunet_ssl", *parts) if parts[0] in ("trainers", "plans") else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute dotted names of all modules that a file imports, in functions too."""
    found: set[str] = set()
    package = name_of(path) if path.stem == "__init__" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def identity(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", science_files(), ids=identity)
def test_science_imports_torch_and_numpy_only(path: Path) -> None:
    more = MORE.get(path.relative_to(PACKAGE).as_posix(), set())
    allowed = {"torch", "numpy", "nnunet_ssl", *more, *sys.stdlib_module_names}
    used = imports(path)
    assert {name.split(".")[0] for name in used} <= allowed
    for folder in (*BRIDGE, "trainers"):
        assert not [name for name in used if f"{name}.".startswith(f"nnunet_ssl.{folder}.")]


@pytest.mark.parametrize("path", sources(), ids=identity)
def test_only_the_bridge_imports_nnunet(path: Path) -> None:
    if path.is_relative_to(PACKAGE / "nnunet"):
        return
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize("path", sorted((PACKAGE / "nnunet").rglob("*.py")), ids=identity)
def test_the_bridge_knows_no_command_and_no_trainer(path: Path) -> None:
    used = imports(path)
    for folder in ("cli", "bench", "trainers", "demo"):
        assert not [name for name in used if f"{name}.".startswith(f"nnunet_ssl.{folder}.")]


@pytest.mark.parametrize("path", sources(), ids=identity)
def test_files_and_functions_keep_their_size(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = FIXED_LIMITS["trainer" if path.parent.name == "trainers" else "file"]
    assert len(text.splitlines()) <= limit
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > FIXED_LIMITS["function"]
    ]
    assert not long


def test_the_rules_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of imports sees every way to import."""
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    path = tmp_path / "nnunet_ssl" / "losses" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text("import nnunetv2.paths as p\nfrom ..nnunet import files\ndef f():\n    from . import other\n"
                    "    from nnunet_ssl import cli\n", encoding="utf-8")  # fmt: skip
    assert {"nnunetv2.paths", "nnunet_ssl.nnunet", "nnunet_ssl.nnunet.files", "nnunet_ssl.losses.other",
            "nnunet_ssl.cli"} <= imports(path)  # fmt: skip
