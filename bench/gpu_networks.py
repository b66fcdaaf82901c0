"""Whole networks on a GPU beside PyTorch's with the same weights: inference, eager and compiled, and training steps.

Ours is replayed as a CUDA graph where it is compiled. PyTorch's twins are channels-last; `torch.compile` runs with the mode
"reduce-overhead", which replays CUDA graphs too, and only where the part's time allows, for it compiles for tens of seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import graftwork as gw
from graftwork import nn, zoo
from graftwork.nn import functional as F

from .gpu_measure import Bench, Budget, OutOfTime, difference, set_precision, summary_of
from .layers import NETWORKS, build, picture

BATCHES = (1, 32, 256)
COMPILED_BATCH = 32
TRAINED = {"resnet20": 128, "resnet50": 64}  # batch sizes


def networks(bench: Bench, budget: Budget) -> dict:
    """Inference of the four networks, eager and compiled, at several batch sizes, beside PyTorch's eager twins."""
    rows, left_out = [], 0
    for name in NETWORKS:
        model = build(name).eval()
        peer = twin_of(bench, name, model)
        model = model.to("cuda")
        for dtype in ("float32", "float16"):
            model = model.astype(dtype)
            for batch in BATCHES:
                if not budget.left():
                    left_out += 1
                    continue
                rows.append(inference_row(bench, name, model, peer, batch, dtype))
    return {"rows": rows, "summary": _both(rows), "left_out": left_out}


def _both(rows: list[dict]) -> dict[str, str]:
    return summary_of(rows) | summary_of(rows, "compiled_gain", "our eager time over our compiled time")


def twin_of(bench: Bench, name: str, model: Any) -> Any:
    """PyTorch's network with our weights; None without PyTorch."""
    if bench.torch is None:
        return None
    if name == "resnet20":
        from .resnet20 import torch_twin

        made = torch_twin(model)
    else:
        from .peers import twin

        made = twin(name, model)
    return made.to("cuda").to(memory_format=bench.torch.channels_last)


def inference_row(bench: Bench, name: str, model: Any, peer: Any, batch: int, dtype: str) -> dict:
    """Eager and compiled, and the peer's eager time; the difference is that of the compiled results."""
    set_precision(bench, dtype)
    pictures = picture(batch).astype(dtype)
    x, fast = gw.tensor(pictures, device="cuda"), gw.compile(model)
    with gw.no_grad():
        eager = bench.seconds(lambda: model(x), 0.3)
        compiled = bench.seconds(lambda: fast(x), 0.3)
        logits = fast(x).numpy()
    row: dict[str, Any] = {"network": name, "batch": batch, "dtype": dtype, "ms": eager * 1e3, "compiled_ms": compiled * 1e3,
                           "images_per_second": batch / min(eager, compiled), "compiled_gain": eager / compiled}  # fmt: skip
    if peer is None:
        return row
    torch = bench.torch
    peer, tx = peer.to(getattr(torch, dtype)), _peer_pictures(torch, pictures)
    with torch.inference_mode():
        theirs = bench.seconds(lambda: peer(tx), 0.3)
        expected = peer(tx).float().cpu().numpy()
    return row | {"peer_ms": theirs * 1e3, "ratio": theirs / min(eager, compiled), "difference": difference(logits, expected)}


def _peer_pictures(torch: Any, pictures: np.ndarray) -> Any:
    return torch.tensor(pictures.transpose(0, 3, 1, 2)).to("cuda").contiguous(memory_format=torch.channels_last)


# -- compiled against compiled -----------------------------------------------------------------------------------------


def compiled(bench: Bench, budget: Budget) -> dict:
    """The four networks in float16 at one batch size: ours compiled beside `torch.compile`."""
    rows, left_out = [], 0
    for name in NETWORKS:
        if not budget.left():
            left_out += 1
            continue
        model = build(name).eval()
        peer = twin_of(bench, name, model)
        row = inference_row(bench, name, model.to("cuda").astype("float16"), peer, COMPILED_BATCH, "float16")
        if peer is not None:
            peer_ms = _compiled_peer(bench, budget, peer, picture(COMPILED_BATCH).astype("float16"))
            if peer_ms is None:
                left_out += 1
            else:
                row |= {"peer_compiled_ms": peer_ms, "compiled_ratio": peer_ms / row["compiled_ms"]}
        rows.append(row)
    summary = _both(rows) | summary_of(rows, "compiled_ratio", "torch.compile's time over our compiled time")
    return {"rows": rows, "summary": summary, "left_out": left_out}


