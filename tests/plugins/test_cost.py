"""The cost model against what can be worked out by hand, and where its terms must lead."""

import numpy as np
import pytest

from graftwork import nn
from graftwork.errors import ConfigError
from graftwork.plugins.data_parallel.cost import Layer, Network, all_reduce, best_bucket, fill, fit, layers_of, step

SLOW = Network(latency=1e-3, bandwidth=1e6)


def test_all_reduce_by_hand():
    assert all_reduce(1e6, 4, SLOW, "ring") == pytest.approx(6e-3 + 1.5)
    assert all_reduce(1e6, 4, SLOW, "tree") == pytest.approx(2 * (2e-3 + 2.0))
    assert all_reduce(1e6, 4, SLOW, "halving") == pytest.approx(4e-3 + 1.5)
    assert all_reduce(1e6, 1, SLOW) == 0
    assert all_reduce(1e6, 4, SLOW) == all_reduce(1e6, 4, SLOW, "halving")


def test_a_shared_link_favours_the_ring_and_small_messages_a_tree():
    shared = Network(1e-6, 1e9, share=4)
    assert all_reduce(1e9, 512, shared) == all_reduce(1e9, 512, shared, "ring")
    assert all_reduce(8, 512, shared, "halving") < all_reduce(8, 512, shared, "ring")


def test_buckets_fill_in_the_order_of_the_backward_pass():
    layers = [Layer(60, 1.0), Layer(60, 2.0), Layer(0, 3.0), Layer(50, 4.0)]
    assert fill(layers, 100) == [(120, 3.0), (50, 10.0)]
    assert fill(layers, 1) == [(60, 1.0), (60, 3.0), (50, 10.0)]


def test_overlap_hides_what_fits_in_the_backward_pass():
    layers = [Layer(1000, 1.0), Layer(1000, 1.0)]
    network = Network(0.0, 1000.0)  # two workers: 1 s a layer
    hidden = step(layers, 1.0, 2, network, bucket_bytes=1)
    assert hidden.seconds == pytest.approx(4.0) and hidden.exposed == pytest.approx(1.0) and hidden.buckets == 2
    assert step(layers, 1.0, 2, network, bucket_bytes=1, overlap=False).seconds == pytest.approx(5.0)
    assert step(layers, 1.0, 2, network, bucket_bytes=2000).seconds == pytest.approx(5.0)
    assert step(layers, 1.0, 1, network).efficiency == 1


def test_the_best_bucket_grows_with_latency():
    layers = [Layer(1 << 20, 1e-3) for _ in range(64)]
    quick, slow = Network(1e-7, 1e9), Network(1e-2, 1e9)
    assert best_bucket(layers, 0.03, 8, quick) < best_bucket(layers, 0.03, 8, slow)


def test_efficiency_falls_with_workers():
    layers = [Layer(1 << 20, 1e-3) for _ in range(20)]
    found = [step(layers, 0.01, 2**i, Network(1e-5, 1e9)).efficiency for i in range(13)]
    assert found == sorted(found, reverse=True) and found[0] == 1 and found[-1] < 1


def test_fit_finds_the_network_back():
    sizes = [1 << i for i in range(10, 24, 2)]
    network = Network(3e-4, 2e8)
    found = fit(sizes, [all_reduce(n, 4, network, "ring") for n in sizes], 4)
    assert found.latency == pytest.approx(3e-4, rel=1e-6) and found.bandwidth == pytest.approx(2e8, rel=1e-6)


def test_layers_of_a_network_follow_its_ops():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    layers, forward = layers_of(model, (4,), batch=10, rate=1.0)
    with_weights = [layer for layer in layers if layer.gradient_bytes]
    assert [layer.gradient_bytes for layer in with_weights] == [(8 * 2 + 2) * 4, (4 * 8 + 8) * 4]  # the last layer first
    assert sum(layer.backward for layer in with_weights) < 2 * forward < 2.5 * sum(layer.backward for layer in layers)
    assert np.isclose(layers_of(model, (4,), 20, 1.0)[1], 2 * forward)


def test_mistakes_are_named():
    layers = [Layer(1, 1.0)]
    for call, match in (
        (lambda: Network(-1, 1), "latency"),
        (lambda: Network(0, 0), "bandwidth"),
        (lambda: all_reduce(1, 0, SLOW), "0 workers"),
        (lambda: all_reduce(1, 2, SLOW, "star"), "algorithm='star'"),
        (lambda: step([], 1, 2, SLOW), "no layers"),
        (lambda: step(layers, 1, 2, SLOW, 0), "bucket_bytes=0"),
        (lambda: fit([1], [1.0], 2), "two different sizes"),
        (lambda: layers_of(None, (1,), 0, 1.0), "batch=0"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()
