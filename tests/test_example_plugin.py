"""The example plugin, installed by pip and used as a stranger's would be: in another process, through its entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin_swoosh"

SCRIPT = """
import json
import numpy as np
import graftwork as gw
from graftwork import kernels, plugins
from graftwork.nn import OPS

plugins.load(strict=True)
(info,) = [p for p in plugins.list_plugins() if p.name == "swoosh"]
op = OPS["swoosh"]
a = np.random.default_rng(0).standard_normal((4, 5)) * 3

def call(values, beta=1.5):
    return op(gw.tensor(values, requires_grad=True), beta=beta)

def slope(f, x, step=1e-6):
    return (f(x + step) - f(x - step)) / (2 * step)

exact = lambda x: x / (1 + np.exp(-1.5 * x))
x = gw.tensor(a, requires_grad=True)
(first,) = gw.grad(op(x, beta=1.5).sum(), x, create_graph=True)
(second,) = gw.grad(first.sum(), x)
first_at = lambda v: gw.grad(op(t := gw.tensor(v, requires_grad=True), beta=1.5).sum(), t)[0].numpy()
kernel, out = kernels.get("swoosh", "cpu"), np.empty((4, 5), np.float32)
kernel(a.astype(np.float32), out=out, beta=1.5)
try:
    op(gw.tensor([1, 2]), beta=1.0)
    refused = ""
except gw.errors.KernelUnavailable as error:
    refused = str(error)
print(json.dumps({
    "info": [info.distribution, info.version, info.status, list(info.hooks)],
    "file": op.vjp.__code__.co_filename,
    "value": float(np.abs(call(a).numpy() - exact(a)).max()),
    "large": call(np.array([-1e4, 1e4])).numpy().tolist(),
    "first": float(np.abs(first.numpy() - slope(exact, a)).max()),
    "second": float(np.abs(second.numpy() - slope(first_at, a)).max()),
    "float32": float(np.abs(out - exact(a)).max()),
    "kernels": [[e.device, e.variant] for e in kernels.list("swoosh")],
    "refused": refused,
    "source": __import__("graftwork_swoosh").CUDA,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the plugin does in a process that has it installed (into a folder of its own, from a copy of the sources)."""
    home = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, home / "source")  # a build leaves files beside the sources
    target = home / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
           "--disable-pip-version-check", "--target", target, home / "source"]  # fmt: skip
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(target)])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), target


def test_it_is_found_through_its_entry_point(installed):
    found, target = installed
    assert found["info"] == ["graftwork-swoosh", "0.1.0", "loaded", ["register_kernels", "register_ops"]]
    assert Path(found["file"]).parent == target


def test_values_and_gradients(installed):
    found, _ = installed
    assert found["value"] < 1e-12
    assert found["large"] == [0, 1e4]
    assert found["first"] < 1e-7 and found["second"] < 1e-7  # central differences in float64
    assert found["float32"] < 2e-6  # values up to 10


def test_kernels_on_both_devices(installed):
    found, _ = installed
    assert found["kernels"] == [["cpu", "numpy"], ["cuda", "simple"]]
    assert 'extern "C" __global__ void swoosh' in found["source"]
    assert "int64" in found["refused"] and "cpu/numpy(float32, float64)" in found["refused"]


def test_it_is_about_thirty_lines():
    lines = [line for line in (EXAMPLE / "graftwork_swoosh.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 36


@pytest.mark.gpu
def test_cuda_equals_cpu(rng):
    import numpy as np

    import graftwork as gw

    if not gw.cuda.is_available():
        pytest.skip(f"no GPU: {gw.cuda.why_not()}")
    import cupy

    sys.path.insert(0, str(EXAMPLE))
    try:
        import graftwork_swoosh
    finally:
        sys.path.remove(str(EXAMPLE))
    from graftwork.nn.op import unregister

    try:
        for shape in ((1000, 33), (256,), (0, 3)):
            x = rng.standard_normal(shape).astype(np.float32)
            expected, found = np.empty_like(x), cupy.empty(shape, cupy.float32)
            graftwork_swoosh.cpu(x, out=expected, beta=1.5)
            graftwork_swoosh.cuda(cupy.asarray(x), out=found, beta=1.5)
            np.testing.assert_allclose(found.get(), expected, rtol=1e-5, atol=1e-6)  # float32 exponentials of two makers
    finally:
        unregister("swoosh")
