"""What an installation without the clone holds and runs: every module, every file that code reads, three commands."""

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
SOURCES = ("audioldm2_pl", "data", "evaluation", "experiments")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
# The editable installation would serve what the wheel lacks.
WITHOUT_EDITABLE = (
    "import sys\nsys.meta_path = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')]\n"
)
TOUR = """
import importlib, pkgutil, sys
import audioldm2_pl
for module in pkgutil.walk_packages(audioldm2_pl.__path__, "audioldm2_pl."):
    print(importlib.import_module(module.name).__file__)
from audioldm2_pl.cli import main
from audioldm2_pl.data.__main__ import main as data
from audioldm2_pl.evaluation.__main__ import main as evaluation
if __name__ == "__main__":  # workers import this file, too
    words = "--clips 6 --test-clips 2 --judge-clips 0 --workers 1"
    assert data(["synthetic", "shards", *words.split()]) == 0
    words = "train smoke stages=[vae] data.train=[shards/train] trainer.progress_bar=false"
    assert main(words.split()) == 0
    assert evaluation(["reproduce", "table_5_synthetic", "--dry-run"]) == 0
"""


def files(suffix: str | None = None) -> list[Path]:
    """Those of the packages, from the root, without what Python and tools write; `suffix` alone, or all but .py."""
    found = [path.relative_to(ROOT) for name in SOURCES for path in sorted((ROOT / name).rglob("*"))]
    found = [path for path in found if (ROOT / path).is_file() and "__pycache__" not in path.parts]
    return [path for path in found if (path.suffix == suffix if suffix else path.suffix != ".py")]


def installed_name(folder: Path) -> str:
    """A folder of the repository => its package in an installation."""
    return ".".join(folder.parts if folder.parts[0] == "audioldm2_pl" else ("audioldm2_pl", *folder.parts))


def test_every_package_is_named():
    packages = {installed_name(path.parent): path.parent for path in files(".py")}
    assert sorted(packages) == sorted(SETTINGS["packages"])
    assert all((ROOT / folder / "__init__.py").is_file() for folder in packages.values())
    tools = {name: str(folder) for name, folder in packages.items() if folder.parts[0] != "audioldm2_pl"}
    assert tools == SETTINGS["package-dir"]


def test_every_file_that_code_reads_is_named():
    taken = {
        path.relative_to(ROOT)
        for name, patterns in SETTINGS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / SETTINGS["package-dir"].get(name, name.replace(".", "/"))).glob(pattern)
    }
    assert taken == set(files())


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A wheel of an sdist of this tree, in a folder of its own."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is older than 77, which make setup installs")
    folder = tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys, setuptools.build_meta as backend; print(getattr(backend, 'build_' + sys.argv[1])(sys.argv[2]))"
    run_python(["-c", build, "sdist", str(folder / "dist")], folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run_python(["-c", build, "wheel", str(folder / "dist")], unpacked)
    (wheel,) = (folder / "dist").glob("*.whl")
    site = folder / "site"
    run_python(["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)], folder)
    (site / "sitecustomize.py").write_text(WITHOUT_EDITABLE)
    return site


def run_python(words: list[str], folder: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_wheel_runs_outside_a_clone(installed, tmp_path):
    """Imports every module, makes shards, trains and plans a table there; the commands answer."""
    (tmp_path / "tour.py").write_text(TOUR)
    said = run_python(["tour.py"], tmp_path, PYTHONPATH=str(installed)).splitlines()
    modules = [Path(line) for line in said if line.endswith(".py") and Path(line).is_absolute()]
    assert len(modules) == len(files(".py")) - 1  # but for the package itself
    assert all(module.is_relative_to(installed) for module in modules)
    assert "model: runs/smoke/model" in said and (tmp_path / "runs/smoke/model/vae").is_dir()
    assert any("data.synthetic" in line for line in said)
    for command, word in (("audioldm2", "train"), ("audioldm2-eval", "report"), ("audioldm2-data", "synthetic")):
        words = [str(installed / "bin" / command), "--help"]
        assert word in run_python(words, tmp_path, PYTHONPATH=str(installed))
