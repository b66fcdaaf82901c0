"""The launcher's view of its ranks: what their supervisors say, who has failed, and who was only taken along."""

from __future__ import annotations

import hmac
import json
import secrets
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from .supervisor import SILENCE

SETTLE = 0.5  # seconds between the first death and the verdict: those who were taken along are heard by then
GAVE_REASON = ("gave up", "failed")  # ranks that ended with an error and said which
LOOPBACK = "127.0.0.1"
MESSAGE_BYTES = 1 << 16


class Monitor(socketserver.ThreadingTCPServer):
    """Listens to the supervisors of all ranks. hosts: where each rank is started (None: this machine)."""

    daemon_threads, block_on_close = True, False

    def __init__(self, hosts: Sequence[str | None]):
        self.hosts, self.key = hosts, secrets.token_hex(16)
        self.failed, self.end, self.began = "", False, time.monotonic()
        self.reports: dict[int, dict[str, Any]] = {}  # the last of each rank
        self.heard: dict[int, float] = {}
        self.died: dict[int, float] = {}  # when a process ended badly, and without a word
        self._lock = threading.Lock()
        own = _address_towards({host for host in hosts if host is not None})
        super().__init__((own if own == LOOPBACK else "0.0.0.0", 0), _Handler)
        self.address = json.dumps([own, self.server_address[1], self.key])

    def __enter__(self) -> Monitor:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()

    def hear(self, report: dict[str, Any]) -> dict[str, Any]:
        """Note what a supervisor says; the answer to it."""
        with self._lock:
            rank, now = report["rank"], time.monotonic()
            self.reports[rank], self.heard[rank] = report, now
            if report.get("exit", 0) != 0 and report.get("ended") not in GAVE_REASON:
                self.died.setdefault(rank, now - report["ago"])
            return {"failed": self.failed, "end": self.end}

    # -- findings ----------------------------------------------------------------------------------------------------
    def running(self) -> list[int]:
        """Ranks that have been heard of and have not ended."""
        with self._lock:
            return [rank for rank, report in self.reports.items() if "exit" not in report]

    def dead(self) -> dict[int, str]:
        """Ranks whose process died by itself: those with a cause of their own, or else the first. MPI may end the others'
        (abort, exit status) when a connection breaks. Empty until all of them have had time to say so."""
        with self._lock:
            if not self.died or time.monotonic() - min(self.died.values()) < SETTLE:
                return {}
            codes = {rank: self.reports[rank]["exit"] for rank in self.died}
            guilty = [rank for rank, code in codes.items() if code < 0 and -code not in (signal.SIGABRT, signal.SIGTERM)]
            guilty = guilty or [min(self.died, key=self.died.__getitem__)]
            return {rank: f"{self.place(rank)} died ({_cause(codes[rank])})" for rank in sorted(guilty)}

    def stopped(self) -> dict[int, tuple[bool, str]]:
        """Ranks that ended with an error: whether it was their own, and which."""
        with self._lock:
            return {rank: (report["ended"] == "failed", f"{self.place(rank)} stopped: {report.get('error', '')}")
                    for rank, report in self.reports.items() if report.get("ended") in GAVE_REASON}  # fmt: skip

    def silent(self) -> dict[int, str]:
        """Ranks whose supervisor has said nothing for too long: their host is down or cut off."""
        now = time.monotonic()
        with self._lock:
            return {rank: f"{self.place(rank)} has not been heard of for {SILENCE:g} s: its host is down or cut off"
                    for rank, heard in self.heard.items()
                    if now - heard > SILENCE and "exit" not in self.reports[rank]}  # fmt: skip

    def missing(self, limit: float) -> dict[int, str]:
        """Ranks that have not started within `limit` seconds."""
        if time.monotonic() - self.began < limit:
            return {}
        return {rank: f"{self.place(rank)} has not started within {limit:g} s"
                for rank in range(len(self.hosts)) if rank not in self.heard}  # fmt: skip

    def place(self, rank: int) -> str:
        report = self.reports.get(rank)
        if report is None:
            return f"rank {rank} (host {self.hosts[rank] or socket.gethostname()})"
        tensor = f", at {report['tensor']}" if report["tensor"] else ""
        return f"rank {rank} (host {report['host']}, process {report['pid']}, step {report['step']}{tensor})"


class _Handler(socketserver.StreamRequestHandler):
    """One supervisor's connection."""

    server: Monitor

    def handle(self) -> None:
        while line := self._line():
            try:
                report = json.loads(line)
                known = hmac.compare_digest(report.pop("key"), self.server.key) and 0 <= report["rank"] < len(self.server.hosts)
            except (ValueError, LookupError, TypeError, AttributeError):
                return  # not one of ours
            if not known:
                return
            try:
                self.wfile.write(json.dumps(self.server.hear(report)).encode() + b"\n")
            except OSError:
                return

    def _line(self) -> bytes:
        try:
            return self.rfile.readline(MESSAGE_BYTES)
        except OSError:  # the connection broke; silence will tell
            return b""


def _address_towards(hosts: Iterable[str]) -> str:
    """The address under which other machines see this one: nothing is sent. Loopback where all hosts are this machine, its
    name where they are not known here."""
    found = {LOOPBACK}
    for host in hosts:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((host, 9))
                found.add(probe.getsockname()[0])
        except OSError:
            found.add(socket.gethostname())
    return min((a for a in found if not a.startswith("127.")), default=LOOPBACK)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
