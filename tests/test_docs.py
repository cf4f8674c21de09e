"""The documents name what there is: every command, preset, trainer, field; and no link or option leads nowhere."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from nnunet_ssl.cli.main import build_parser, command_names
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.recipes import BaseRecipe
from tests.test_families import OBJECTIVES, PRESETS, TRAINERS
from tests.test_layers import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
COMMANDS = command_names()


def text_of(*names: str) -> str:
    return "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in names)


def page_id(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


def test_every_member_is_named() -> None:
    readme = text_of("README.md")
    for name in TRAINERS:
        assert f"`{name}`" in readme
    for preset in PRESETS:
        assert f"`{preset.stem}`" in readme
    for name in COMMANDS:
        assert f"nnunet_ssl {name}" in text_of("README.md", "docs/howto.md")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_trainer_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"\b(?:SSL\w+|\w+Pretrain)Trainer\b", page.read_text(encoding="utf-8")))
    assert named <= set(TRAINERS)


def written_commands() -> list[str]:
    """Every ``nnunet_ssl ...`` line of an indented block, without its comment."""
    found = []
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            match = re.match(r" {4,}(?:\$ )?(nnunet_ssl \w.*)", line)
            if match:
                found.append(re.split(r" {2,}#| # ", match[1])[0].strip())
    return found


@pytest.mark.parametrize("line", sorted(set(written_commands())))
def test_every_command_that_is_written_can_be_parsed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(line)[1:]
    assert arguments[0] in COMMANDS
    try:
        build_parser([arguments[0]]).parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{line}\n{capsys.readouterr().err}")


def test_the_pages_do_write_commands() -> None:
    assert {line.split()[1] for line in written_commands()} >= {"import", "plan", "adapt", "demo", "doctor", "features"}


def section(page: str, heading: str) -> str:
    """The text under a heading of the second order."""
    return page.partition(f"## {heading}\n")[2].split("\n## ")[0]


def described(text: str) -> dict[str, object]:
    """Field -> default of the rows ``| `field` | `default` | meaning |``."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \| (.+) \|$", text, re.M)
    assert len({name for name, _, _ in rows}) == len(rows), "a field is described twice"
    return {name: json.loads(default) for name, default, _ in rows}


def defaults(recipe: object) -> dict[str, object]:
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_settings_of_every_objective_are_described(name: str) -> None:
    recipe = importlib.import_module(f"nnunet_ssl.objectives.{name}").Recipe()
    page = text_of("docs/settings.md")
    common, own = (described(section(page, f"Pretraining: {of}")) for of in ("every objective", f"`{name}`"))
    assert common == defaults(BaseRecipe())
    assert common | own == defaults(recipe)


def test_settings_of_the_downstream_trainers_are_described() -> None:
    assert described(section(text_of("docs/settings.md"), "Downstream")) == defaults(DownstreamRecipe())


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    names = {field.name for field in dataclasses.fields(DownstreamRecipe)}
    for name in OBJECTIVES:
        recipe = importlib.import_module(f"nnunet_ssl.objectives.{name}").Recipe
        names |= {field.name for field in dataclasses.fields(recipe)}
    used = set(re.findall(r"\bssl\.([a-z_]+)\b", page.read_text(encoding="utf-8"))) - {"nnunet"}
    assert used - {"losses", "views", "networks", "pyramid", "heads", "diagnostics"} <= names


def test_the_version_has_its_entry() -> None:
    import nnunet_ssl

    assert f"\n## {nnunet_ssl.__version__}\n" in text_of("CHANGELOG.md")
