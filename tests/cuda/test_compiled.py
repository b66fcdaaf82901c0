"""`gw.compile` with CUDA tensors, on the emulator, with launches that are recorded and replayed later."""

from __future__ import annotations

import gc

import fake_cupy
import numpy as np
import pytest
from test_engine import Net

import graftwork as gw
from graftwork import nn
from graftwork.errors import CaptureError, DeviceError, KernelError
from graftwork.kernels import registry
from graftwork.kernels.cuda import launch, selection
from graftwork.nn import functional as F
from graftwork.plugins.quantize import quantize


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


def launched(gpu) -> list[str]:
    """A list that will hold the name of every kernel that is launched from now on, replays left out."""
    names: list[str] = []
    emulated, bind = launch.gpu(0), launch.gpu(0).bind

    def noting(step, pointers):
        bound = bind(step, pointers)
        return lambda: (names.append(step.kernel), bound())

    emulated.bind = noting
    return names


def replayed(graph) -> int:
    """How many launches a recorded graph consists of."""
    return len(graph.recorded.launches)


def test_weights_are_prepared_once_and_again_when_they_change(gpu, rng):
    """Turned int8 weights and the bias without the zero point: launched when bound or written, not recorded."""
    weight = cuda(rng.integers(-127, 128, (32, 24)).astype(np.int8))
    scale, bias = cuda(np.full(24, 1e-3, np.float32)), cuda(np.arange(24, dtype=np.int32))

    def layer(x):
        return F.quantized_matmul(x, weight, scale, bias, x_scale=0.1, x_zero_point=100)

    fast, names = gw.compile(layer), launched(gpu)
    x = [cuda(rng.integers(0, 256, (5, 32)).astype(np.uint8)) for _ in range(3)]
    results = [fast(x[0]), fast(x[1])]
    replay = fast.executable(x[0]).replay
    assert names.count("zero_point_bias") == 1 and names.count("gemm_mma") + names.count("product_wgmma") == 1
    assert replayed(replay) == 2 and replay.recorded.replays == 2  # the image as int8, the product
    expected = [layer(v) for v in x[:2]]
    weight.data[...] = cuda(rng.integers(-127, 128, (32, 24)).astype(np.int8)).data
    nn.autograd.mark_written(weight)
    results.append(fast(x[2]))
    expected.append(layer(x[2]))
    for found, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())
    assert fast.executable(x[0]).replay is replay and replay.recorded.replays == 3


def test_weights_that_the_graph_writes_are_prepared_at_every_replay(gpu, rng, monkeypatch):
    """A filter of Winograd's in a step that moves it."""
    monkeypatch.setattr(selection, "winograd_pays", lambda *given: True)
    filters = [cuda(np.ones((3, 3, 4, 4), np.float32)) for _ in range(2)]
    other = cuda(np.zeros((3, 3, 4, 4), np.float32))
    x = cuda(rng.standard_normal((1, 4, 4, 4)).astype(np.float32))

    def step(x, moves, weight):
        y = F.conv2d(x, weight, padding="same")
        if moves:
            gw.nn.ops.update.MOVING_AVERAGE(weight, other, momentum=0.5)
        return y

    for moves, prepared in ((True, 0), (False, 1)):
        weight = filters[moves]
        fast = gw.compile(lambda x, moves=moves, weight=weight: step(x, moves, weight))
        first = fast(x).numpy()
        np.testing.assert_allclose(fast(x).numpy(), first / 2 if moves else first, rtol=1e-4, atol=1e-4)
        calls = fast.executable(x).replay.calls
        assert sum(len(c._preparations) for c in calls) == prepared
        assert (sum(c.prepared for c in calls) > 0) == (prepared > 0)


def test_a_description_may_not_depend_on_more_than_it_says(emulated):
    b = launch.Builder(2, 90, 4)
    weight, x = (launch.View(i, (4,), (1,), np.dtype(np.float32), 16) for i in range(2))
    with pytest.raises(KernelError, match=r"depend on arrays \[0\] alone, but it is given \[1\] as well"), b.made_of(weight):
        b.launch("chain.cu", "chain", {}, 1, 32, b.empty((4,), "float32"), weight, x)


def test_an_elementwise_result_takes_over_an_input_that_dies(gpu, rng):
    """One buffer for a row of functions; two where a transposed view of the same memory is read as well."""
    x = cuda(rng.standard_normal((64, 64)).astype(np.float32))
    one = x.numpy().nbytes
    cases = {
        1: lambda x: F.softmax(F.gelu(F.softmax(x, axis=1) * 2.0), axis=1),
        2: lambda x: (lambda y: F.softmax(y + y.T, axis=0))(F.softmax(x, axis=1)),
    }
    for buffers, function in cases.items():
        fast = gw.compile(function)
        np.testing.assert_allclose(fast(x).numpy(), function(x).numpy(), rtol=1e-5, atol=1e-7)
        assert fast.executable(x).arena_bytes == buffers * one, buffers


class Bytes(nn.Module):
    """A node of every kind that runs in 8 bits."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.second, self.third, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 1), nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = F.relu(self.second(F.relu6(self.depthwise(x))) + x)
        y = F.max_pool2d(y, 2)
        return self.head(F.global_avg_pool2d(F.concat([y, F.silu(self.third(y))])))


def test_a_quantised_network_from_a_file(gpu, tmp_path, rng):
    """Convolutions, a sum, pooling, a table, a concatenation and a dense head in bytes: the CPU's bits."""
    gw.manual_seed(0)
    model = Bytes().eval()
    pictures = rng.standard_normal((3, 8, 8, 3)).astype(np.float32)
    quantised = quantize(model, [pictures])
    expected = quantised(gw.tensor(pictures)).numpy()
    graph = quantised.graph(gw.tensor(pictures))
    graph.save(tmp_path / "bytes.h5")
    assert {n.op.name for n in graph.nodes} >= {"quantize", "quantized_conv2d", "quantized_conv2d_add", "quantized_max_pool2d",
                                               "byte_table", "quantized_avg_pool2d", "quantized_matmul"}  # fmt: skip
    fast = gw.load_graph(tmp_path / "bytes.h5", "cuda")
    for _ in range(2):
        np.testing.assert_array_equal(fast(cuda(pictures)).numpy(), expected)


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
    values = np.ones((4, 8), np.int8)  # a weight, which a kernel of ours would turn once
    Foreign.__cuda_array_interface__ = values.__array_interface__ | {"version": 3}
    weight, scale, rows = gw.tensor(Foreign()), cuda(np.ones(8, np.float32)), cuda(np.ones((3, 4), np.int8))
    product = gw.compile(lambda x: F.quantized_matmul(x, weight, scale, x_scale=1.0))
    assert (product(rows).numpy() == 4).all()
    values[:] = 5
    assert (product(rows).numpy() == 20).all()


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
