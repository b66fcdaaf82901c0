"""Compiled calls compute what eager ones compute. What could go silently wrong is in tests/test_footguns.py."""

import threading
import tracemalloc

import numpy as np
import pytest

import graftwork as gw
from graftwork import errors, nn, zoo
from graftwork.kernels.cpu import runtime
from graftwork.nn import functional as F
from graftwork.nn.op import all_samples

CASES = [(op, sample) for op, sample in all_samples()]


def cast(array, dtype):
    return array.astype(dtype) if array.dtype == np.float64 else array


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("op", "sample"), CASES, ids=lambda v: getattr(v, "name", ""))
def test_every_op_compiled_equals_eager(op, sample, dtype):
    arrays = [cast(np.asarray(a), dtype) for a in sample.arrays]
    if op.writes:  # what is written must be a state: an argument may not change
        eager, compiled = ([gw.tensor(a.copy()) for a in arrays] for _ in range(2))
        expected = op(*eager, **sample.attrs)
        found = gw.compile(lambda: op(*compiled, **sample.attrs))()
        pairs = list(zip(eager, compiled, strict=True))
    else:
        tensors = [gw.tensor(a) for a in arrays]
        expected = op(*tensors, **sample.attrs)
        found = gw.compile(lambda *inputs: op(*inputs, **sample.attrs))(*tensors)
        pairs = []
    if expected is not None:
        pairs += list(zip(as_tuple(expected), as_tuple(found), strict=True))
    for one, two in pairs:
        assert one.dtype == two.dtype and one.shape == two.shape
        if one.dtype == np.float64:  # a batch norm becomes a scale and a shift; everything else is the same kernel
            np.testing.assert_allclose(two.numpy(), one.numpy(), rtol=1e-13 if op.name == "batch_norm" else 0, atol=1e-15)
        elif one.dtype.kind != "f":
            np.testing.assert_array_equal(two.numpy(), one.numpy())
        else:  # a planned kernel sums in another order, and has its own float32 exponentials
            scale = max(float(np.abs(one.numpy()).max(initial=0.0)), 1e-6)
            np.testing.assert_allclose(two.numpy(), one.numpy(), rtol=2e-5, atol=4e-6 * scale)


NETWORKS = {
    "squeezenet1_1": 96, "glyphnet": 32, "resnet20": 32, "vgg16": 48, "resnet50": 64, "resnet50_v2": 64, "mobilenet_v2": 96,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compiled_equal_eager(name, rng):
    gw.manual_seed(1)
    model = create(name, NETWORKS[name])
    perturb_statistics(model, rng)
    x = gw.tensor(rng.random((2, *model.input_shape), np.float32))
    with gw.no_grad():
        expected, found = model(x).numpy(), gw.compile(model)(x).numpy()
    # float32 sums in another order, batch norm folded into weights, Winograd: relative to the largest logit. MobileNetV2 with
    # random weights is ill-conditioned: eager float32 itself is 1.5e-4 away from float64 there.
    tolerance = 1e-3 if name == "mobilenet_v2" else 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def create(name, size):
    channels = 1 if name == "glyphnet" else 3
    return zoo.create(name, classes=10, input_shape=(size, size, channels))


def perturb_statistics(model, rng):
    """Running statistics as after some training, so that folding them does something."""
    for name, buffer in model.named_buffers():
        low = 0.5 if name.endswith("variance") else -0.1
        nn.modules.module.assign(buffer, low + 0.2 * rng.random(buffer.shape))


def train(step_of, steps, batches, seed=5):
    """Losses and final state of a small network with everything that has state: batch norm, dropout, momentum."""
    gw.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm(16), nn.Activation("silu"), nn.GlobalAvgPool2d(),
        nn.Dropout(0.3), nn.Linear(16, 5),
    )  # fmt: skip
    optimizer = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = nn.schedule.CosineLR(optimizer, steps)
    step = step_of(model, optimizer)
    gw.manual_seed(seed)
    losses = []
    for x, y in batches[:steps]:
        losses.append(step(gw.tensor(x), gw.tensor(y)).item())
        schedule.step()
    return losses, model.state_dict()


def plain_step(model, optimizer):
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_a_compiled_training_step_follows_eager_for_fifty_steps(rng):
    batches = [(rng.random((6, 16, 16, 3), np.float32), rng.integers(0, 5, 6)) for _ in range(50)]
    eager = train(plain_step, 50, batches)
    compiled = train(lambda *parts: gw.compile(plain_step(*parts)), 50, batches)
    # the same ops in the same order on float32; planned kernels sum in another order, which training amplifies
    np.testing.assert_allclose(compiled[0], eager[0], rtol=2e-3)
    for name, value in eager[1].items():
        np.testing.assert_allclose(compiled[1][name], value, rtol=0, atol=2e-3 * max(1.0, np.abs(value).max()), err_msg=name)


