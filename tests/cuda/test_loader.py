"""The loader: what a kernel's name in the cache depends on, damaged entries, two processes at once, and errors in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graftwork.errors import DeviceError, DTypeError, KernelError
from graftwork.kernels.cuda import launch, loader, nvrtc
from graftwork.kernels.cuda.launch import Builder, View, structure, vector_width, view_of
from graftwork.kernels.cuda.loader import Source

SOURCE = Source("update.cu", (("ELEMENT", "float"), ("RATE", "float"), ("LANES", "1"), ("TENSORS", "1")))
NEEDS_NVRTC = pytest.mark.skipif(not nvrtc.is_available(), reason="no NVRTC; install nvidia-cuda-nvrtc")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path))
    return tmp_path / "cuda"


# -- the key -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of kernels of its own, and a compiler whose version is known."""
    (tmp_path / "k.cu").write_text('#include "a.cuh"\nextern "C" __global__ void k() {}\n')
    (tmp_path / "a.cuh").write_text('#pragma once\n  # include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text("// deep\n")
    monkeypatch.setattr(loader, "FOLDER", tmp_path)
    monkeypatch.setattr(loader, "_closure", lambda file: loader._closure_of(file, tmp_path))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    return tmp_path


def test_the_key_depends_on_everything(folder, monkeypatch):
    first = loader.key(Source("k.cu"), "sm_80")
    assert first.startswith("k-sm_80-") and first == loader.key(Source("k.cu"), "sm_80")
    others = [loader.key(Source("k.cu"), "sm_86"), loader.key(Source("k.cu", (("A", "1"),)), "sm_80")]
    (folder / "b.cuh").write_text("// deeper\n")
    others.append(loader.key(Source("k.cu"), "sm_80"))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 1))
    others.append(loader.key(Source("k.cu"), "sm_80"))
    assert len({first, *others}) == 5


def test_a_missing_include_is_named(folder):
    (folder / "b.cuh").write_text('#include "nowhere.cuh"\n')
    with pytest.raises(KernelError, match=r"nowhere.cuh \(for k.cu\)"):
        loader.key(Source("k.cu"), "sm_80")


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that counts."""
    calls = []

    def compile_source(source, architecture, ptx=False):
        calls.append(source)
        return nvrtc.Compiled(b"code of " + architecture.encode(), "")

    monkeypatch.setattr(loader, "compile_source", compile_source)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    return calls


def test_compiled_once_then_read(cache, compiler):
    assert loader.cubin(SOURCE, "sm_80") == loader.cubin(SOURCE, "sm_80") == b"code of sm_80"
    assert len(compiler) == 1 and not list(cache.glob("*.tmp"))


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-3], lambda c: b"", lambda c: c[:60] + b"x" + c[61:], lambda c: b"GRAFTWORK-CUBIN0" + c[16:]]
)
def test_a_damaged_entry_is_built_again(cache, compiler, damage):
    loader.cubin(SOURCE, "sm_80")
    (entry,) = cache.glob("*.cubin")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert loader.cubin(SOURCE, "sm_80") == b"code of sm_80" and len(compiler) == 2
    assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, compiler, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "file"))
    loader._say_once.cache_clear()
    for _ in range(2):
        assert loader.cubin(SOURCE, "sm_80") == b"code of sm_80"
    assert capsys.readouterr().err.count("set GRAFTWORK_CACHE") == 1


RACE = """
import sys, time
from graftwork.kernels.cuda import loader, nvrtc
nvrtc.version = lambda: (13, 0)
def slow(source, architecture, ptx=False):
    time.sleep(1)
    print("compiled", flush=True)
    return nvrtc.Compiled(b"code", "")
