"""The example notebook: its cells run in order, and what they find is sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "transfer.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert not any(c.get("outputs") for c in notebook["cells"]), "outputs are not kept in the repository"
    names: dict = {}
    for number, source in enumerate(cells):
        exec(compile(source, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    assert names["advice"].strategy == "features" and names["found"].accuracy > 0.85  # 60 digits; a chance hit is 0.1
    assert (names["root"] / "digits.html").stat().st_size > 50_000
    assert (names["again"].predict(names["checks"]) == names["classifier"].predict(names["checks"])).all()