def _compiled_peer(bench: Bench, budget: Budget, peer: Any, pictures: np.ndarray) -> float | None:
    """Milliseconds of `torch.compile`; None where the time ran out."""
    torch = bench.torch
    try:
        with budget.limit(), torch.inference_mode():
            tx, fast = _peer_pictures(torch, pictures), torch.compile(peer, mode="reduce-overhead")
            return bench.seconds(lambda: fast(tx), 0.3) * 1e3
    except OutOfTime:
        return None


# -- training ----------------------------------------------------------------------------------------------------------


def training(bench: Bench, budget: Budget) -> dict:
    """A step of SGD with momentum (forward, backward, update): eager, compiled, compiled in mixed precision."""
    rows, left_out = [], 0
    for name, batch in TRAINED.items():
        for dtype in ("float32", "mixed"):
            if not budget.left():
                left_out += 1
                continue
            rows.append(training_row(bench, budget, name, batch, dtype))
    return {"rows": rows, "summary": _both(rows), "left_out": left_out}


def training_data(name: str, batch: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """The network in training mode, pictures and labels."""
    gw.manual_seed(0)
    rng = np.random.default_rng(0)
    if name == "resnet20":
        pictures, classes = rng.standard_normal((batch, 32, 32, 3), np.float32), 10
    else:
        pictures, classes = picture(batch), 1000
    model = zoo.create("resnet20") if name == "resnet20" else build(name)
    return model.train(), pictures, rng.integers(0, classes, batch)


def training_row(bench: Bench, budget: Budget, name: str, batch: int, dtype: str) -> dict:
    """Mixed precision is bfloat16 where it is supported, else float16 (without loss scaling: the time is what counts here)."""
    set_precision(bench, "float32")
    model, pictures, labels = training_data(name, batch)
    peer = twin_of(bench, name, model)
    model = model.to("cuda")
    low = "bf16" if bench.supports("bfloat16") else "fp16"
    optimizer = nn.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    x, y = gw.tensor(pictures, device="cuda"), gw.tensor(labels, device="cuda")

    def step(x: gw.Tensor, y: gw.Tensor) -> gw.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    row: dict[str, Any] = {"network": name, "batch": batch, "dtype": dtype if dtype == "float32" else low}
    first = None
    if dtype == "float32":
        first = step(x, y).item()
        eager = bench.seconds(lambda: step(x, y), 0.5)
        row["ms"] = eager * 1e3
    fast = gw.compile(step, None if dtype == "float32" else low)
    loss = fast(x, y).item()
    ours = bench.seconds(lambda: fast(x, y), 0.5)
    row |= {"compiled_ms": ours * 1e3, "images_per_second": batch / ours}
    if "ms" in row:
        row["compiled_gain"] = row["ms"] / row["compiled_ms"]
    if peer is None:
        return row
    their_step, their_first = _peer_step(bench, peer, pictures, labels, None if dtype == "float32" else low)
    theirs = bench.seconds(their_step, 0.5)
    row |= {"peer_ms": theirs * 1e3, "ratio": theirs / ours}
    return row | {"loss_difference": abs((loss if first is None else first) - their_first)}


def _peer_step(bench: Bench, peer: Any, pictures: np.ndarray, labels: np.ndarray, low: str | None) -> tuple[Callable, float]:
    """The peer's step, and the loss of its first one."""
    torch = bench.torch
    peer = peer.train().requires_grad_(True)
    optimizer = torch.optim.SGD(peer.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    tx, ty = _peer_pictures(torch, pictures), torch.tensor(labels).to("cuda")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}[low]

    def step() -> Any:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=dtype, enabled=low is not None):
            loss = torch.nn.functional.cross_entropy(peer(tx), ty)
        loss.backward()
        optimizer.step()
        return loss

    return step, step().item()


PARTS = {"networks": networks, "compiled": compiled, "training": training}
