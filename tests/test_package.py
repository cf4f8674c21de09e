"""What a release holds: the two mapped folders, the discovery file, the licence; and nothing of the tests."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest

import nnunet_ssl
from tests.packaging_tools import REPOSITORY, build_wheel, copy_of_the_sources


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names and texts of the files of the wheel."""
    folder = tmp_path_factory.mktemp("package")
    wheel = build_wheel(copy_of_the_sources(folder / "sources"), folder)
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode("utf-8") for name in archive.namelist()}


def shipped_sources() -> set[str]:
    package = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "nnunet_ssl").rglob("*.py")}
    package |= {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "nnunet_ssl").rglob("*.json")}
    for folder in ("trainers", "plans"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".json"):
                package.add(f"nnunet_ssl/{path.relative_to(REPOSITORY)}")
    return package | {"_nnunet_ssl_boot.py", "nnunet_ssl_discovery.pth"}


def test_the_wheel_holds_every_source_and_no_other(members: dict[str, str]) -> None:
    metadata = {name for name in members if ".dist-info/" in name}
    assert set(members) - metadata == shipped_sources()


def test_the_wheel_names_its_licence_and_its_dependencies(members: dict[str, str]) -> None:
    (metadata,) = (text for name, text in members.items() if name.endswith("METADATA"))
    assert "License-Expression: Apache-2.0" in metadata or "License: Apache-2.0" in metadata
    assert any(name.endswith("LICENSE") for name in members)
    # The order of the two bounds is the builder's.
    assert re.search(r"Requires-Dist: nnunetv2(<2\.9,>=2\.8|>=2\.8,<2\.9)\n", metadata)
    assert f"Version: {nnunet_ssl.__version__}\n" in metadata


def test_what_is_imported_is_required(members: dict[str, str]) -> None:
    """Every third-party module that the package imports belongs to a package that it requires, or to an extra that is
    for users.
    """
    from tests.test_layers import imports, sources

    (metadata,) = (text for name, text in members.items() if name.endswith("METADATA"))
    optional = ('extra == "bench"', 'extra == "slurm"', 'extra == "fused"')
    lines = [line for line in metadata.splitlines() if "extra ==" not in line or any(o in line for o in optional)]
    required = {re.split(r"[<>=; ]", line.split(": ")[1])[0].lower().replace("-", "_")
                for line in lines if line.startswith("Requires-Dist")}  # fmt: skip
    # Requirements of nnunetv2 itself, which come with it.
    required |= {"batchgeneratorsv2", "dynamic_network_architectures", "nnunet_ssl"}
    for path in sources():
        third = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert {name.lower() for name in third} <= required, path


def test_the_discovery_file_is_one_line_that_imports_os_alone() -> None:
    (line,) = (REPOSITORY / "nnunet_ssl_discovery.pth").read_text(encoding="utf-8").splitlines()
    assert line.startswith("import os; exec(")
    boot = (REPOSITORY / "_nnunet_ssl_boot.py").read_text(encoding="utf-8")
    assert re.findall(r"^[ \t]*(?:import|from) .*$", boot, re.M) == ["import os"]


def test_the_pins_are_pins() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines() if line]
    pins = [line for line in lines if not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    names = [pin.split("==")[0].lower() for pin in pins]
    assert len(set(names)) == len(names) and {"torch", "nnunetv2", "pytest", "setuptools"} <= set(names)


def test_the_licence_is_whole() -> None:
    text = Path(REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
