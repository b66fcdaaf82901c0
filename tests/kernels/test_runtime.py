"""The pool and its programs: every part once, whatever the threads do; caches that are missing; forks."""

import os
import subprocess
import sys
import textwrap
import threading
import warnings

import numpy as np
import pytest

from graftwork import errors
from graftwork.kernels.cpu import jit, runtime
from graftwork.kernels.cpu.atomic import f32, real


@runtime.task
def add_part(a, part):
    x, y, count = f32(a, 0), f32(a, 1), a[2]
    for i in range(part * count, (part + 1) * count):
        y[i] += x[i] * np.float32(real(a, 3))


@pytest.fixture
def threads():
    """Sets the number of threads and puts it back."""
    before = runtime.num_threads()
    yield runtime.set_num_threads
    runtime.set_num_threads(before)


def program(x, y, parts, scale=1.0, repeat=1):
    return runtime.Program([runtime.row(add_part, parts, x, y, x.size // parts, scale)] * repeat)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [1, 2, 16, 64])
def test_every_part_is_computed_once(threads, count, parts):
    threads(count)
    x, y = np.arange(64 * 4, dtype=np.float32), np.zeros(64 * 4, np.float32)
    program(x, y, parts, 0.5, repeat=50).run()
    np.testing.assert_array_equal(y, x * 25)


def test_many_callers_at_once(threads):
    threads(3)
    arrays = [(np.full(128, i, np.float32), np.zeros(128, np.float32)) for i in range(6)]
    programs = [program(x, y, 8, repeat=20) for x, y in arrays]
    workers = [threading.Thread(target=lambda p=p: [p.run() for _ in range(50)]) for p in programs]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for i, (_, y) in enumerate(arrays):
        np.testing.assert_array_equal(y, i * 1000.0)


def test_the_number_of_threads_may_change_between_runs(threads):
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    run = program(x, y, 8)
    for count in (1, 4, 2, 4, 1):
        threads(count)
        run.run()
    np.testing.assert_array_equal(y, 5.0)


def test_times_are_taken_for_every_row():
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    clock = np.empty(4, np.int64)
    program(x, y, 4, repeat=3).run(clock)
    assert (np.diff(clock) >= 0).all() and clock[0] > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes():
    code = """
        import os, numpy as np, graftwork as gw
        double = gw.compile(lambda x: x + x)
        x = gw.tensor(np.ones((64, 1024), np.float32))
        double(x)
        child = os.fork()
        right = (double(x).numpy() == 2).all()
        if child == 0:
            os._exit(0 if right else 1)
        assert right
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_bad_counts():
    for bad in (0, -1, 1.5, True, "2", 2000):
        with pytest.raises(errors.ConfigError, match="integer from 1 to 1024"):
            runtime.set_num_threads(bad)


def test_words_hold_arrays_numbers_and_nothing():
    x = np.ones(3, np.float32)
    row = runtime.row(add_part, 0, x, None, 7, 0.25)
    assert row.parts == 1 and row.words[1] == 0 and row.words[2] == 7
    assert row.words[3:].view(np.float64)[0] == 0.25 and row.arrays[0][1] is x


def run_with_cache(folder, code):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


COMPUTE = """
    import numpy as np, graftwork as gw
    assert (gw.compile(lambda x: x + x)(gw.tensor(np.ones(64, np.float32))).numpy() == 2).all()
    print("computed")
"""


def test_without_a_place_for_compiled_code_it_is_compiled_each_time(tmp_path):
    (tmp_path / "file").write_text("")
    result = run_with_cache(tmp_path / "file" / "below", COMPUTE)
    assert result.stdout == "computed\n", result.stderr
    assert result.stderr.count("compiled kernels cannot be kept on disk") == 1 and "NUMBA_CACHE_DIR" in result.stderr


def test_a_full_disk_is_said_once(monkeypatch):
    def full(self, sig, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit.caching.FunctionCache, "save_overload", full)
    jit._warn_once.cache_clear()

    @jit.njit()
    def double(x):
        return x * 2

    with pytest.warns(UserWarning, match=r"No space left on device.*every process compiles"):
        assert double(2) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double(2.5) == 5.0
    jit._warn_once.cache_clear()


def test_no_two_processes_give_compiled_functions_the_same_name():
    """With one name, code from one process would run in place of the other's wherever both are loaded from disk."""
    code = "from graftwork.kernels.cpu import jit; print(next(jit.bytecode.FunctionIdentity._unique_ids))"
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert found[0] != found[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_counts_apart_too():
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, str(next(jit.bytecode.FunctionIdentity._unique_ids)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 64)) != next(jit.bytecode.FunctionIdentity._unique_ids)


def test_a_first_compilation_shows_on_a_terminal(monkeypatch):
    shown = []

    class Terminal:
        def isatty(self):
            return True

        def write(self, text):
            shown.append(text)

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(runtime, "disk_cache", lambda function: jit.caching.NullCache())

    @runtime.task
    def brand_new(a, part):
        a[0] = part

    assert brand_new.address and "compiling brand_new" in "".join(shown)
