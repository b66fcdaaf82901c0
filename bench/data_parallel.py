"""Two ranks of one thread beside one process of two, overlap beside none, PyTorch's DDP, and the all-reduce beside MPI's.

    python -m bench.data_parallel [--steps 10] [--batch 128] [--write]

Every candidate is a start of its own (ranks cannot share a process) on the same made-up pictures, ResNet-20 and batch; they
take turns `--rounds` times, and the median step of all rounds counts. Steps are timed between barriers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .common import write


def batch_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, size)


def ours(options: argparse.Namespace) -> None:
    """Seconds a step of our ranks, by rank 0 to `options.to`."""
    import graftwork as gw
    from graftwork import nn, zoo
    from graftwork.nn import functional as F
    from graftwork.plugins import data_parallel as dp

    dp.configure(overlap=options.overlap, sync_batch_norm=False)
    group = dp.start()
    gw.manual_seed(0)
    model = zoo.create("resnet20").train()
    optimizer = nn.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, labels = (gw.tensor(np.array_split(a, group.size)[group.rank]) for a in batch_of(options.batch))
    parallel = dp.DataParallel(model, optimizer) if group.size > 1 else None  # one process trains as it would without us

    def body(x, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        if parallel is not None:
            parallel.reduce()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step = gw.compile(body) if options.compile else body
    with parallel or contextlib.nullcontext():
        times = timed(lambda: step(x, labels).item(), lambda: group.comm.gather(0, "a barrier"), options.steps)
    rates = bandwidth(group.comm) if options.bandwidth else {}
    if group.main:
        Path(options.to).write_text(json.dumps({"seconds": times, "bandwidth": rates}))


def timed(step, barrier, count: int) -> list[float]:
    for _ in range(3):
        step()
    times = []
    for _ in range(count):
        barrier()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def bandwidth(comm) -> dict[str, dict[str, float]]:
    """Gigabytes a second by buffer size: our time-limited wait, and MPI_Allreduce itself."""
    from mpi4py import MPI

    found = {}
    for size in (1 << 16, 1 << 20, 1 << 24):
        send, receive = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)
        runs = {
            "ours": lambda s=send, r=receive: comm.wait(comm.start_sum(s, r), "bandwidth"),
            "MPI_Allreduce": lambda s=send, r=receive: MPI.COMM_WORLD.Allreduce(s, r),
        }
        rates = {}
        for name, run in runs.items():
            run()
            times = []
            for _ in range(10):
                MPI.COMM_WORLD.Barrier()
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            rates[name] = size / 1e9 / float(np.median(times))
        found[f"{size >> 10} KiB"] = rates
    return found


def theirs(options: argparse.Namespace) -> None:
    """One rank of PyTorch's DistributedDataParallel over gloo, with one thread, channels last."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import graftwork as gw
    from graftwork import zoo

    from .resnet20 import torch_twin

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=options.rank, world_size=2)
    gw.manual_seed(0)
    model = DistributedDataParallel(torch_twin(zoo.create("resnet20").train()).to(memory_format=torch.channels_last).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, labels = (torch.tensor(np.array_split(a, 2)[options.rank]) for a in batch_of(options.batch))
    x = x.permute(0, 3, 1, 2)  # NHWC in memory: channels last

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    times = timed(step, dist.barrier, options.steps)
    if options.rank == 0:
        Path(options.to).write_text(json.dumps({"seconds": times}))
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(name: str, options: argparse.Namespace) -> dict:
    """Run one candidate and read what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        to = str(Path(folder) / "result.json")
        common = ["--steps", str(options.steps), "--batch", str(options.batch), "--to", to]
        if name == "PyTorch DDP, 2 ranks":
            environment = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "bench.data_parallel", "--part", "theirs", *common]
            ranks = [subprocess.Popen([*command, "--rank", str(r)], env=environment) for r in range(2)]
            if any([p.wait() for p in ranks]):
                raise RuntimeError(f"{name} failed; see its output above")
        else:
            ranks_of = 1 if name == "1 process, 2 threads" else 2
            script = str(Path(__file__).with_name("data_parallel_rank.py"))
            flags = ["--compile"] * ("eager" not in name) + ["--no-overlap"] * ("no overlap" in name)
            flags += ["--bandwidth"] if name == "2 ranks" else []
            launch = [sys.executable, "-c", "from graftwork.cli import main; main()", "launch", "--engine", "mpi"]
            counts = ["-n", str(ranks_of), "--threads", str(2 // ranks_of)]
            subprocess.run([*launch, *counts, script, *flags, *common], check=True)
        return json.loads(Path(to).read_text())


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results")
    parser.add_argument("--part", choices=("all", "ours", "theirs"), default="all", help=argparse.SUPPRESS)
    for flag in ("--compile", "--bandwidth"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-overlap", dest="overlap", action="store_false", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    if options.part == "theirs":
        return theirs(options)
    names = ["1 process, 2 threads", "2 ranks", "2 ranks, no overlap", "2 ranks, eager", "PyTorch DDP, 2 ranks"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rates: dict = {}
    for _ in range(options.rounds):
        for name in names:
            result = start(name, options)
            seconds[name] += result["seconds"]
            rates = result.get("bandwidth") or rates
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    two = medians["2 ranks"]
    ratios = {
        "2 ranks of 1 process's rate (at least 0.9)": medians["1 process, 2 threads"] / two,
        "overlap of none's rate": medians["2 ranks, no overlap"] / two,
        "2 ranks of PyTorch DDP's rate": medians["PyTorch DDP, 2 ranks"] / two,
    }
    for name, value in medians.items():
        print(f"{name:24} {value * 1e3:8.1f} ms a step  {options.batch / value:8.1f} images/s")
    for name, value in ratios.items():
        print(f"{name:44} {value:.3f}")
    for size, pair in rates.items():
        print(f"all-reduce of {size:>9}: {pair['ours']:.2f} GB/s; MPI_Allreduce {pair['MPI_Allreduce']:.2f} GB/s")
    if options.write:
        write("data_parallel", {"seconds": medians, "ratios": ratios, "bandwidth": rates})
    return None


if __name__ == "__main__":
    main()