def test_adam_compiled_counts_its_steps(rng):
    x, y = gw.tensor(rng.random((4, 3), np.float32)), gw.tensor(np.array([0, 1, 1, 0]))
    results = []
    for wrap in (lambda f: f, gw.compile):
        gw.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = nn.optim.AdamW(model.parameters(), lr=0.05)

        def step(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        step = wrap(step)
        losses = [step(x, y)["loss"].item() for _ in range(10)]
        assert optimizer.steps.item() == 10
        results.append(losses)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)  # float32, the same formula


def test_compiled_outputs_can_be_differentiated(rng):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(4, 3))
    data = rng.random((2, 6, 6, 2), np.float32)
    gradients = []
    for call in (model, gw.compile(model)):
        x = gw.tensor(data, requires_grad=True)
        model.zero_grad()
        (call(x) ** 2).sum().backward()
        gradients.append([x.grad.numpy().copy(), *(p.grad.numpy().copy() for p in model.parameters())])
    for eager, compiled in zip(*gradients, strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


def test_a_compiled_gradient_of_a_gradient_inside_one_graph():
    @gw.compile
    def slope(x):
        y = (x**3).sum()
        (first,) = gw.grad(y, x, create_graph=True)
        return gw.grad(first.sum(), x)[0]

    x = gw.tensor([1.0, 2.0, -3.0], requires_grad=True)
    np.testing.assert_allclose(slope(x).numpy(), [6.0, 12.0, -18.0], rtol=1e-6)


def test_replay_allocates_nothing(rng):
    model = zoo.create("squeezenet1_1")
    x = rng.random((1, 64, 64, 3), np.float32)
    with gw.no_grad():
        executable = gw.compile(model).executable(gw.tensor(x))
        for _ in range(3):
            executable.run([x])
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            (y,) = executable.run([x])
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    # the caller's own output, and a few Python objects (ints, a list, a tuple): nothing of an activation's size
    assert peak < y.nbytes + 4096


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet50", "mobilenet_v2", "vgg16"])
def test_the_arena_is_close_to_its_lower_bound(name):
    model = create(name, 64)
    with gw.no_grad():
        executable = gw.compile(model).executable(gw.tensor(np.zeros((1, 64, 64, 3), np.float32)))
    assert executable.bound <= executable.arena_bytes <= 1.1 * executable.bound


def test_many_threads_replay_at_once(rng):
    model = zoo.create("glyphnet", weights="glyphs")
    fast = gw.compile(model)
    inputs = [gw.tensor(rng.random((1, 32, 32, 1), np.float32)) for _ in range(4)]
    wrong = []

    def work(x):
        with gw.no_grad():
            expected = fast(x).numpy().copy()
            for _ in range(20):
                if not np.array_equal(fast(x).numpy(), expected):
                    wrong.append(x)

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_threads_gives_the_same_result(count, rng):
    model = zoo.create("glyphnet", weights="glyphs")
    x = gw.tensor(rng.random((2, 32, 32, 1), np.float32))
    before = runtime.num_threads()
    with gw.no_grad():
        expected = model(x).numpy()
        try:
            gw.set_num_threads(count)
            found = gw.compile(model)(x).numpy()
        finally:
            gw.set_num_threads(before)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compiled():
    with pytest.raises(errors.ConfigError, match="expected a Module or a function"):
        gw.compile(3)
    with pytest.raises(errors.ConfigError, match="integer from 1"):
        gw.set_num_threads(0)
    fast = gw.compile(lambda x: x + 1.0)
    with pytest.raises(errors.CaptureError, match="NumPy array"):
        fast(np.zeros(3))
    assert gw.compile(fast) is fast


def test_structures_go_in_and_out():
    @gw.compile
    def f(pair, *, table):
        a, (b,) = pair
        return {"sum": a + b, "rest": [table["c"] * 2.0, (3, None)]}

    a, b, c = (gw.tensor([float(i)]) for i in range(3))
    result = f((a, [b]), table={"c": c})
    assert result["sum"].item() == 1.0 and result["rest"][0].item() == 4.0 and result["rest"][1] == (3, None)


@pytest.mark.parametrize("view", [
    lambda x: x.transpose((0, 2, 1)).reshape((2, 12)), lambda x: x[:, ::2].reshape((4, 4)),
    lambda x: x[:, :, ::-1].reshape((-1,)),
])  # fmt: skip
def test_a_reshape_that_cannot_be_a_view_reads_fresh_values(view):
    """Of an argument and of a computed value; a copy made once, when the graph is bound, would hold what was there before."""
    compiled = gw.compile(lambda x: (view(x) * 2.0, view(x * 3.0) * 2.0))
    for seed in (0, 1):
        x = gw.tensor(np.random.default_rng(seed).standard_normal((2, 3, 4)).astype(np.float32))
        for found, want in zip(compiled(x), (view(x) * 2.0, view(x * 3.0) * 2.0), strict=True):
            np.testing.assert_array_equal(found.numpy(), want.numpy())
