"""Mixed precision through the engine, on the emulator's tensor cores."""

from __future__ import annotations

import numpy as np
import pytest
from test_engine import Net

import graftwork as gw
from graftwork import nn
from graftwork.nn import functional as F


@pytest.mark.parametrize("precision, tolerance", [("fp16", 1e-2), ("bf16", 6e-2)])
def test_inference(gpu, rng, precision, tolerance):
    """Within a few roundings to 11 or 8 bits of the float32 result; weights are narrowed ahead."""
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding="same"), nn.BatchNorm(16), nn.Conv2d(16, 8, 1)).to("cuda").eval()
    fast = gw.compile(lambda x: F.softmax(F.relu(model(x)), axis=-1), precision)
    x = gw.tensor(rng.standard_normal((1, 5, 5, 8)).astype(np.float32), device="cuda")
    with gw.no_grad():
        ours, expected = fast(x), F.softmax(F.relu(model(x)), axis=-1)
        executable = fast.executable(x)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=tolerance, atol=tolerance)
    assert not np.array_equal(ours.numpy(), expected.numpy())
    narrow = "float16" if precision == "fp16" else "bfloat16"
    convs = [s.node for s in executable.steps if s.node.op.name == "conv2d"]
    assert len(convs) == 2 and all(n.output.dtype.name == narrow for n in convs)
    ahead = [n.output for n in executable.ahead_nodes if n.output.dtype.name == narrow and n.output in executable.needed]
    assert sorted(v.ndim for v in ahead) == [1, 1, 4, 4]  # two filters and two biases


def test_training_updates_float32_weights(gpu, rng):
    """Two steps through the trainer, the first of which overflows: the scale is far too large for float16."""
    x, y = rng.standard_normal((2, 8, 8, 3)).astype(np.float32), np.array([1, 4])
    gw.manual_seed(0)
    model = Net().to("cuda")
    before = model.state_dict()["conv.weight"].copy()
    optimizer = nn.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scale = nn.LossScale(2.0**24, device="cuda")
    trainer = nn.Trainer(model, optimizer, compile=True, precision="fp16", loss_scale=scale, progress=False)
    trainer._compile()
    images, labels = gw.tensor(x, device="cuda"), gw.tensor(y, device="cuda")
    trainer.train_step(images, labels)
    assert trainer.skipped == 1 and scale.value.item() == 2.0**23
    np.testing.assert_array_equal(model.state_dict()["conv.weight"], before)
    gw.nn.precision.assign(scale.value, 128.0)
    trainer.train_step(images, labels)
    after = model.state_dict()["conv.weight"]
    assert trainer.skipped == 1 and after.dtype == np.float32 and not np.array_equal(after, before)
    assert not np.array_equal(after, after.astype(np.float16))  # more bits than float16 has

    gw.manual_seed(0)
    twin = Net().to("cuda")
    twin.train()
    steps = nn.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(twin(images), labels).backward()
    steps.step()
    change, expected = after - before, twin.state_dict()["conv.weight"] - before
    assert np.linalg.norm(change - expected) < 0.05 * np.linalg.norm(expected)
