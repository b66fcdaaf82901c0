"""`gw.compile` with CUDA tensors, on the emulator, with launches that are recorded and replayed later."""

from __future__ import annotations

import gc

import fake_cupy
import numpy as np
import pytest
from test_engine import Net

import graftwork as gw
from graftwork import nn
from graftwork.errors import CaptureError, DeviceError
from graftwork.kernels import registry
from graftwork.nn import functional as F


def cuda(array, **more):
    return gw.tensor(array, device="cuda", **more)


def test_a_replay_equals_eager(gpu, rng):
    """Other inputs, other weights, and a poisoned arena between the calls."""
    model = Net().to("cuda").eval()
    fast = gw.compile(model)
    results = []
    for i in range(3):
        x = cuda(rng.standard_normal((2, 8, 8, 3)).astype(np.float32))
        with gw.no_grad():
            results.append((fast(x), model(x)))
        replay = next(iter(fast._entries.values())).executable.replay
        replay.arena.memory[:] = replay.workspace.memory[:] = 0xC3
        if i == 1:
            model.norm.gamma.data[...] = 2.0
            nn.modules.module.mark_written(model.norm.gamma)
    for ours, eager in results:
        np.testing.assert_allclose(ours.numpy(), eager.numpy(), rtol=1e-4, atol=1e-5)
    assert replay.recorded.replays == 3 and replay.why_not is None
    assert len(fast._entries) == 1


def test_a_whole_training_step(gpu, rng):
    """Forward, backward and update as one recorded graph, with dropout and a learning rate that changes in between."""
    assert train_eager_and_compiled(rng).recorded.replays == 3


def train_eager_and_compiled(rng):
    """Three steps each, compared; returns the compiled one's replay. (On hardware too, see `test_gpu.py`.)"""
    images, labels = rng.standard_normal((2, 8, 8, 3)).astype(np.float32), np.array([1, 4])
    states = []
    for compiled in (False, True):
        gw.manual_seed(0)
        model = Net().to("cuda")
        optimizer = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(F.dropout(model(x), 0.3), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        run = gw.compile(step) if compiled else step
        losses = []
        for rate in (0.1, 0.1, 0.02):
            optimizer.lr = rate
            losses.append(run(cuda(images), cuda(labels)).numpy())
        states.append({**model.state_dict(), **optimizer.state_dict(), "losses": np.array(losses),
                       "drawn": gw.nn.rng.default_state("cuda:0").numpy()})  # fmt: skip
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=2e-3, atol=2e-4, err_msg=name)
    assert states[1]["steps"] == 3 and states[1]["drawn"][1] > 0
    return run.executable(cuda(images), cuda(labels)).replay


def test_nothing_runs_at_capture_but_everything_at_the_first_replay(gpu):
    counter = cuda(np.zeros(3, np.float32))
    other = cuda(np.ones(3, np.float32))

    @gw.compile
    def step(x):
        gw.nn.ops.update.MOVING_AVERAGE(counter, x + other, momentum=0.5)
        return x * 2.0

    for n in (1, 2, 3):
        assert (step(cuda(np.full(3, 3, np.float32))).numpy() == 6).all()
        np.testing.assert_allclose(counter.numpy(), 4 * (1 - 0.5**n))


def test_results_are_the_callers_own(gpu):
    fast = gw.compile(lambda x: (x + 1.0, x.reshape(2, 2)))
    x = cuda(np.zeros(4, np.float32))
    first, same = fast(x)
    second, _ = fast(cuda(np.ones(4, np.float32)))
    assert (first.numpy() == 1).all() and (second.numpy() == 2).all() and (same.numpy() == 0).all()


def test_gradients_pass_through_a_compiled_call(gpu, rng):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to("cuda")
    fast = gw.compile(model)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    found = []
    for run in (model, fast):
        given = cuda(x, requires_grad=True)
        (run(given) ** 2).sum().backward()
        found.append([given.grad.numpy(), *(p.grad.numpy() for p in model.parameters())])
        for p in model.parameters():
            p.grad = None
    for e, f in zip(*found, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5)


