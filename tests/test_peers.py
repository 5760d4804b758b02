"""Processes of one command, without torch: when one of them ends, all do, and one of them says why; signals to one process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.peer_process import Store
from wsss import peers

# a process that hangs is found; a busy machine is given time
PATIENCE = 300.0
pytestmark = pytest.mark.whole


class Processes:
    """One process for each name of what it is to do."""

    def __init__(self, folder, *names):
        self.folder = folder
        self.all = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.peer_process", str(folder), str(rank), str(len(names)), name],
                stderr=(folder / f"said {rank}").open("wb"),
                # without torch, these start at once
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
            for rank, name in enumerate(names)
        ]
        deadline = time.monotonic() + PATIENCE
        while not all((folder / f"there {rank}").exists() for rank in range(len(names))):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def send(self, number, *ranks):
        for rank in ranks:
            self.all[rank].send_signal(number)

    def statuses(self):
        """Exit statuses of all, once they have ended."""
        try:
            return [process.wait(PATIENCE) for process in self.all]
        finally:
            for process in self.all:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    def said(self):
        return [(self.folder / f"said {rank}").read_text() for rank in range(len(self.all))]


@pytest.fixture
def start(tmp_path):
    return lambda *names: Processes(tmp_path, *names)


@pytest.mark.parametrize(
    ("victim", "speaker", "doing"),
    [(0, 1, "wait"), (1, 0, "wait"), (0, 1, "deaf"), (2, 0, "deaf"), (2, 0, "fork_and_wait"), (1, 0, "pictures")],
)
def test_a_killed_process_ends_all(start, victim, speaker, doing):
    begun = start(doing, doing, doing)
    begun.send(signal.SIGKILL, victim)
    try:
        statuses = begun.statuses()
    finally:
        (begun.folder / "over").touch()  # processes that they have started still run until now
    assert statuses == [-signal.SIGKILL if rank == victim else 1 for rank in range(3)]
    said = begun.said()
    assert f"process {victim} of 3 ended unexpectedly" in said[speaker]
    assert sum("ended unexpectedly" in one for one in said) == 1
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("doing", [("bad", "wait", "deaf"), ("deaf", "wait", "bad"), ("bad", "bad", "bad")])
def test_bad_input_in_one_or_all_is_said_once(start, doing):
    begun = start(*doing)
    assert begun.statuses() == [2, 2, 2]
    assert "".join(begun.said()) == "wsss: error: a.png: found nothing; expected a picture. Mend it.\n"


def test_the_first_reason_to_end_stays(start):
    assert start("ended_twice").statuses() == [2]


def test_processes_that_end_for_a_reason_are_not_taken_for_killed_ones(start):
    begun = start("late", "wait", "bad")
    assert begun.statuses() == [2, 2, 2]
    assert "ended unexpectedly" not in "".join(begun.said())


def test_settings_that_are_refused_end_all(start):
    begun = start("wait", "refused")
    assert begun.statuses() == [2, 2]
    assert begun.said() == ["", "usage: ...\n"]


def test_a_slip_keeps_its_traceback(start):
    begun = start("wait", "slip")
    assert begun.statuses() == [1, 1]
    said = begun.said()
    assert said[1].startswith("Traceback")
    assert said[0] == "wsss: error: process 1 failed: ZeroDivisionError: a slip\n"


def test_those_that_finish_end_nobody(start):
    begun = start("finish", "finish_later", "finish")
    assert begun.statuses() == [0, 0, 0]
    assert "".join(begun.said()) == ""


def test_bad_input_after_the_first_process_has_finished(start):
    begun = start("finish", "bad_later")
    assert begun.statuses() == [0, 2]
    assert "a.png: found nothing" in begun.said()[1]


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_process_stops_all(start, receiver):
    begun = start("pictures", "pictures")
    time.sleep(0.3)
    begun.send(signal.SIGTERM, receiver)
    assert begun.statuses() == [143, 143]
    said = "".join(begun.said())
    assert said.count("wsss: stopped by SIGTERM") == 1
    assert "of 1000" in said
    assert "Traceback" not in said


def test_a_signal_to_all_and_again_by_their_launcher(start):
    begun = start("pictures", "pictures")
    begun.send(signal.SIGINT, 0, 1)
    begun.send(signal.SIGINT, 0, 1)
    assert begun.statuses() == [130, 130]
    assert "".join(begun.said()).count("wsss: stopped by Ctrl-C") == 1


def test_a_second_signal_ends_at_once(start):
    begun = start("careless")
    begun.send(signal.SIGINT, 0)
    time.sleep(0.5)
    assert begun.all[0].poll() is None
    begun.send(signal.SIGINT, 0)
    assert begun.statuses() == [130]


def test_a_signal_while_nothing_is_held_is_heard_at_once(start):
    begun = start("wait")
    begun.send(signal.SIGHUP, 0)
    assert begun.statuses() == [129]
    assert begun.said() == ["wsss: stopped by SIGHUP. Run the same command to continue.\n"]


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(start):
    begun = start("deaf_to_hup")
    begun.send(signal.SIGHUP, 0)
    time.sleep(0.3)
    assert begun.all[0].poll() is None
    begun.send(signal.SIGTERM, 0)
    assert begun.statuses() == [143]


def test_a_stranger_at_the_door_is_sent_away(tmp_path):
    store = Store(tmp_path)
    made = []
    threading.Thread(target=lambda: made.append(peers._accept_all(store, 2, "localhost")), daemon=True).start()
    port = int(store.get("wsss/peers").split()[0])
    for words in (b"GET / HTTP/1.1\n", b"0123 1\n", b""):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""
    link = peers._connect_to_first(store, 1, "localhost")
    link.close()
