"""`device="cuda"` through the whole engine, with a stand-in for CuPy and the emulator as the GPU."""

from __future__ import annotations

import ctypes
import sys
import types

import fake_cupy
import numpy as np
import pytest

import graftwork as gw
from graftwork import nn
from graftwork.errors import DeviceError, DeviceMemoryError, DTypeError, KernelError
from graftwork.kernels.cuda import launch
from graftwork.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.BatchNorm(8)  # a bias would have gradient 0
        self.depth, self.head = nn.DepthwiseConv2d(8, 3, stride=2, padding="same"), nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.head(F.global_avg_pool2d(F.silu(self.depth(x))))


@pytest.mark.parametrize("optimizer", [lambda p: nn.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: nn.optim.AdamW(p, lr=0.01)])
def test_a_training_step_equals_the_cpu(gpu, optimizer, rng):
    images, labels = rng.standard_normal((2, 8, 8, 3)).astype(np.float32), np.array([1, 4])
    states = []
    for device in ("cpu", "cuda"):
        gw.manual_seed(0)
        model = Net().to(device)
        steps = optimizer(model.parameters())
        for _ in range(2):
            loss = F.cross_entropy(model(gw.tensor(images, device=device)), gw.tensor(labels, device=device))
            steps.zero_grad()
            loss.backward()
            steps.step()
        assert loss.device.startswith(device)
        states.append({**model.state_dict(), "loss": loss.numpy(), **steps.state_dict()})
    for name, value in states[0].items():
        # AdamW divides gradients by their own size, which makes much of rounding where they are tiny
        np.testing.assert_allclose(states[1][name], value, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("make", [lambda p: nn.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: nn.optim.Adam(p, lr=0.1)])
def test_updates_of_many_tensors_are_few_launches(gpu, emulated, make, rng):
    """Seventy parameters of odd sizes: a table takes 64. Adam's counters need two launches as well, and the step's one."""
    values = [rng.standard_normal(1 + 37 * (i % 5)).astype(np.float32) for i in range(70)]
    results = []
    for device in ("cpu", "cuda"):
        parameters = [nn.Parameter(v.copy()).to(device) for v in values]
        steps = make(parameters)
        for p, v in zip(parameters, values, strict=True):
            p.grad = gw.tensor(v[::-1].copy(), device=device)
        for _ in range(2):
            emulated.steps = 0
            steps.step()
        results.append([p.numpy() for p in parameters])
    assert emulated.steps == (3 if isinstance(steps, nn.optim.SGD) else 5)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_state_goes_in_and_out(gpu):
    model = nn.Linear(3, 2).to("cuda")
    steps = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state, saved = steps.state_dict(), model.state_dict()
    saved["bias"][:] = 7
    model.load_state_dict(saved)
    state["momentum.0"][:] = 5
    steps.load_state_dict(state)
    steps.lr = 0.25
    assert (model.bias.numpy() == 7).all() and (steps.state_dict()["momentum.0"] == 5).all() and steps.lr == 0.25


def test_dropout_draws_from_a_state_on_the_device(gpu):
    x = np.ones((3, 50), np.float32)
    results = []
    for device in ("cpu", "cuda"):
        gw.manual_seed(3)
        tensor = gw.tensor(x, device=device)
        results.append([F.dropout(tensor, 0.5).numpy() for _ in range(2)])
    np.testing.assert_array_equal(results[0], results[1])
    state = gw.nn.rng.get_state()
    again = F.dropout(tensor, 0.5).numpy()
    gw.nn.rng.set_state(state)
    np.testing.assert_array_equal(F.dropout(tensor, 0.5).numpy(), again)


def test_views_operators_and_numbers(gpu, rng):
    a = rng.standard_normal((3, 4)).astype(np.float32)
    for device in ("cpu", "cuda"):
        x = gw.tensor(a, device=device, requires_grad=True)
        y = ((x.T @ x)[1:, ::2] * 2.0 - 1.0) ** 2 + gw.nn.functional.concat([x.reshape(4, 3)[:3, :2], x[:, 1:3] * 0], axis=0)[
            :3
        ]
        y.sum().backward()
        values = (y.numpy(), x.grad.numpy())
        if device == "cpu":
            expected = values
    for e, f in zip(expected, values, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-5)


def test_other_peoples_arrays_come_in_and_out(gpu):
    class Foreign:
        def __init__(self, array):
            self.array = array
            self.__cuda_array_interface__ = array.__array_interface__ | {"version": 3}

    values = np.arange(4, dtype=np.float32)
    x = gw.tensor(Foreign(values))
    assert x.device == "cuda:0" and x.dtype == np.float32
    values[0] = 9  # the memory is shared
    assert x.numpy()[0] == 9
    assert x.__cuda_array_interface__["shape"] == (4,)
    assert not hasattr(x.to("cpu"), "__cuda_array_interface__")


def test_dlpack_in_and_out(gpu):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)

    class Foreign:  # speaks DLPack only
        memory = values

        def __dlpack__(self, **given):
            raise AssertionError("CuPy is to ask for it")

        def __dlpack_device__(self):
            return 2, 0

    x = gw.tensor(Foreign())
    assert x.device == "cuda:0" and x.dtype == np.float32
    values[0, 0] = 9  # the memory is shared
    assert x.numpy()[0, 0] == 9
    assert x.__dlpack_device__() == (2, 0)
    again = np.from_dlpack(types.SimpleNamespace(__dlpack__=x.__dlpack__, __dlpack_device__=lambda: (1, 0)))
    assert np.shares_memory(again, values)