def test_a_state_that_is_exchanged_is_bound_anew(gpu):
    weight = cuda(np.ones(4, np.float32))
    fast = gw.compile(lambda x: x * weight)
    x = cuda(np.full(4, 3, np.float32))
    assert (fast(x).numpy() == 3).all()
    weight.data = cuda(np.full(4, 2, np.float32)).data
    nn.autograd.mark_written(weight)
    gc.collect()
    assert (fast(x).numpy() == 6).all()


def test_strided_arguments_and_views(gpu, rng):
    """Arguments with gaps and in another order of dimensions; views of them inside."""
    fast = gw.compile(lambda x: F.concat([x.T[1:, ::2], x.T[:2, :2] * 2.0], axis=0).sum(axis=1))
    whole = rng.standard_normal((8, 6)).astype(np.float32)
    turned = rng.standard_normal((6, 4)).astype(np.float32)
    for values, array in ((whole[::2], cuda(whole).data[::2]), (turned.T, cuda(turned).data.transpose((1, 0)))):
        expected = np.concatenate([values.T[1:, ::2], values.T[:2, :2] * 2]).sum(axis=1)
        np.testing.assert_allclose(fast(gw.Tensor(array)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_cannot_be_recorded_is_named_and_called(gpu, monkeypatch):
    calls = []

    def plain(x, out, axis):
        calls.append(None)
        out.memory[...] = x.memory[:, ::-1]

    monkeypatch.setitem(registry._entries, ("softmax", "cuda"), {})
    registry.register("softmax", "cuda", "plain", plain)
    fast = gw.compile(lambda x: F.softmax(x * 2.0, axis=1) + 1.0)
    with pytest.warns(UserWarning, match="launch by launch, not as a CUDA graph, because the kernels of softmax are plain"):
        first = fast(cuda(np.array([[1, 2]], np.float32)))
    second = fast(cuda(np.array([[3, 5]], np.float32)))
    np.testing.assert_array_equal([first.numpy(), second.numpy()], [[[5, 3]], [[11, 7]]])
    assert len(calls) == 2


def test_a_driver_that_refuses_to_record(gpu):
    gpu.gpu.refuse_capture = True
    fast = gw.compile(lambda x: x * 2.0 + 1.0)
    with pytest.warns(UserWarning, match="launch by launch.*the driver says: cudaErrorStreamCaptureUnsupported"):
        assert (fast(cuda(np.ones(2, np.float32))).numpy() == 3).all()
    assert (fast(cuda(np.zeros(2, np.float32))).numpy() == 1).all()


def test_another_stream_waits_for_the_last(gpu):
    fast = gw.compile(lambda x: x * 2.0)
    x = cuda(np.ones(2, np.float32))
    fast(x)
    with gpu.cuda.Stream() as stream:
        fast(x)
    assert len(stream.waits) == 1 and stream.waits[0].stream.ptr == 0


def test_nothing_but_views_and_an_index_from_the_cpu(gpu, tmp_path):
    x = cuda(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(gw.compile(lambda x: x.T[1:])(x).numpy(), x.numpy().T[1:])
    picked = gw.compile(lambda x, i: F.gather(x, F.maximum(i, i)))  # the range of what is computed is checked by a node
    index = np.array([1, 0, 1])
    picked.graph(gw.tensor(x.numpy()), gw.tensor(index)).save(tmp_path / "g.h5")
    found = gw.load_graph(tmp_path / "g.h5", "cuda")(x, cuda(index))
    np.testing.assert_array_equal(found.numpy(), x.numpy()[index])


def test_what_cannot_be_captured_is_refused(gpu):
    x, here = cuda(np.ones(2, np.float32)), gw.tensor(np.ones(2, np.float32))
    with pytest.raises(CaptureError, match=r"item\(\) needs a tensor's values"):
        gw.compile(lambda x: x * x.sum().item())(x)
    with pytest.raises(CaptureError, match="is on 'cpu', while others are on 'cuda:0'"):
        gw.compile(lambda x, y: (x * 1.0, y * 2.0))(x, here)
    with pytest.raises(CaptureError, match="changes argument 'x' in place"):
        gw.compile(lambda x: gw.nn.ops.update.INCREMENT(x))(x)
    with pytest.raises(CaptureError, match="shares memory with a tensor that the compiled function changes"):
        state = cuda(np.zeros(4, np.float32))
        fast = gw.compile(lambda x: gw.nn.ops.update.MOVING_AVERAGE(state, x, momentum=0.5))
        fast(gw.Tensor(state.data.reshape((4,))))
    fast = gw.compile(lambda x: x + 1.0)
    fast(x)
    gpu.cuda.runtime.getDevice = lambda: 1
    with pytest.raises(DeviceError, match=r"with graftwork\.cuda\.device\(0\)"):
        fast(x)


def test_foreign_memory_stays_live(gpu):
    """What another library owns may change at any time: it is no constant."""
    values = np.ones(3, np.float32)

    class Foreign:
        __cuda_array_interface__ = values.__array_interface__ | {"version": 3}

    foreign = Foreign()
    fast = gw.compile(lambda x: x + gw.tensor(foreign))
    x = cuda(np.zeros(3, np.float32))
    assert (fast(x).numpy() == 1).all()
    values[:] = 5
    assert (fast(x).numpy() == 5).all()


def test_a_graph_file_moves_between_devices(gpu, tmp_path):
    weight = cuda(np.arange(6, dtype=np.float32).reshape(2, 3))
    fast = gw.compile(lambda x: F.relu(x @ weight))
    x = np.array([[1, -1]], np.float32)
    expected = fast(cuda(x)).numpy()
    fast.graph(cuda(x)).save(tmp_path / "g.h5")
    for device in ("cpu", "cuda"):
        loaded = gw.load_graph(tmp_path / "g.h5", device)
        np.testing.assert_array_equal(loaded(gw.tensor(x, device=device)).numpy(), expected)
    with pytest.raises(DeviceError, match="input 'x' is on cpu, the graph runs on cuda:0"):
        loaded(gw.tensor(x))


def test_every_kernel_of_ours_can_be_recorded():
    """They are described, not called: none allocates, waits, or needs Python at a replay."""
    ours = [e for e in registry.list_kernels(device="cuda") if e.variant in ("cuda", "tf32")]
    assert len(ours) > 90 and [e.op for e in ours if not hasattr(e.function(), "bind")] == []


def test_times_and_description(gpu):
    from graftwork.nn import profiling

    fast = gw.compile(lambda x: F.softmax(x * 2.0, axis=1))
    x = cuda(np.ones((2, 3), np.float32))
    executable = fast.executable(x)
    rows = profiling.profile(executable, [x.data], repeat=1)
    assert {r.variant for r in rows} == {"cuda"} and all(r.nanoseconds > 0 for r in rows)
    assert profiling.describe(executable)["memory"]["arena"] == executable.arena_bytes


def test_the_fake_catches_stale_pointers_and_allocations(gpu):
    """What these tests rely on can fail."""
    array = gpu.empty((4,), np.float32)
    with gpu.cuda.Stream() as stream:
        stream.begin_capture()
        with pytest.raises(fake_cupy.CUDARuntimeError, match="an allocation"):
            gpu.empty((4,), np.float32)
        with pytest.raises(fake_cupy.CUDARuntimeError, match="a copy to the host"):
            array.get()
        gpu.gpu.launch(lambda: None, {0: array.data.ptr})
        graph = stream.end_capture()
    graph.launch()
    del array
    gc.collect()
    with pytest.raises(AssertionError, match="which has been freed since"):
        graph.launch()
