"""Imports run one way: kernels <- nn <- zoo <- plugins <- cli, with errors below all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "graftwork"
LAYERS = ["errors", "kernels", "cuda", "nn", "zoo", "plugins", "cli"]
# plugins.manager imports pluggy and errors only, so these two may ask it to load plugins at first need
ALLOWED = {("nn/train.py", "plugins.manager"), ("zoo/registry.py", "plugins.manager")}
FACE = {"__init__.py"}  # the package's face imports from everywhere


def imported(path: Path) -> list[str]:
    """Modules inside the package that a file imports, as dotted paths below it."""
    parts = ["graftwork", *path.relative_to(PACKAGE).with_suffix("").parts]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level]
            target = ".".join([*base, *([node.module] if node.module else [])])
            names += [target] if node.module else [f"{target}.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [a.name for a in node.names]
    return [n.removeprefix("graftwork.") for n in names if n.startswith("graftwork.")]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    name = str(path.relative_to(PACKAGE))
    if name in FACE:
        return
    layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for target in imported(path):
        if (name, target) in ALLOWED or target.split(".")[0] not in LAYERS:
            continue
        assert LAYERS.index(target.split(".")[0]) <= LAYERS.index(layer), f"{name} imports {target} from above"


def test_the_checker_sees_relative_imports():
    assert "kernels" in {t.split(".")[0] for t in imported(PACKAGE / "nn" / "op.py")}


def test_import_is_light():
    code = (
        "import sys, graftwork; heavy = ('numba', 'h5py', 'PIL', 'sklearn', 'matplotlib', 'rich', 'click', 'cupy'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
