"""`graftwork launch`: starts the ranks of a run through mpiexec and watches over them.

MPI's own reaction to a rank that dies is to kill all others, without a word about which and where. Here mpiexec is told not to;
every rank keeps its place (step, tensor) in a file, and the launcher looks whether its process is there still. What it finds
goes into a file that waiting ranks look for, so that all of them end with the name of the rank that failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ...errors import ConfigError, MissingDependency
from .communicator import read_status
from .group import LAUNCHED

LOOK = 0.2  # seconds between looks at the ranks
LAST_WORDS = 10.0  # seconds that the others get to end, once a rank has failed


def find_mpiexec() -> str:
    """mpiexec beside this Python, or on the path. MissingDependency if there is none, or no mpi4py."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.is_file() else shutil.which("mpiexec")
    missing = [name for name, there in (("mpi4py", find_spec("mpi4py")), ("mpiexec (package mpich)", found)) if not there]
    if missing or found is None:
        raise MissingDependency(f"graftwork launch needs {' and '.join(missing)}: pip install 'graftwork[mpi]'")
    return found


class Run:
    """One start of all ranks. `lost` are those that died or had to be ended, `errors` what the others said."""

    def __init__(self, ranks: int, command: list[str], hosts: str | None, environment: dict[str, str]):
        self.ranks, self.command, self.hosts, self.environment = ranks, command, hosts, environment
        self.lost: dict[int, str] = {}
        self.errors: dict[int, str] = {}
        self.failure = ""

    def run(self) -> int:
        """Start, watch, return the exit status."""
        where = ["-f", self.hosts] if self.hosts else []
        with tempfile.TemporaryDirectory(prefix="graftwork-run-") as folder:
            self.folder = Path(folder)
            arguments = [find_mpiexec(), "-disable-auto-cleanup", *where, "-n", str(self.ranks), *self.command]
            self.process = subprocess.Popen(arguments, env=self.environment | {"GRAFTWORK_RUN": folder}, start_new_session=True)
            before = signal.signal(signal.SIGTERM, _interrupt)
            try:
                return self._watch()
            finally:
                self._end()
                signal.signal(signal.SIGTERM, before)

    def _watch(self) -> int:
        deadline: float | None = None
        while self.process.poll() is None:
            time.sleep(LOOK)
            self._look()
            if self.failure and deadline is None:
                deadline = time.monotonic() + LAST_WORDS
                self._tell()
            if deadline is not None and (time.monotonic() > deadline or not self._running()):
                break
        self._look()
        if self.failure:
            for status in self._running():
                self.lost.setdefault(status["rank"], f"{_place(status)} did not end: it hangs")
        return 1 if self.failure else self.process.returncode or 0

    def _statuses(self) -> list[dict[str, Any]]:
        found = [read_status(self.folder / f"rank-{r}") for r in range(self.ranks)]
        return [status for status in found if status]

    def _running(self) -> list[dict[str, Any]]:
        return [s for s in self._statuses() if "ended" not in s and (s["host"] != socket.gethostname() or _alive(s["pid"]))]

    def _look(self) -> None:
        """Find ranks whose process is gone without having ended, and those that ended with an error."""
        dead: list[str] = []
        for status in self._statuses():
            rank = status["rank"]
            if "ended" not in status and status["host"] == socket.gethostname() and not _alive(status["pid"]):
                status = read_status(self.folder / f"rank-{rank}") or status  # it may have ended just now
                if "ended" not in status and rank not in self.lost:
                    self.lost[rank] = f"{_place(status)} died"
                    dead.append(self.lost[rank])
            if status.get("ended") in ("gave up", "failed") and rank not in self.errors:
                self.errors[rank] = f"{_place(status)} stopped: {status.get('error', '')}"
                self.failure = self.failure or self.errors[rank]
                if status["ended"] == "failed":
                    self.lost[rank] = self.errors[rank]
        self.failure = self.failure or "; ".join(dead)  # all that went at once: MPI may have taken others along

    def _tell(self) -> None:
        """Say what failed, on the terminal and to the ranks that wait."""
        click.echo(f"graftwork launch: {self.failure}", err=True)
        temporary = self.folder / "failed.partial"
        temporary.write_text(self.failure)
        temporary.rename(self.folder / "failed")

    def _end(self) -> None:
        """End mpiexec and the ranks of this machine that are left."""
        left = self._running()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(2.0)
            for status in left:
                if status["host"] == socket.gethostname() and _alive(status["pid"]):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(status["pid"], number)


