"""The launcher's judgement, without MPI: who was first, who was taken along, who is silent, and where the next start goes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

from graftwork import errors
from graftwork.plugins.data_parallel import launch, monitor, supervisor


@pytest.fixture
def listening():
    with monitor.Monitor([None, None, None]) as found:
        yield found


def report(rank: int, **more) -> dict:
    return {"rank": rank, "host": f"h{rank}", "pid": 7, "step": 5, "tensor": "", **more}


def died(rank: int, code: int, ago: float) -> dict:
    return report(rank, exit=code, ago=ago)


@pytest.mark.parametrize(
    "deaths, guilty",
    [
        ([died(0, -signal.SIGABRT, 1.0), died(2, -signal.SIGKILL, 0.9)], {2}),  # MPI aborts; nobody aborts by being killed
        ([died(1, -signal.SIGKILL, 1.0), died(2, -signal.SIGSEGV, 1.0)], {1, 2}),
        ([died(0, -signal.SIGABRT, 1.0), died(1, 14, 1.2)], {1}),  # neither has a cause of its own: the first
        ([died(0, -signal.SIGKILL, 0.0)], set()),  # others may follow: too early to say
        ([report(0, exit=1, ago=9.0, ended="gave up")], set()),
        ([died(1, -signal.SIGSEGV, 1.0) | {"ended": "well"}], {1}),  # on its way out
    ],
)
def test_who_died_by_itself(listening, deaths, guilty):
    for death in deaths:
        listening.hear(death)
    found = listening.dead()
    assert set(found) == guilty
    assert all(f"rank {rank} (host h{rank}, process 7, step 5) died (" in text for rank, text in found.items())


def test_silence_and_a_start_that_fails_are_named(listening, monkeypatch):
    listening.hear(report(0))
    listening.hear(report(1, exit=0, ago=0.0))
    assert listening.silent() == {} and listening.running() == [0]
    monkeypatch.setattr(monitor, "SILENCE", 0.01)
    time.sleep(0.02)
    assert list(listening.silent()) == [0]  # rank 1 has ended: it need not say more
    assert list(listening.missing(0.0)) == [2] and listening.missing(60.0) == {}


def test_only_supervisors_of_this_run_are_heard(listening):
    host, port, _ = json.loads(listening.address)
    line = supervisor.Line(listening.address)
    assert line.tell(report(1)) == {"failed": "", "end": False}
    stranger = supervisor.Line(json.dumps([host, port, "another key"]))
    with pytest.raises(ConnectionError):
        stranger.tell(report(0))
    beyond = supervisor.Line(listening.address)
    with pytest.raises(ConnectionError):
        beyond.tell(report(3))
    assert list(listening.reports) == [1]


@pytest.mark.parametrize("code, said", [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_a_supervisor_tells_how_its_rank_ended_and_waits_for_the_launcher(listening, tmp_path, monkeypatch, code, said):
    monkeypatch.setenv(supervisor.LAUNCHER, listening.address)
    monkeypatch.setattr(supervisor, "BEAT", 0.02)
    listening.failed, listening.end = "rank 2 died", True
    one = supervisor.Supervisor(1, str(tmp_path), [sys.executable, "-c", code])
    one.process.wait()
    assert one.watch() == 0
    assert listening.reports[1]["exit"] == said and list(listening.died) == [1]
    assert (tmp_path / "failed").read_text() == "rank 2 died"  # where the rank would have read it


def test_a_rank_does_not_outlive_its_launcher(listening, tmp_path, monkeypatch):
    monkeypatch.setenv(supervisor.LAUNCHER, listening.address)
    one = supervisor.Supervisor(0, str(tmp_path), [sys.executable, "-c", "import time; time.sleep(600)"])
    one.line._socket.shutdown(2)
    with pytest.raises(OSError):
        one.watch()
    one.end()
    assert one.process.returncode == -signal.SIGTERM
    assert not os.path.exists(f"/proc/{one.process.pid}")


def test_a_hosts_file_gives_every_rank_a_place(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# machines\na:2 user=me\n\nb\n")
    a, b = launch.Place("a", "user=me"), launch.Place("b")
    assert launch.read_hosts(path, 3) == [a, a, b]
    assert launch.read_hosts(path, 5) == [a, a, a, a, b]  # around once more, each host's together
    assert launch.hosts_file([a, a, b]) == "a:2 user=me\nb:1\n"
    for text, match in (("a:x\n", "line 1 of .*a:x"), (":3\n", "expected a host"), ("# none\n", "names no host")):
        path.write_text(text)
        with pytest.raises(errors.ConfigError, match=match):
            launch.read_hosts(path, 2)


@pytest.mark.parametrize(
    "lost, cut, left",
    [({1}, set(), [0, 2, 3]), ({2}, {2}, [0, 1]), ({0, 3}, {3}, [1])],  # a rank; a host with both of its ranks; both
)
def test_a_restart_leaves_out_dead_ranks_and_hosts_that_are_gone(lost, cut, left):
    a, b = launch.Place("a"), launch.Place("b")
    attempt = launch.Run(4, [], [a, a, b, b], {}, 1.0)
    attempt.lost, attempt.cut = dict.fromkeys(lost, ""), cut
    assert launch._left(attempt) == left
