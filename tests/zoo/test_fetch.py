"""Fetching weights, against a server on this machine that can send parts, cut connections and lie."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from graftwork import zoo
from graftwork.errors import FetchError, ModelError
from graftwork.zoo import fetch
from graftwork.zoo.registry import WeightsFile

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """`cuts`: after how many bytes the next connections end; `ranges`: whether parts are served; `requests`: what came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cuts, self.ranges, self.requests, self.statuses = CONTENT, [], True, [], []

    def file(self, hash=MD5, name="weights.h5"):
        return WeightsFile("some_model", "imagenet", f"http://127.0.0.1:{self.server_address[1]}/files/{name}", hash)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, 0
        server.requests.append((self.path, self.headers.get("Range")))
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        if server.ranges and (asked := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            start = int(asked[1])
            if start >= len(server.content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAFTWORK_WEIGHTS", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    return tmp_path / "cache" / "weights"


def names(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


@pytest.mark.parametrize("hash", [MD5, SHA256, None])
def test_downloads_once(server, cache, hash):
    seen = []
    path = fetch.fetch(server.file(hash), lambda done, total: seen.append((done, total)))
    assert path == cache / "weights.h5" and path.read_bytes() == CONTENT and names(cache) == ["weights.h5"]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert fetch.fetch(server.file(hash)) == path and len(server.requests) == 1


def test_a_cut_connection_goes_on_where_it_stopped(server, cache):
    server.cuts = [100_000, 0, 50_000]
    assert fetch.fetch(server.file()).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_servers_without_parts_send_everything_again(server, cache):
    server.cuts, server.ranges = [100_000], False
    assert fetch.fetch(server.file()).read_bytes() == CONTENT


def test_half_a_download_is_kept_for_the_next_time(server, cache):
    server.cuts = [200_000, 0, 0, 0, 0, 0]
    with pytest.raises(FetchError, match="200,000 bytes are kept") as caught:
        fetch.fetch(server.file())
    for part in (str(cache / "weights.h5"), server.file().source, "GRAFTWORK_WEIGHTS"):
        assert part in str(caught.value)
    assert names(cache) == ["weights.h5.partial"]
    server.cuts = []
    assert fetch.fetch(server.file()).read_bytes() == CONTENT and server.requests[-1][1] == "bytes=200000-"


def test_an_old_part_of_another_version_is_not_used(server, cache):
    cache.mkdir(parents=True)
    for old in (b"x" * 1000, b"x" * (len(CONTENT) + 5)):
        (cache / "weights.h5.partial").write_bytes(old)
        path = fetch.fetch(server.file())
        assert path.read_bytes() == CONTENT
        path.unlink()
    (cache / "weights.h5.partial").write_bytes(CONTENT)  # everything was there already
    assert fetch.fetch(server.file()).read_bytes() == CONTENT
    (cache / "weights.h5").unlink()
    (cache / "weights.h5.partial").write_bytes(b"x" * 1000)  # without a hash a part is of no use
    assert fetch.fetch(server.file(None)).read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_removed(server, cache):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(FetchError, match=r"512,000 bytes with md5:\w+, expected md5:\w+; removed"):
        fetch.fetch(server.file())
    assert names(cache) == []


def test_busy_servers_are_asked_again_and_refusals_are_final(server, cache):
    server.statuses = [503, 429]
    assert fetch.fetch(server.file()).read_bytes() == CONTENT
    server.statuses, server.requests = [404], []
    with pytest.raises(FetchError, match="404 Not Found") as caught:
        fetch.fetch(server.file(name="gone.h5"))
    assert len(server.requests) == 1 and str(cache / "gone.h5") in str(caught.value)


def test_no_network(server, cache):
    server.server_close()
    with pytest.raises(FetchError, match="could not be fetched") as caught:
        fetch.fetch(server.file())
    assert server.file().source in str(caught.value) and str(cache / "weights.h5") in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_a_cache_that_cannot_be_written_to(server, tmp_path, cache):
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file in the folder's place")
    with pytest.raises(FetchError, match="cannot be written to") as caught:
        fetch.fetch(server.file())
    assert "GRAFTWORK_CACHE" in str(caught.value) and not server.requests


def test_a_full_disk(server, cache, monkeypatch):
    """First as the disk says beforehand; then as it turns out while writing, here by a limit on the size of files."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match="needs 512,000 bytes more and .* has 1,000 free"):
        fetch.fetch(server.file())
    monkeypatch.undo()
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)\n"
        "from graftwork.zoo import fetch, registry\n"
        "fetch.fetch(registry.WeightsFile('some_model', 'imagenet', sys.argv[1], sys.argv[2]))"
    )
    environment = {**os.environ, "GRAFTWORK_CACHE": str(cache.parent)}
    environment.pop("GRAFTWORK_WEIGHTS", None)
    command = [sys.executable, "-c", code, server.file().source, MD5]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "FetchError" in result.stderr and "no room for weights.h5" in result.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300_000 and "weights.h5" not in names(cache)


def test_processes_share_one_download(server, cache):
    code = (
        "import sys; from graftwork.zoo import fetch, registry\n"
        "print(fetch.fetch(registry.WeightsFile('some_model', 'imagenet', sys.argv[1], sys.argv[2])))"
    )
    environment = {**os.environ, "GRAFTWORK_CACHE": str(cache.parent)}
    command = [sys.executable, "-c", code, server.file().source, MD5]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in both] == [str(cache / "weights.h5")] * 2
    assert len(server.requests) == 1 and (cache / "weights.h5").read_bytes() == CONTENT


def test_own_folder_and_mirror_come_first(server, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_WEIGHTS", str(tmp_path))
    (tmp_path / "weights.h5").write_bytes(b"mine")
    assert fetch.fetch(server.file()) == tmp_path / "weights.h5" and not server.requests
    assert fetch.fetch(server.file(name="other.h5")) == cache / "other.h5"
    monkeypatch.setenv("GRAFTWORK_WEIGHTS", f"http://127.0.0.1:{server.server_address[1]}/mirror/")
    file = WeightsFile("some_model", "imagenet", "https://nowhere.invalid/a%20b.h5?x=1", MD5)
    assert fetch.fetch(file) == cache / "a b.h5" and server.requests[-1][0] == "/mirror/a%20b.h5"


# -- models ------------------------------------------------------------------------------------------------------------


def test_create_fetches(server, cache, monkeypatch, tmp_path):
    model = zoo.create("glyphnet")
    zoo.save_weights(model, tmp_path / "w.h5")
    trunk = zoo.create("glyphnet", include_top=False)
    zoo.save_weights(trunk, tmp_path / "t.h5")
    whole, part = ((tmp_path / name).read_bytes() for name in ("w.h5", "t.h5"))
    folder = server.file(name="").source
    zoo.register("fetched", zoo.glyphnet.GlyphNet, "a test", {"all": f"{folder}w.h5", "all_notop": f"{folder}t.h5"},
                 hashes={"all": "sha256:" + hashlib.sha256(whole).hexdigest()},
                 md5={"all_notop": hashlib.md5(part).hexdigest()}, top=("classifier",))  # fmt: skip
    try:
        server.content = part
        found = zoo.create("fetched", weights="all", include_top=False)
        assert names(cache) == ["t.h5"]
        server.content = whole
        assert (zoo.create("fetched", weights="all").classifier.weight.numpy() == model.classifier.weight.numpy()).all()
        assert (found.stem.conv.weight.numpy() == trunk.stem.conv.weight.numpy()).all()
        (cache / "t.h5").unlink()
        zoo.create("fetched", weights="all", include_top=False)  # from the whole file, which is here
        assert names(cache) == ["w.h5"]
        with pytest.raises(ModelError, match="no weights named 'none'; named ones: 'all', 'all_notop'"):
            zoo.create("fetched", weights="none")
    finally:
        zoo.registry.unregister("fetched")


def test_every_published_file_has_a_record():
    for name in zoo.list_models():
        entry = zoo.find(name)
        for weights in entry.weights:
            file = entry.file(weights)
            assert re.fullmatch(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})", file.hash or "md5:" + "0" * 32), file
            if file.published:
                assert file.filename.endswith((".h5", ".hdf5")) and file.source.startswith("https://"), file
            else:
                assert (Path(zoo.registry.__file__).parent / file.source).is_file()