loader.compile_source = slow
source = loader.Source("update.cu")
assert loader.cubin(source, "sm_80") == b"code"
"""


def test_of_two_processes_one_compiles(cache):
    processes = [
        subprocess.Popen([sys.executable, "-c", RACE], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    outputs = [p.communicate(timeout=120)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0] and "".join(outputs).count("compiled") == 1


@NEEDS_NVRTC
def test_the_real_compiler(cache):
    code = loader.cubin(SOURCE, "sm_80")
    assert code[:4] == b"\x7fELF"
    assert ".version" in loader.compile_source(SOURCE, "compute_80", ptx=True).code.decode()
    with pytest.raises(KernelError, match=r"(?s)update.cu.*does not compile.*identifier"):
        loader.compile_source(Source("update.cu"), "sm_80")


# -- devices -----------------------------------------------------------------------------------------------------------


def test_architectures():
    known = (75, 80, 90, 120)
    assert [loader.architecture_for(n, known, (13, 0)) for n in known] == ["sm_75", "sm_80", "sm_90a", "sm_120"]
    with pytest.raises(DeviceError, match=r"compute capability 7.0.*need 7.5"):
        loader.architecture_for(70, known, (13, 0))
    with pytest.raises(DeviceError, match=r"13.0 cannot compile for.*install a newer nvidia-cuda-nvrtc"):
        loader.architecture_for(130, known, (13, 0))


def test_a_driver_older_than_the_compiler_is_explained():
    text = loader.explain_load_failure("CUDA_ERROR_NO_BINARY_FOR_GPU", "sm_90a", (13, 0), (12, 4))
    assert "supports CUDA 12.4" in text and "NVRTC 13.0" in text and "graftwork[cuda12]" in text
    assert "Delete" in loader.explain_load_failure("CUDA_ERROR_INVALID_IMAGE", "sm_90a", (13, 0), (13, 0))


# -- launches ----------------------------------------------------------------------------------------------------------


def test_structures_lie_as_in_c():
    made = structure([("a", "i4", 1), ("b", "f8", 2.0), ("c", "u4", np.array([3, 4, 5], np.uint32)), ("d", "i8", 6)])
    assert made.dtype.itemsize == 40 and [made.dtype.fields[n][1] for n in "abcd"] == [0, 8, 16, 32]


def test_views_and_widths():
    x = np.zeros((4, 6), np.float32)
    view = view_of(0, x)
    assert view.dense and view.strides == (6, 1) and not view_of(0, x[:, ::2]).dense
    aligned = view._replace(alignment=16)
    assert vector_width(aligned) == 4 and vector_width(aligned, runs=[6]) == 2 and vector_width(aligned, runs=[7]) == 1
    assert aligned.moved(1, (2,), (1,)).alignment == 4 and vector_width(aligned.moved(2, (2,), (1,))) == 2
    assert vector_width(aligned, aligned._replace(dtype=np.dtype(np.float64))) == 2
    with pytest.raises(KernelError, match="cannot be taken as"):
        view_of(0, x[:, ::2]).reshape(12)
    record = np.zeros(3, [("a", "i1"), ("b", "<i4")])["b"]
    with pytest.raises(DTypeError, match="multiples of 4"):
        view_of(0, record)


def test_a_builder_copies_only_what_has_gaps():
    b = Builder(1, 80, 100)
    whole = View(0, (3, 4), (4, 1), np.dtype(np.float32), 16)
    assert b.dense(whole) is whole and not b.steps
    copy = b.dense(whole._replace(strides=(8, 2)))
    assert copy.dense and len(b.steps) == 1 and [s.slot for s in b.scratch] == [copy.slot] == [1]
    with pytest.raises(KernelError, match="exceed what a GPU takes"):
        b.launch("update.cu", "sgd", {}, (1, 70000), 256)


def test_a_second_call_of_a_form_describes_nothing(emulated):
    described = []

    @launch.kernel
    def twice(b, x, *, out, factor):
        described.append(factor)
        from graftwork.kernels.cuda.elementwise import describe_chain

        describe_chain(b, (x, x), out, (("add", (0, 1), ()),))

    x = np.ones(5, np.float32)
    for factor in (2, 2, 3):
        out = np.zeros(5, np.float32)
        twice(x, out=out, factor=factor)
        assert (out == 2).all()
    assert described == [2, 3]
