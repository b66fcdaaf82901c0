"""Several hosts on one machine: network namespaces with links of limited bandwidth. Linux, as root, with iproute2.

    python scripts/hosts.py measure --mbit 200     # all-reduces of several sizes over 4 hosts, beside the cost model
    python scripts/hosts.py cut --mbit 200         # train on 4 hosts, cut one off: who is blamed, what starts again

Each host is a namespace with one end of a veth pair. The other ends meet in a bridge in a namespace of its own, so nothing
of the machine's own network changes. Bandwidth is tbf's. Added latency needs the kernel's netem (CONFIG_NET_SCH_NETEM); where
it is missing, --delay ends with tc's message. MPICH's hydra starts ranks through a launcher that enters the namespace, not ssh.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HOSTS, NET, HUB = 4, "10.77.0.", "gwhub"
LAUNCHER = """#!/bin/sh
# hydra calls it like ssh: options, a host, a command
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec ip netns exec gwhost${host##*.} unshare --uts sh -c "hostname gwhost${host##*.}; $*"
"""


def ip(*words: str, inside: str | None = None, check: bool = True) -> None:
    command = ["ip", "netns", "exec", inside, *words] if inside else list(words)
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def hosts(mbit: float, delay: float = 0.0, count: int = HOSTS) -> Iterator[None]:
    """The namespaces, as long as the block runs."""
    names = [f"gwhost{i}" for i in range(1, count + 1)]
    try:
        ip("ip", "netns", "add", HUB)
        ip("ip", "link", "add", "br0", "type", "bridge", inside=HUB)
        ip("ip", "addr", "add", f"{NET}254/24", "dev", "br0", inside=HUB)
        ip("ip", "link", "set", "br0", "up", inside=HUB)
        ip("ip", "link", "set", "lo", "up", inside=HUB)
        for i, name in enumerate(names, 1):
            ip("ip", "netns", "add", name)
            ip("ip", "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name, inside=HUB)
            ip("ip", "link", "set", f"port{i}", "master", "br0", "up", inside=HUB)
            ip("ip", "addr", "add", f"{NET}{i}/24", "dev", "eth0", inside=name)
            for device in ("eth0", "lo"):
                ip("ip", "link", "set", device, "up", inside=name)
            limit = ["rate", f"{mbit}mbit", "burst", "64kb", "latency", "100ms"]
            ip("tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "tbf", *limit, inside=name)
            ip("tc", "qdisc", "add", "dev", f"port{i}", "root", "handle", "1:", "tbf", *limit, inside=HUB)
            if delay:
                ip("tc", "qdisc", "add", "dev", "eth0", "parent", "1:1", "netem", "delay", f"{delay}ms", inside=name)
        yield
    finally:
        for name in (*names, HUB):
            ip("ip", "netns", "del", name, check=False)


def environment(folder: Path, count: int = HOSTS) -> dict[str, str]:
    """What makes MPICH use the namespaces: our launcher, TCP over their link, no shared memory between ranks."""
    launcher = folder / "enter"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    (folder / "hosts").write_text("".join(f"{NET}{i}:1\n" for i in range(1, count + 1)))
    return os.environ | {
        "HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": str(launcher), "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0",
        "MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_POLLS_BEFORE_YIELD": "10",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip


WORKER = """
import json, sys, time
import numpy as np
from graftwork.plugins.model_parallel.mesh import Mesh
mesh = Mesh(data=4)
found = []
for size in (1 << 10, 1 << 14, 1 << 17, 1 << 20):
    send, receive = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)
    times = []
    mesh.data.all_reduce(send, receive, 'a measurement')
    for _ in range(3):
        start = time.perf_counter()
        mesh.data.all_reduce(send, receive, 'a measurement')
        times.append(time.perf_counter() - start)
    assert (receive == 4).all()
    found.append((size, min(times)))
if mesh.rank == 0:
    print(json.dumps(found))
"""


def measure(folder: Path, mbit: float) -> None:
    """All-reduces over the hosts, and what the cost model says: with the nominal bandwidth, and fitted on two sizes."""
    from graftwork.plugins.data_parallel.cost import Network, all_reduce, fit
    from graftwork.plugins.data_parallel.launch import find_mpiexec

    (folder / "worker.py").write_text(WORKER)
    command = ["ip", "netns", "exec", HUB, find_mpiexec(), "-localhost", f"{NET}254", "-f", str(folder / "hosts"), "-n", "4",
               sys.executable, str(folder / "worker.py")]  # fmt: skip
    run = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=540)
    if run.returncode:
        sys.exit(f"mpiexec ended with {run.returncode}:\n{run.stderr[-3000:]}")
    found = json.loads(run.stdout.strip().splitlines()[-1])
    ends = [found[0], found[-1]]
    fitted = fit([n for n, _ in ends], [t for _, t in ends], HOSTS)
    nominal = Network(fitted.latency, mbit * 1e6 / 8)
    print(f"fitted: latency {fitted.latency * 1e6:.0f} us, {fitted.bandwidth * 8e-6:.0f} Mbit/s (the links have {mbit:g})")
    for size, seconds in found:
        ring, best = all_reduce(size, HOSTS, fitted, "ring"), all_reduce(size, HOSTS, nominal)
        print(f"{size:>9} bytes  measured {seconds * 1e3:9.2f} ms   fitted ring {ring * 1e3:9.2f}   nominal {best * 1e3:9.2f}")


def launch_command(folder: Path, ranks: int, *options: str) -> list[str]:
    """`graftwork launch` on the first `ranks` hosts, from the hub; a script and its arguments follow."""
    name = f'hostname {NET}254; exec "$@"'  # hydra tells its proxies to connect to the host's name
    return ["ip", "netns", "exec", HUB, "unshare", "--uts", "sh", "-c", name, "sh", sys.executable, "-m", "graftwork.cli",
            "launch", "-n", str(ranks), "--hosts", str(folder / "hosts"), "--threads", "1", *options]  # fmt: skip


def cut(folder: Path, script: list[str], seconds: float) -> None:
    """Start a training script on all hosts, cut the last one off after `seconds`, and let the launcher go on without it.

    Without a script it is the example, cut off `seconds` after its first checkpoint, which it goes on from."""
    checkpoint = folder / "run.h5"
    example = str(Path(__file__).parents[1] / "examples" / "data_parallel.py")
    command = script or [example, "--dtype", "float32", "--epochs", "4", "--checkpoint", str(checkpoint)]
    run = subprocess.Popen([*launch_command(folder, HOSTS, "--timeout", "60", "--elastic"), *command], env=environment(folder))
    while not script and run.poll() is None and not checkpoint.exists():
        time.sleep(0.1)
    time.sleep(seconds)
    print(f"cutting off gwhost{HOSTS}", flush=True)
    ip("ip", "link", "set", f"port{HOSTS}", "down", inside=HUB)
    sys.exit(run.wait())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "cut"])
    parser.add_argument("--mbit", type=float, default=200, help="bandwidth of each host's link")
    parser.add_argument("--delay", type=float, default=0, help="milliseconds added to each packet (needs netem)")
    parser.add_argument("--after", type=float, default=5, help="cut: seconds before the host is cut off")
    parser.add_argument("script", nargs="*", help="cut: a script of your own, and its arguments")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("network namespaces need root; run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces go as well
    with tempfile.TemporaryDirectory(prefix="graftwork-hosts-") as folder, hosts(options.mbit, options.delay):
        if options.what == "measure":
            measure(Path(folder), options.mbit)
        else:
            cut(Path(folder), options.script, options.after)


if __name__ == "__main__":
    main()
