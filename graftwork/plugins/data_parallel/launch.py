"""`graftwork launch`: starts the ranks of a run through mpiexec and watches over them.

MPI's own reaction to a rank that dies is to kill all others, without a word about which and where. Here mpiexec starts a
supervisor for each rank (`supervisor.py`), which tells the launcher where its rank is and how it ended (`monitor.py`). What
the launcher finds goes back to all supervisors and on to the ranks: those that wait end with the name of the one that failed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click

from ...errors import ConfigError, MissingDependency
from . import supervisor
from .group import LAUNCHED, Settings
from .monitor import Monitor

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


class Place(NamedTuple):
    """Where a rank runs: a host of the hosts file, and what else its line says."""

    host: str
    options: str = ""


def read_hosts(path: str | Path, ranks: int) -> list[Place]:
    """The place of each rank by a hosts file: a host a line, `host` or `host:ranks`, and options of mpiexec's. A host's ranks
    are consecutive; more ranks than the file has room for go around once more. ConfigError for a file that is none."""
    rooms: list[tuple[Place, int]] = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if not words:
            continue
        host, _, count = words[0].partition(":")
        if not host or not (count or "1").isdecimal() or int(count or 1) < 1:
            raise ConfigError(f"launch: line {number} of {path} is {line!r}; expected a host, or host:ranks")
        rooms.append((Place(host, words[1] if len(words) > 1 else ""), int(count or 1)))
    if not rooms:
        raise ConfigError(f"launch: {path} names no host; expected one a line, as host or host:ranks")
    around = itertools.cycle([i for i, (_, count) in enumerate(rooms) for _ in range(count)])
    return [rooms[i][0] for i in sorted(itertools.islice(around, ranks))]


def hosts_file(places: list[Place]) -> str:
    """What mpiexec reads: each host with the number of its ranks, in their order."""
    groups = ((place, len(list(same))) for place, same in itertools.groupby(places))
    return "".join(f"{place.host}:{count} {place.options}".rstrip() + "\n" for place, count in groups)


class Run:
    """One start of all ranks. places: of each rank; None: `ranks` on this machine. `lost`: those that failed, and how; it does
    not hold those that ended because others had."""

    def __init__(self, ranks: int, command: list[str], places: list[Place] | None, environment: dict[str, str],
                 patience: float):  # fmt: skip
        self.ranks, self.command, self.places, self.environment = ranks, command, places, environment
        self.patience = patience  # seconds that a start may take
        self.lost: dict[int, str] = {}
        self.cut: set[int] = set()  # those of them whose host is gone
        self.failure = ""

    def run(self) -> int:
        """Start, watch, return the exit status."""
        hosts = [place.host for place in self.places] if self.places else [None] * self.ranks
        with tempfile.TemporaryDirectory(prefix="graftwork-run-") as folder, Monitor(hosts) as self.monitor:
            arguments = [find_mpiexec(), "-disable-auto-cleanup", "-n", str(self.ranks)]
            if self.places:
                Path(folder, "hosts").write_text(hosts_file(self.places))
                arguments += ["-f", str(Path(folder, "hosts"))]
            arguments += [sys.executable, "-I", supervisor.__file__, *self.command]
            self.process = subprocess.Popen(arguments, env=self.environment | {supervisor.LAUNCHER: self.monitor.address},
                                            start_new_session=True)  # fmt: skip
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
                click.echo(f"graftwork launch: {self.failure}", err=True)
                self.monitor.failed = self.failure
            if deadline is not None and (time.monotonic() > deadline or not self._awaited()):
                break
        self._look()
        if self.failure and not self.lost:  # all others gave up because of one that hangs
            self.lost = {rank: f"{self.monitor.place(rank)} did not end: it hangs" for rank in self._awaited()}
            for text in self.lost.values():
                click.echo(f"graftwork launch: {text}", err=True)
        return 1 if self.failure else self.process.returncode or 0

    def _awaited(self) -> list[int]:
        return [rank for rank in self.monitor.running() if rank not in self.lost]

    def _look(self) -> None:
        """Find ranks that died, failed, or are out of reach, and those that gave up."""
        stopped = self.monitor.stopped()
        cut = self.monitor.silent() | self.monitor.missing(self.patience)
        own = self.monitor.dead() | {rank: text for rank, (failed, text) in stopped.items() if failed} | cut
        news = {rank: text for rank, text in own.items() if rank not in self.lost}
        self.lost |= news
        self.cut |= set(cut)
        given_up = [text for rank, (failed, text) in stopped.items() if not failed]
        self.failure = self.failure or "; ".join(news.values()) or "".join(given_up[:1])

    def _end(self) -> None:
        """End what is left: supervisors end their ranks when they hear of it, or when mpiexec ends them."""
        self.monitor.end = True
        if self.failure:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3.0 if self.cut else 2 * LAST_WORDS)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5.0)


def _interrupt(number: int, frame: Any) -> None:
    """A launcher that is asked to end takes its ranks with it."""
    sys.exit(128 + number)


def _left(attempt: Run) -> list[int]:
    """The ranks that a further start can have: without those that failed, and without all of a host that is gone."""
    gone = {attempt.places[rank] for rank in attempt.cut} if attempt.places else set()
    return [rank for rank in range(attempt.ranks)
            if rank not in attempt.lost and not (attempt.places and attempt.places[rank] in gone)]  # fmt: skip


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
    places = None if hosts is None else read_hosts(hosts, ranks)
    for restart in range(restarts + 1):
        cores = threads or (max(1, len(os.sched_getaffinity(0)) // ranks) if places is None else 0)
        own = {"GRAFTWORK_RANK_THREADS": str(cores), "GRAFTWORK_RESTART": str(restart)}
        attempt = Run(ranks, command, places, environment | own, settings.get("timeout") or Settings.timeout)
        status, left = attempt.run(), _left(attempt)
        if status == 0 or not elastic or not attempt.lost or not left or restart == restarts:
            return status
        places = places and [places[rank] for rank in left]
        without = sorted({p.host for p in attempt.places or []} - {p.host for p in places or []})
        fewer = f"{len(left)} of {ranks} ranks" + (f", without host {', '.join(without)}" if without else "")
        click.echo(f"graftwork launch: starting again with {fewer}; lost: {'; '.join(attempt.lost.values())}", err=True)
        ranks = len(left)
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
