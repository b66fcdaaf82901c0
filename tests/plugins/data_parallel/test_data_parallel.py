"""Several ranks equal one process, stay equal among themselves, and end with a name when one of them fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from graftwork import errors, nn
from graftwork.nn import functional as F
from graftwork.nn.autograd import mode
from graftwork.nn.compile import compile
from graftwork.plugins import data_parallel as dp
from graftwork.plugins.data_parallel import compress, group, launch, residual, timeline
from graftwork.plugins.data_parallel.communicator import Alone
from graftwork.plugins.data_parallel.reducer import Bucket, Reducer

HERE = Path(__file__).parent
LIMIT = 240  # seconds for one start of several ranks: far above what it takes, so that a busy machine does not fail the test
needs_mpi = pytest.mark.skipif(
    find_spec("mpi4py") is None or not (Path(sys.executable).parent / "mpiexec").is_file(),
    reason="mpi4py or mpich not installed",
)


def launched(ranks: int, script: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from graftwork.cli import main; main()", "launch", "-n", str(ranks), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([*command, *options, str(HERE / script), *arguments], capture_output=True, text=True, timeout=LIMIT,
                          env=environment, check=False)  # fmt: skip


# Several ranks


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    result = launched(request.param, "rank_checks.py", str(tmp_path_factory.mktemp("checkpoints")))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@needs_mpi
def test_ranks_equal_one_process(found):
    # float64; sums over ranks round in another order, and six steps let that grow
    for how in ("eager", "compiled", "empty", "accumulated"):
        assert found[how] < 1e-12, how


@needs_mpi
def test_compression_feeds_back_what_it_rounds_away(found):
    # after 60 steps at most one step's rounding (2**-11, 2**-8 of the value), or one left-out value's age, is still owed
    limits = {"fp16": 1e-3, "bf16": 1e-2, "0.1": 1.0}
    for kind, limit in limits.items():
        assert found["compression"][kind]["equal"] and found["compression"][kind]["error"] < limit


@needs_mpi
def test_a_resumed_run_with_compression_is_the_same_bit_for_bit(found):
    for how, difference in found["resumed"].items():
        assert difference["with"] == 0.0 and difference["without"] > 1e-7, how  # what was owed does make a difference


@needs_mpi
def test_all_ranks_name_the_one_that_is_different(found):
    last = found["size"] - 1
    for rank in found["everyone"]:
        assert "tensor 0 is weight float32[4, 5] on rank 1" in rank["mismatched"]
        assert f"not finite (NaN or infinite), from rank {last}" in rank["not_finite"]
        assert "rank 1" in rank["diverged"] and "conv.weight differs" in rank["diverged"]
    assert "1 entries for" in found["too_few"]


@needs_mpi
@pytest.mark.parametrize("kind, said", [("hangs", "dead, or it hangs"), ("stops", "it runs something else")])
def test_a_failing_rank_is_named(tmp_path, kind, said):
    result = launched(2, "rank_fails.py", kind, str(tmp_path), options=("--timeout", "6"))
    assert result.returncode == 1
    assert said in result.stderr and "rank 1 (host" in result.stderr and "step 4" in result.stderr
    assert "graftwork: rank 0" in result.stderr  # the one that is left ended by itself, and said why
    if kind == "hangs":
        assert re.search(r"rank 1 \(.*\) did not end: it hangs", result.stderr)


@needs_mpi
def test_a_rank_that_dies_is_the_only_one_named_and_all_others_say_so(tmp_path):
    result = launched(3, "rank_fails.py", "dies", str(tmp_path))
    assert result.returncode == 1
    found = re.findall(r"rank (\d) \(host \S+, process \d+, step 3.*?\) died \(signal SIGKILL\)", result.stderr)
    assert found == ["2"] * 3  # the launcher, and each of the others
    for rank in (0, 1):
        assert f"graftwork: rank {rank} (host" in result.stderr and f"RankError: rank {rank} (host" in result.stderr


@needs_mpi
def test_elastic_drops_the_dead_rank_alone_and_goes_on_from_the_last_checkpoint(tmp_path):
    result = launched(3, "rank_fails.py", "dies", str(tmp_path), options=("--timeout", "60", "--elastic"))
    assert result.returncode == 0, result.stderr
    assert re.search(r"starting again with 2 of 3 ranks; lost: rank 2 \([^()]*\) died \(signal SIGKILL\)\n", result.stderr)
    assert "ranks 2 began 3 ended 9" in result.stdout  # three steps an epoch: only the second epoch is done again


@needs_mpi
def test_a_host_that_is_cut_off_is_named_and_left_out(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost:2  # mpiexec starts ranks of both without ssh\n127.0.0.1\n")
    options = ("--hosts", str(hosts), "--timeout", "60", "--elastic")
    result = launched(3, "rank_fails.py", "cut", str(tmp_path), options=options)
    assert result.returncode == 0, result.stderr
    assert re.search(r"launch: rank 2 \(host .*\) has not been heard of for 10 s: its host is down or cut off", result.stderr)
    assert "starting again with 2 of 3 ranks, without host 127.0.0.1; lost: rank 2 (host" in result.stderr
    assert "ranks 2 began 3 ended 9" in result.stdout


# Alone


def test_a_bad_launch_is_explained(tmp_path, monkeypatch):
    with pytest.raises(errors.ConfigError, match="no script"):
        launch.run(2, str(tmp_path / "none.py"), [])
    with pytest.raises(errors.ConfigError, match="expected at least 1"):
        launch.run(0, __file__, [])
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingDependency, match=r"pip install 'graftwork\[mpi\]'"):
        launch.find_mpiexec()
    monkeypatch.delenv(group.LAUNCHED, raising=False)
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(errors.ConfigError, match="graftwork launch -n"):
        group.launched()


@pytest.mark.parametrize("change", [{"compression": "int3"}, {"compression": 2.0}, {"timeout": 0}, {"buckets": 3}])
def test_settings_are_checked(change):
    with pytest.raises(errors.ConfigError, match="data parallel|compression"):
        group.Settings().change(change)


def test_gradients_are_told_of_as_soon_as_they_are_complete():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    x = nn.Tensor(np.ones((1, 2), np.float32))
    told = []
    names = {id(p.edge): name for name, p in [("first", first.weight), ("second", second.weight)]}
    mode.ready = lambda leaf, g: told.append((names.get(id(leaf)), g.numpy().copy()))
    try:
        y = first(x)
        (second(y) + second(y * 2.0)).sum().backward()
    finally:
        mode.ready = None
    order = [name for name, _ in told if name]
    assert order == ["second", "first"]
    np.testing.assert_array_equal(dict(told)["second"], second.weight.grad.numpy())  # both uses are in it


def test_gradients_are_views_of_buckets_in_the_order_they_became_ready():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    parameters = dict(model.named_parameters())
    reducer = Reducer(Alone(), parameters, nn.Tensor(np.asarray(1.0)), bucket_bytes=40)
    for _ in range(2):
        for p in parameters.values():
            p.grad = None
        mode.ready = reducer.ready
        try:
            model(nn.Tensor(np.ones((5, 3), np.float32))).sum().backward()
        finally:
            mode.ready = None
        expected = {n: p.grad.numpy().copy() for n, p in parameters.items()}
        reducer.finish()
        for name, p in parameters.items():
            np.testing.assert_array_equal(p.grad.numpy(), expected[name])
            assert any(np.shares_memory(p.grad.data, b.receive.data) for b in reducer.buckets)
    last = [name for name in parameters if name.startswith("1.")]
    assert len(reducer.buckets) > 1 and set(list(reducer.buckets[0].places)[:2]) == set(last)


@pytest.mark.parametrize("bucket_bytes", [1, 100, 1 << 20])
def test_a_step_of_several_buckets_compiles(bucket_bytes):
    """Capture looks twice: buckets have to start at the same places in the pass that plans them and in the next."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    parameters = dict(model.named_parameters())
    optimizer = nn.optim.SGD(model.parameters(), lr=0.0)
    reducer = Reducer(Alone(), parameters, nn.Tensor(np.asarray(1.0)), bucket_bytes)

    def step(x):
        optimizer.zero_grad()
        F.relu(model(x)).sum().backward()
        reducer.finish()
        optimizer.step()
        found = [p.grad * 1.0 for p in parameters.values()]
        optimizer.zero_grad()
        return found

    x = nn.Tensor(np.ones((5, 3), np.float32))
    F.relu(model(x)).sum().backward()
    expected = [p.grad.numpy().copy() for p in parameters.values()]
    mode.ready = reducer.ready
    try:
        found = compile(step)(x)
    finally:
        mode.ready = None
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_that_are_left_owe_what_all_owed(rng, size):
    places = {"a": (0, 2, (2,)), "b": (2, 5, (3,))}
    kept = {"rest a": rng.standard_normal((3, 2)).astype(np.float32), "rest b": rng.standard_normal((3, 3)).astype(np.float32),
            "sum a": np.arange(2, dtype=np.float32), "sum b": np.arange(2, 5, dtype=np.float32)}  # fmt: skip
    rest, of_sum = [], []
    for rank in range(size):
        comm = Alone()
        comm.rank, comm.size = rank, size
        send, receive = np.zeros(5, np.float32), nn.Tensor(np.zeros(5, np.float32))
        bucket = Bucket(0, send, receive, places, compress.Rounded(comm, 5, "bf16"))
        residual.restore(bucket, kept, comm)
        rest.append(bucket.codec.residual()["rest"])
        of_sum.append(bucket.codec.residual()["sum"])
    total = np.concatenate([kept["rest a"], kept["rest b"]], axis=1).sum(axis=0)
    np.testing.assert_allclose(sum(rest), total, rtol=1e-5, atol=1e-6)  # three float32 values in another order
    np.testing.assert_array_equal(np.concatenate(of_sum)[:5], np.arange(5))
    with pytest.raises(errors.CheckpointError, match="another network"):
        residual.restore(bucket, {"rest a": np.zeros((3, 4), np.float32)}, comm)


