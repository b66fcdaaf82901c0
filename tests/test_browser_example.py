"""The page of examples/browser, served from this machine and used in a real Chromium: a picture is dropped on it."""

from __future__ import annotations

import http.server
import importlib.util
import json
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
Image = pytest.importorskip("PIL.Image")

import graftwork as gw  # noqa: E402

HERE = Path(__file__).resolve().parents[1] / "examples" / "browser"
# Drops a picture on the page in the frame, as a user would, and sends home what the page then shows.
HARNESS = """<!doctype html><iframe id="page" src="index.html" width="900" height="900"></iframe><script type="module">
const home = (found) => fetch("/result", { method: "POST", body: JSON.stringify(found) });
const frame = document.getElementById("page");
const until = async (test) => { while (!test()) await new Promise((r) => setTimeout(r, 50)); };
try {
  await until(() => frame.contentDocument?.getElementById("status"));
  const page = frame.contentDocument, status = page.getElementById("status");
  await until(() => page.documentElement.dataset.ready || status.classList.contains("wrong"));
  if (!page.documentElement.dataset.ready) throw new Error(status.textContent);
  const drop = (blob, name) => {
    const data = new frame.contentWindow.DataTransfer();
    data.items.add(new frame.contentWindow.File([blob], name, { type: blob.type }));
    page.getElementById("drop").dispatchEvent(new frame.contentWindow.DragEvent("drop", { dataTransfer: data, bubbles: true }));
  };
  const heard = new Promise((done) => page.addEventListener("classified", (event) => done(event.detail)));
  drop(await (await fetch("picture.png")).blob(), "picture.png");
  await until(() => status.textContent.includes("likely") || status.classList.contains("wrong"));
  const said = status.textContent;
  const detail = said.includes("likely") ? await heard : {};
  const classes = [...page.querySelectorAll("#classes li")].map((item) => item.textContent);
  const alt = page.getElementById("picture").alt;
  drop(new Blob(["no picture"], { type: "text/plain" }), "note.txt");
  await until(() => status.classList.contains("wrong"));
  const refused = status.textContent;
  drop(new Blob(["neither"], { type: "image/png" }), "broken.png");
  await until(() => status.textContent !== refused && status.classList.contains("wrong"));
  await home({ ...detail, said, classes, alt, refused, broken: status.textContent });
} catch (error) { await home({ error: String(error) }); }
</script>"""


def example():
    spec = importlib.util.spec_from_file_location("browser_example_build", HERE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on the path; install it to have the page used in a browser")


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the site and keeps what the page sends home."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript",
                      ".wasm": "application/wasm"}  # fmt: skip

    def do_POST(self):
        self.server.found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.arrived.set()

    def log_message(self, *arguments):
        """Quiet."""


def visit(site, folder):
    """What the harness sends home from a headless browser that can reach this machine only."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(site)))
    server.arrived, server.found = threading.Event(), None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}",
               "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
               f"http://127.0.0.1:{server.server_port}/test.html"]  # fmt: skip
    with open(folder.with_suffix(".log"), "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            arrived = server.arrived.wait(180)
        finally:
            process.terminate()
            server.shutdown()
            server.server_close()
    assert arrived, folder.with_suffix(".log").read_text()[-2000:]
    return server.found


def test_a_dropped_picture_is_classified(tmp_path):
    browser_example = example()
    chromium()
    if not browser_example.cached_runtime().is_dir():
        pytest.skip("onnxruntime-web has not been fetched; `python examples/browser/build.py site` does that once")
    site = tmp_path / "site"
    small = browser_example.build(site)
    rng = np.random.default_rng(3)
    shapes = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((23, 17, 1))).astype(np.uint8)  # edges, another size
    Image.fromarray(shapes).save(site / "picture.png")
    (site / "test.html").write_text(HARNESS)
    found = visit(site, tmp_path / "profile")
    assert "error" not in found, found
    network = small.model
    pixels = np.asarray(found["rgb"]).reshape(1, 32, 32, 3)
    exact = browser_example.zoo.images.to_batch(site / "picture.png", (32, 32))
    assert np.abs(pixels - exact).max() <= 1  # Pillow's shares are fixed-point numbers: a byte may be rounded the other way
    with gw.no_grad():
        scores = small(network.normalise(pixels.astype(np.uint8))).numpy()[0]
    wanted = np.exp(scores - scores.max())
    wanted /= wanted.sum()
    # floats between 8-bit products round otherwise in the browser: a few steps in the scores, a few hundredths here
    np.testing.assert_allclose(found["probabilities"], wanted, atol=0.05)
    order = np.argsort(found["probabilities"])[::-1]
    assert found["classes"] == [f"{browser_example.CLASSES[i]}{100 * found['probabilities'][i]:.1f} %" for i in order[:5]]
    assert found["said"].startswith(f"Most likely: {browser_example.CLASSES[order[0]]}. ")
    assert found["alt"] == "The picture you gave, picture.png"
    assert "no picture" in found["refused"] and "cannot be read" in found["broken"]


def test_the_example_says_what_is_missing(tmp_path):
    browser_example = example()
    with pytest.raises(browser_example.ConfigError, match="squeezenet1_1: give --weights and --classes"):
        browser_example.build(tmp_path / "site", "squeezenet1_1")
    assert not (tmp_path / "site").exists()
    pictures = browser_example.clouds(4, (16, 24))
    assert pictures.shape == (4, 16, 24, 3) and pictures.std() > 20
