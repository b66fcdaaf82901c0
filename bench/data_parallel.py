"""Two ranks of one thread beside one process of two, overlap beside none, PyTorch's DDP, and the all-reduce beside MPI's.

    python -m bench.data_parallel [--steps 10] [--batch 128] [--mbit 100] [--write]
    python -m bench.data_parallel --quick                   # does it run? one round of two steps of 16 pictures

Every candidate is a start of its own (ranks cannot share a process) on the same made-up pictures, ResNet-20 and batch; they
take turns `--rounds` times, and the median step of all rounds counts. Steps are timed between barriers. "2 hosts" are ranks in
network namespaces with links of `--mbit` (scripts/hosts.py; needs root, is left out otherwise); their steps stand beside what
the cost model makes of a rank's share computed alone and of all-reduces measured on the same links.
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

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import hosts

HERE = ["1 process, 2 threads", "2 ranks", "2 ranks, no overlap", "2 ranks, eager", "PyTorch DDP, 2 ranks"]
APART = ["2 hosts", "2 hosts, no overlap", "PyTorch DDP, 2 hosts", "a rank's share, alone"]
SIZES = {"2 ranks": (1 << 16, 1 << 20, 1 << 24), "2 hosts": (1 << 18, 1 << 20)}  # bytes; on links: more than their burst
PORT = 29511  # in a namespace of its own nobody else has it


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
    rates = bandwidth(group.comm, options.sizes) if options.sizes else {}
    if group.main:
        size = parallel.reducer.bucket_bytes if parallel is not None else 0
        Path(options.to).write_text(json.dumps({"seconds": times, "bandwidth": rates, "bucket_bytes": size}))


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


def bandwidth(comm, sizes: list[int]) -> dict[str, dict[str, float]]:
    """Gigabytes a second by buffer size in bytes: our time-limited wait, and MPI_Allreduce itself."""
    from mpi4py import MPI

    found = {}
    for size in sizes:
        send, receive = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)
        runs = {
            "ours": lambda s=send, r=receive: comm.wait(comm.start_sum(s, r), "bandwidth"),
            "MPI_Allreduce": lambda s=send, r=receive: MPI.COMM_WORLD.Allreduce(s, r),
        }
        rates = {}
        for name, run in runs.items():
            run()
            times = []
            for _ in range(5):
                MPI.COMM_WORLD.Barrier()
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            rates[name] = size / 1e9 / float(np.median(times))
        found[str(size)] = rates
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
    apart = "hosts" in name
    with tempfile.TemporaryDirectory() as folder, hosts.hosts(options.mbit, 0.0, 2) if apart else contextlib.nullcontext():
        to = Path(folder) / "result.json"
        batch = options.batch // 2 if name == APART[-1] else options.batch
        common = ["--steps", str(options.steps), "--batch", str(batch), "--to", str(to)]
        if name.startswith("PyTorch"):
            start_theirs(common, apart)
        else:
            start_ours(name, common, Path(folder))
        return json.loads(to.read_text())


def start_theirs(common: list[str], apart: bool) -> None:
    where = {"MASTER_ADDR": f"{hosts.NET}1", "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": "eth0"}
    where = where if apart else {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "bench.data_parallel", "--part", "theirs", *common]
    enter = [["ip", "netns", "exec", f"gwhost{r + 1}"] if apart else [] for r in range(2)]
    environment = os.environ | where | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*enter[r], *command, "--rank", str(r)], env=environment) for r in range(2)]
    if any([p.wait() for p in ranks]):
        raise RuntimeError("PyTorch DDP failed; see its output above")


def start_ours(name: str, common: list[str], folder: Path) -> None:
    environment = dict(os.environ)
    if "hosts" in name:
        environment = hosts.environment(folder, 2)
        launch = hosts.launch_command(folder, 2, "--engine", "mpi")
    else:
        ranks, threads = (2, 1) if "2 ranks" in name else (1, 1) if "alone" in name else (1, 2)
        launch = [sys.executable, "-m", "graftwork.cli", "launch", "--engine", "mpi", "-n", str(ranks), "--threads",
                  str(threads)]  # fmt: skip
    flags = ["--compile"] * ("eager" not in name) + ["--no-overlap"] * ("no overlap" in name)
    flags += ["--sizes", *map(str, SIZES[name])] if name in SIZES else []
    subprocess.run([*launch, str(Path(__file__).with_name("data_parallel_rank.py")), *flags, *common], check=True,
                   env=environment)  # fmt: skip


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--mbit", type=float, default=100, help="bandwidth of the links of 2 hosts")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results")
    parser.add_argument("--part", choices=("all", "theirs"), default="all", help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--no-overlap", dest="overlap", action="store_false", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as fast the first is as the second."""
    pairs = {
        "2 ranks, of 1 process's rate (at least 0.9)": ("2 ranks", "1 process, 2 threads"),
        "overlap, of none's rate": ("2 ranks", "2 ranks, no overlap"),
        "2 ranks, of PyTorch DDP's rate": ("2 ranks", "PyTorch DDP, 2 ranks"),
        "2 hosts: overlap, of none's rate": ("2 hosts", "2 hosts, no overlap"),
        "2 hosts, of PyTorch DDP's rate": ("2 hosts", "PyTorch DDP, 2 hosts"),
    }
    return {what: seconds[b] / seconds[a] for what, (a, b) in pairs.items() if a in seconds}


