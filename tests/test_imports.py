"""Imports go one way: tools use the library, Lightning stays out of the networks, the command line starts fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "audioldm2_pl").rglob("*.py"))
TOOLS = sorted([*(ROOT / "data").rglob("*.py"), *(ROOT / "evaluation").rglob("*.py")])


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it, and of the names taken from them."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def within(names: set[str], *packages: str) -> set[str]:
    return {name for name in names for package in packages if name == package or name.startswith(package + ".")}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_rules_see_the_files():
    assert len(CORE) > 20 and len(TOOLS) > 10
    assert "audioldm2_pl.errors.UserError" in imported(ROOT / "data" / "shards.py")
    assert "data.shards.Clip" in imported(ROOT / "data" / "synthetic.py")  # from .shards


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_the_library_imports_no_tools(path):
    tools = ("data", "evaluation", "experiments", "tests")
    assert not within(imported(path), *tools, *(f"audioldm2_pl.{tool}" for tool in tools))


@pytest.mark.parametrize("path", sorted((ROOT / "audioldm2_pl" / "models").rglob("*.py")), ids=relative)
def test_networks_import_neither_lightning_nor_training(path):
    assert not within(imported(path), "lightning", "pytorch_lightning", "audioldm2_pl.training")


@pytest.mark.parametrize("path", TOOLS, ids=relative)
def test_tools_import_each_other_under_their_short_names(path):
    assert not within(imported(path), "audioldm2_pl.data", "audioldm2_pl.evaluation", "audioldm2_pl.experiments")


def test_the_command_line_waits_with_torch():
    code = "import sys, audioldm2_pl.cli; print(sorted({'torch', 'lightning', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