def test_copies_that_do_not_wait(gpu):
    """Page-locked memory travels as it is, other memory through CuPy's own; back into page-locked memory."""
    pinned = gw.cuda.pinned_empty((2, 3), np.float32)
    pinned[:] = 7
    x = gw.tensor(pinned).to("cuda", non_blocking=True)
    assert x.data.set_from[0] == pinned.ctypes.data and x.data.set_from[1].ptr == 0
    assert x.device == "cuda:0" and (x.numpy() == 7).all() and x.to("cuda") is x
    plain = np.ones((2, 3), np.float32)
    for array in (plain, pinned.T, pinned[:, :2], np.zeros((0, 3), np.float32)):
        y = gw.tensor(array, requires_grad=True).to("cuda", non_blocking=True)
        assert not hasattr(y.data, "set_from") and y.requires_grad
        np.testing.assert_array_equal(y.numpy(), array)
    back = x.to("cpu", non_blocking=True)
    assert gw.cuda.is_pinned(back.data) and (back.numpy() == 7).all()
    assert gw.cuda.pinned_empty((0, 3), np.float32).shape == (0, 3)


def test_a_loader_puts_batches_on_the_gpu(gpu):
    data = nn.ArrayDataset(np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3))
    for workers in (0, 1):
        batches = list(nn.DataLoader(data, 2, workers=workers, device="cuda"))
        assert [[t.device for t in b] for b in batches] == [["cuda:0", "cuda:0"]] * 2
        np.testing.assert_array_equal(np.concatenate([b[1].numpy() for b in batches]), np.arange(3))


def test_no_room_for_a_copy(gpu):
    gpu.limit = 1 << 10
    with pytest.raises(DeviceMemoryError, match=r"100x100 float32.*7 of 9 MiB are free"):
        gw.tensor(np.ones((100, 100), np.float32)).to("cuda")