def predicted(compute: float, batch: int, bucket_bytes: int, rates: dict[str, dict]) -> dict[str, float]:
    """Seconds a step on 2 hosts by the cost model: `compute` is what a rank takes for its share when it is alone."""
    from graftwork import zoo
    from graftwork.plugins.data_parallel import cost

    layers, forward = cost.layers_of(zoo.create("resnet20"), (32, 32, 3), batch, 1.0)
    whole = forward + sum(layer.backward for layer in layers)
    layers = [cost.Layer(layer.gradient_bytes, layer.backward * compute / whole) for layer in layers]
    network = cost.fit([int(s) for s in rates], [int(s) / 1e9 / pair["ours"] for s, pair in rates.items()], 2)
    return {name: cost.step(layers, forward * compute / whole, 2, network, bucket_bytes, overlap).seconds
            for name, overlap in (("2 hosts", True), ("2 hosts, no overlap", False))}  # fmt: skip


def main() -> None:
    options = arguments()
    if options.part == "theirs":
        return theirs(options)
    if options.quick:
        options.rounds, options.steps, options.batch = 1, 2, 16
    names = HERE if os.geteuid() else HERE + APART
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rates: dict[str, dict] = {}
    buckets = 1
    for _ in range(options.rounds):
        for name in names:
            result = start(name, options)
            seconds[name] += result["seconds"]
            rates |= {name: result["bandwidth"]} if result.get("bandwidth") else {}
            buckets = result["bucket_bytes"] if name == "2 hosts" else buckets
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    found = ratios(medians)
    for name, value in medians.items():
        print(f"{name:24} {value * 1e3:8.1f} ms a step  {options.batch / value:8.1f} images/s")
    for name, value in found.items():
        print(f"{name:44} {value:.3f}")
    for name, sizes in rates.items():
        for size, pair in sizes.items():
            told = f"{pair['ours'] * 1e3:.1f} MB/s; MPI_Allreduce {pair['MPI_Allreduce'] * 1e3:.1f} MB/s"
            print(f"{name}, all-reduce of {int(size) >> 10:>6} KiB: {told}")
    model = predicted(medians[APART[-1]], options.batch // 2, buckets, rates["2 hosts"]) if APART[0] in medians else {}
    for name, value in model.items():
        print(f"{name:24} {value * 1e3:8.1f} ms a step predicted, {medians[name] * 1e3:8.1f} measured")
    if options.write:
        settings = {"batch": options.batch, "steps": options.steps, "rounds": options.rounds, "mbit": options.mbit}
        results = {"seconds": medians, "ratios": found, "bandwidth": rates, "predicted": model}
        write("data_parallel", {"settings": settings, **results})
    return None


if __name__ == "__main__":
    main()