def _interrupt(number: int, frame: Any) -> None:
    """A launcher that is asked to end takes its ranks with it."""
    sys.exit(128 + number)


def _alive(pid: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        pass
    if os.path.isdir("/proc/self"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _place(status: dict[str, Any]) -> str:
    tensor = f", at {status['tensor']}" if status.get("tensor") else ""
    return f"rank {status['rank']} (host {status['host']}, process {status['pid']}, step {status['step']}{tensor})"


def run(ranks: int, script: str, arguments: list[str], hosts: str | None = None, threads: int | None = None,
        elastic: bool = False, restarts: int = 3, **settings: Any) -> int:  # fmt: skip
    """Start `ranks` processes of a script; see `graftwork launch --help`. Returns the exit status."""
    if ranks < 1:
        raise ConfigError(f"launch: {ranks} ranks; expected at least 1")
    if not Path(script).is_file():
        raise ConfigError(f"launch: there is no script {script}; check the path")
    if hosts is not None and not Path(hosts).is_file():
        raise ConfigError(f"launch: there is no file {hosts}; --hosts takes a file with a host a line, as mpiexec -f does")
    command = [sys.executable, "-m", "graftwork.plugins.data_parallel.worker", script, *arguments]
    environment = os.environ | {
        LAUNCHED: json.dumps({k: v for k, v in settings.items() if v is not None}),
        "MPIR_CVAR_POLLS_BEFORE_YIELD": os.environ.get("MPIR_CVAR_POLLS_BEFORE_YIELD", "10"),  # more ranks than cores
    }
    for restart in range(restarts + 1):
        cores = threads or (max(1, len(os.sched_getaffinity(0)) // ranks) if hosts is None else 0)
        attempt = Run(ranks, command, hosts, environment | {"GRAFTWORK_RANK_THREADS": str(cores),
                                                           "GRAFTWORK_RESTART": str(restart)})  # fmt: skip
        status = attempt.run()
        left = ranks - len(attempt.lost) or ranks - 1  # where all went down together, one took the others along
        if status == 0 or not elastic or not attempt.lost or left < 1 or restart == restarts:
            return status
        lost = "; ".join(attempt.lost.values())
        click.echo(f"graftwork launch: starting again with {left} of {ranks} ranks; lost: {lost}", err=True)
        ranks = left
    return 1


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-n", "--ranks", type=int, required=True, help="How many processes.")
@click.option("--hosts", help="A file with the machines, one a line (mpiexec's -f).")
@click.option("--engine", type=click.Choice(["auto", "mpi", "nccl"]), help="What sums gradients; auto: NCCL on GPUs.")
@click.option("--threads", type=int, help="Threads a process; by default the machine's cores shared out.")
@click.option("--timeout", type=float, help="Seconds that a rank waits for others before it names them (300).")
@click.option("--elastic", is_flag=True, help="After a failure start again with the ranks that are left; the script resumes.")
@click.option("--restarts", default=3, show_default=True, help="How often --elastic does that.")
@click.option("--timeline", type=click.Path(), help="Write the last steps as Chrome trace JSON, and a page beside it.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(ranks, hosts, engine, threads, timeout, elastic, restarts, timeline, script, arguments) -> None:
    """Run a script as several processes that train one model together."""
    timeline = None if timeline is None else str(Path(timeline).resolve())
    sys.exit(run(ranks, script, list(arguments), hosts, threads, elastic, restarts,
                 engine=engine, timeout=timeout, timeline=timeline))  # fmt: skip