def test_a_bound_launch_goes_to_the_current_stream(gpu, monkeypatch):
    """The GPU's own machine, with a driver that only notes what it is given."""
    noted = []
    gpu.cuda.driver.launchKernel = lambda *given: noted.append(given)
    gpu.cuda.Device.compute_capability, gpu.cuda.Device.attributes = "90", {"MultiProcessorCount": 132}
    monkeypatch.setattr(launch.loader, "function", lambda device, source, kernel, shared: 1234)
    machine = launch.Gpu(0)
    step = launch.Step(launch.Source("chain.cu"), "chain", (3, 2, 1), (256, 1, 1), 64, (np.float32(2.5),))
    bound = machine.bind(step, {})
    bound()
    with gpu.cuda.Stream() as stream:
        bound()
    machine.run(step, {})
    assert [n[:8] for n in noted] == [(1234, 3, 2, 1, 256, 1, 1, 64)] * 3
    assert [n[8] for n in noted] == [0, stream.ptr, 0]
    address = ctypes.cast(noted[0][9], ctypes.POINTER(ctypes.c_void_p))[0]
    assert noted[0][9] == noted[1][9] and ctypes.c_float.from_address(address).value == 2.5


def test_bad_calls_say_what_is_wrong(gpu, rng):
    x = gw.tensor(np.ones((2, 3), np.float32), device="cuda")
    with pytest.raises(DeviceError, match="operands on different devices"):
        x + gw.tensor(np.ones((2, 3), np.float32))
    gpu.limit = 1 << 10
    with pytest.raises(DeviceMemoryError, match=r"100x100 float32 \(0 MiB\).*uses 3 MiB and keeps 2 MiB for reuse, 7 of 9 MiB"):
        launch.empty((100, 100), np.float32)
    gpu.limit = 1 << 40
    gpu.cuda.runtime.getDevice = lambda: 1
    with pytest.raises(DeviceError, match="with graftwork.cuda.device"):
        F.relu(x)
    gpu.cuda.runtime.getDevice = lambda: 0
    one = fake_cupy.ndarray(np.ones(8, np.float32))
    shifted = fake_cupy.ndarray(np.ones(9, np.float32).view(np.uint8)[1:-3].view(np.float32))
    with pytest.raises(DTypeError, match="not a multiple of 4"):
        gw.kernels.get("relu", device="cuda")(shifted, out=one)
    param = fake_cupy.ndarray(np.ones((4, 4), np.float32)[:, ::2])
    with pytest.raises(KernelError, match="written in place; it must be contiguous"):
        gw.kernels.get("moving_average", device="cuda")(param, param, momentum=0.9)


def test_arrays_of_the_host_are_refused_without_a_stand_in():
    x = np.ones(3, np.float32)
    with pytest.raises(DeviceError, match="all arrays on one GPU, these are on cpu, cpu"):
        gw.kernels.get("relu", device="cuda")(x, out=x)


@pytest.mark.parametrize(
    "driver, reason", [(0, "no NVIDIA driver"), (12040, r"supports CUDA 12\.4.*needs CUDA 13"), (13000, None)]
)
def test_why_there_is_no_gpu(monkeypatch, driver, reason):
    import re

    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.module(driver=driver))
    monkeypatch.setattr(gw.cuda, "_has_compiler", lambda: True)
    found = gw.cuda._problem.__wrapped__()
    assert found is None if reason is None else re.search(reason, found)


def test_features_and_fine_tuning_on_the_gpu(gpu, rng):
    """The plugin's inputs follow the network to its device; features and trained heads are those of the CPU."""
    from graftwork import zoo
    from graftwork.plugins.transfer import FeatureExtractor, fine_tune

    pictures = list(rng.integers(0, 256, (6, 32, 32, 1), dtype=np.uint8))
    labels, found = np.array([0, 1, 0, 1, 0, 1]), []
    for device in ("cpu", "cuda"):
        trunk = zoo.create("glyphnet", weights="glyphs", include_top=False, pooling="avg").to(device)
        features = FeatureExtractor(trunk, batch_size=4).transform(pictures)
        tuned = fine_tune(trunk, pictures, labels, 2, strategy="head", epochs=1, batch_size=3, validation=(pictures, labels),
                          augment=None, compile=False)  # fmt: skip
        assert tuned.model.device.startswith(device)
        found.append((features, tuned.predict_proba(pictures)))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-3, atol=1e-4)
