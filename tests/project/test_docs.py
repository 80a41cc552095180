"""The docs build without a warning, and the blocks of the Quickstart run, as a reader copies them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {page.stem for page in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= built


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path) -> None:
    blocks = [found for found in BLOCK.findall((DOCS / "index.md").read_text()) if "pip install" not in found[1]]
    assert [language for language, _ in blocks] == ["python", "python", "bash", "bash", "bash", "bash"]
    for language, code in blocks:
        program = [sys.executable, "-P"] if language == "python" else ["bash", "-e"]
        done = subprocess.run([*program, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, code + done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "runs/quickstart/dcn/last.safetensors").exists()
    assert len((tmp_path / "predictions/predictions.csv").read_text().splitlines()) == 101  # a header, 100 images
    assert list((tmp_path / "exports").rglob("*.onnx"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat, of the extra docs, is not installed")
    client = pytest.importorskip("nbclient", reason="nbclient, of the extra docs, is not installed")
    notebook = nbformat.read(DOCS.parent / "examples" / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.update({"outputs": []} if cell.cell_type == "code" else {})
    client.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
    said = [output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output]
    assert "True\n" in said  # loaded, the network gives the same scores
    differences = [float(text.rpartition(":")[2]) for text in said if text.startswith("largest difference")]
    assert len(differences) == 2
    assert max(differences) < 1e-4
