"""The code of docs/python.md and of docs/first_hour.ipynb runs as it stands there."""

import json
import re
from pathlib import Path

import pytest

from wsss.data.shapes import make_shapes

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, one_torch_thread):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_of_the_page(elsewhere):
    make_shapes(elsewhere / "my_pictures", train=8, val=2, size=64)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    known: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), known)
    assert (elsewhere / "overlay.png").exists()
    assert (elsewhere / "runs/mine/report.html").exists()


def test_the_notebook(elsewhere):
    """Each cell, with a few updates in the place of a training; what is printed in the notebook is of a whole one."""
    cells = json.loads((DOCS / "first_hour.ipynb").read_text())["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    kinds = [output["output_type"] for cell in codes for output in cell["outputs"]]
    assert "error" not in kinds
    assert kinds.count("display_data") + kinds.count("execute_result") >= 3
    known: dict[str, object] = {"__name__": "__main__", "display": lambda *shown: None}
    for cell in codes:
        source = re.sub(r"^UPDATES = \d+", "UPDATES = 2", "".join(cell["source"]))
        exec(compile(source, "docs/first_hour.ipynb", "exec"), known)
    assert known["UPDATES"] == 2