def test_parts_of_all_ranks_are_the_batch():
    parts = []
    for rank in range(3):
        comm = Alone()
        comm.rank, comm.size, comm.hosts = rank, 3, ["a"] * 3
        loader = nn.DataLoader(nn.ArrayDataset(np.arange(10)), 4, shuffle=True, seed=1)
        sharded = dp.ShardedLoader(loader, group.Group(comm, group.Settings()))
        sharded.epoch = 2
        shares, entries = [], []
        for (x,) in sharded:
            shares.append(float(sharded.group.share().item()))
            entries.append(list(x.numpy()) if shares[-1] else [])
        parts.append((shares, entries))
    for i in range(3):
        assert sum(shares[i] for shares, _ in parts) == pytest.approx(1.0)
        together = [e for _, entries in parts for e in entries[i]]
        assert together == list(loader.order(2)[4 * i : 4 * i + 4])
    assert parts[2][0][2] == 0.0  # two entries in the last batch: the third rank has none


def test_a_scaled_rate_warms_up():
    optimizer = nn.optim.SGD([nn.Parameter(np.zeros(2))], lr=0.1)
    schedule = dp.ScaledLR(optimizer, batch=1024, base_batch=256, warmup_steps=3)
    rates = [optimizer.lr]
    for _ in range(4):
        schedule.step()
        rates.append(optimizer.lr)
    assert rates == pytest.approx([0.175, 0.25, 0.325, 0.4, 0.4])
    assert dp.ScaledLR(nn.optim.Adam([nn.Parameter(np.zeros(2))]), 1024, 256, "sqrt").scale == 2.0
    with pytest.raises(errors.ConfigError, match="linear"):
        dp.ScaledLR(optimizer, 64, rule="cubic")


def test_bfloat16_rounds_to_nearest_even(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.concatenate([rng.standard_normal(500), [0.0, -0.0, np.inf, -np.inf, 1.00390625, 1.01171875]]).astype(np.float32)
    rounded = compress._from_bfloat(compress._to_bfloat(x))
    np.testing.assert_array_equal(rounded, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_timeline_accounts_for_the_whole_step(tmp_path):
    t = timeline.Timeline(on=True)
    events = [("fill", "fill", 1.0, 2.0), ("bucket 0", "bucket", 2.0, 5.0), ("wait", "wait", 4.0, 5.0)]
    t.steps.append((0.0, 6.0, events))
    events = t.events()
    lane = [e for e in events if e["tid"] == 0]
    assert sum(e["dur"] for e in lane) == 6e6
    assert [e["dur"] for e in lane if e["name"] == "compute"] == [1e6, 2e6, 1e6]
    timeline.write(tmp_path / "t.json", [events, events], ["a", "<b>"])
    written = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {e["pid"] for e in written} == {0, 1} and {e["ph"] for e in written} == {"M", "X"}
    page = (tmp_path / "t.html").read_text()
    assert page.count("<rect") == 2 * len(events) and "&lt;b&gt;" in page
