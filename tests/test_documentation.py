"""The site builds without a warning and asks no other server; the notebook runs."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = "#!{python}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
MODULES = {"audioldm2-data": "data.__main__", "audioldm2-eval": "evaluation.__main__"}


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    configuration = (tmp_path / "configuration/index.html").read_text()
    assert 'id="trainingvae"' in configuration and "from 0 to 1" in configuration
    assert re.search(r"clips per device", configuration)  # a comment of the source
    assert "from_pretrained" in (tmp_path / "api/index.html").read_text()
    assert (tmp_path / "contributing/index.html").is_file() and (tmp_path / "changelog/index.html").is_file()
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?(https?://[^" >]+)', page.read_text())
        assert not fetched, page


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "docs/first_hour.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)  # none are stored
    for name, module in MODULES.items():  # of this tree, wherever the environment's own come from
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(SCRIPT.format(python=sys.executable, module=module))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "(2, 40960) samples at 16000 Hz" in said and "joint: finished in" in said
    assert re.search(r"kad_audiomae +-?\d", said), said
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert (tmp_path / "generated/tone_11.wav").is_file()
