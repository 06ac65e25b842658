"""What the documents name exists: files, commands, flags, modules; and nothing of anybody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from cotenant.cli import app

ROOT = Path(__file__).resolve().parents[2]
OWN = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
PAGES = sorted([*OWN, *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")])


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_and_flags_exist(page: Path) -> None:
    commands = typer.main.get_command(app)
    assert isinstance(commands, TyperGroup)
    for name, rest in re.findall(r"`?cotenant ([a-z]+)((?: [^`\n]*)?)", page.read_text()):
        if name not in commands.commands:
            assert not re.search(rf"(`|^)cotenant {name}\b", page.read_text(), re.M), f"no command {name}"
            continue
        command = commands.commands[name]
        if isinstance(command, TyperGroup) and rest.split():
            command = command.commands[rest.split()[0]]
        known = {flag for option in command.params for flag in option.opts}
        for flag in re.findall(r"(?<!\S)--[a-z-]+", rest.partition("#")[0]):
            assert flag in known, f"{page.name}: cotenant {name} has no {flag}"


def test_files_and_modules_named_as_code_exist(page: Path) -> None:
    places = (page.parent, ROOT, ROOT / "src" / "cotenant", ROOT / "benchmarks")
    for name in re.findall(r"`([a-z_/]+\.(?:py|toml|md|json|sh)|[a-z_]+/)`", page.read_text()):
        assert any((place / name).exists() for place in places), f"{page.name} names {name}"


def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M):
        assert target in targets, f"{page.name} names make {target}"


def test_no_tracked_file_names_a_registry_or_a_folder_of_somebodys_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"files\.python" r"hosted|pypi\." r"org|/ro" r"ot/\w|/ho" r"me/\w")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".sh", "", ".cfg"}:
            found = forbidden.search(path.read_text(errors="replace"))
            assert found is None, f"{name} says {found[0] if found else ''}"
