"""What mpiexec starts for every rank: it runs the rank, tells the launcher twice a second how it is, and how it ended.

MPI takes other ranks along when one dies, so who was first has to be written down where it happens; and a host that is cut off
says nothing any more, which only regular messages show. mpiexec sees the end of a rank when the launcher has: until then this
process stays. If the launcher falls silent, this side has been cut off, and its rank is ended.

It is run by its path, without Graftwork and with the standard library alone: a start costs milliseconds, and nothing that can
kill a rank is loaded here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

BEAT = 0.5  # seconds between messages
SILENCE = 10.0  # seconds without any after which the other side counts as gone
FOLDER, LAUNCHER = "GRAFTWORK_RUN", "GRAFTWORK_LAUNCHER"  # of a rank and its supervisor; address and key of the launcher
STATUS_BYTES = 512


class Status:
    """Where a rank is, in a file that its supervisor reads: it is there still when the process is not."""

    def __init__(self, folder: str | None, rank: int):
        self._map = None
        if folder:
            path = Path(folder) / f"rank-{rank}"
            path.write_bytes(b" " * STATUS_BYTES)
            with open(path, "r+b") as file:
                self._map = mmap.mmap(file.fileno(), STATUS_BYTES)

    def write(self, where: dict[str, Any]) -> None:
        if self._map is not None:
            text = json.dumps(where).encode()
            self._map[:] = (text if len(text) <= STATUS_BYTES else b"{}").ljust(STATUS_BYTES)


def read_status(path: Path) -> dict[str, Any]:
    """What a rank wrote last; empty while it writes, and before."""
    try:
        return json.loads(path.read_bytes() or b"{}")
    except (ValueError, OSError):  # the rank is writing at this moment
        return {}


class Line:
    """The connection to the launcher. Each message, a line of JSON, is answered by one. OSError when the launcher is gone."""

    def __init__(self, address: str):
        host, port, self._key = json.loads(address)
        self._socket = socket.create_connection((host, port), SILENCE)
        self._file = self._socket.makefile("rw", encoding="utf-8", newline="\n")

    def tell(self, message: dict[str, Any]) -> dict[str, Any]:
        self._file.write(json.dumps({"key": self._key, **message}) + "\n")
        self._file.flush()
        answer = self._file.readline()
        if not answer:
            raise ConnectionError("the launcher closed the connection")
        return json.loads(answer)


class Supervisor:
    """One rank and its line to the launcher."""

    def __init__(self, rank: int, folder: str, command: list[str]):
        self.rank, self.folder, self.last = rank, Path(folder), dict[str, Any]()
        self.line = Line(os.environ[LAUNCHER])
        # The rank talks to mpiexec through file descriptors that it inherits
        self.process = subprocess.Popen(command, env=os.environ | {FOLDER: folder}, close_fds=False)
        self.ended: float | None = None
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()

    def _wait(self) -> None:
        self.process.wait()
        self.ended = time.monotonic()

    def watch(self) -> int:
        """Tell the launcher until the rank has ended well, or the launcher says that all is over. Returns the exit status: 0,
        since the launcher knows the rank's."""
        while True:
            self._waiting.join(BEAT)
            answer = self.line.tell(self._report())
            if answer["failed"]:
                self._spread(answer["failed"])
            if answer["end"] or (self.ended is not None and self.process.returncode == 0):
                return 0
            if self.ended is not None:
                time.sleep(BEAT)  # not before the launcher knows all: mpiexec may then end the others

    def _report(self) -> dict[str, Any]:
        ended = self.ended  # before the status is read: last words come before the end
        self.last = read_status(self.folder / f"rank-{self.rank}") or self.last
        report = {"host": socket.gethostname(), "pid": self.process.pid, "step": 0, "tensor": "", **self.last}
        report["rank"] = self.rank
        return report if ended is None else report | {"exit": self.process.returncode, "ago": time.monotonic() - ended}

    def _spread(self, text: str) -> None:
        """Put what failed where the rank looks while it waits."""
        if not (self.folder / "failed").exists():
            temporary = self.folder / "failed.partial"
            temporary.write_text(text)
            temporary.rename(self.folder / "failed")

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended is None:
                with contextlib.suppress(ProcessLookupError):
                    self.process.send_signal(number)
                self._waiting.join(2.0)


def end_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is gone, however that came."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(command: list[str]) -> int:
    """Run `command` as the rank that mpiexec's environment names."""
    signal.signal(signal.SIGTERM, _interrupt)
    # With -disable-auto-cleanup mpiexec sends it to all others when a process ends, even well. The rank inherits that
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    rank = int(os.environ["PMI_RANK"])
    with tempfile.TemporaryDirectory(prefix=f"graftwork-rank-{rank}-") as folder:
        try:
            supervisor = Supervisor(rank, folder, command)
        except OSError as error:
            host, port, _ = json.loads(os.environ[LAUNCHER])
            print(f"graftwork: rank {rank} (host {socket.gethostname()}) cannot start {command[0]}, or reach the launcher at "
                  f"{host}, port {port}: {error}", file=sys.stderr, flush=True)  # fmt: skip
            return 1
        try:
            return supervisor.watch()
        except OSError as error:
            print(f"graftwork: rank {rank} (host {socket.gethostname()}) has lost its launcher ({error}) and is ended",
                  file=sys.stderr, flush=True)  # fmt: skip
            return 1
        finally:
            supervisor.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
