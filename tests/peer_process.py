"""What one process of `tests/test_peers.py` does, by name; without pytest and torch, so that it starts at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from wsss import peers, stopping
from wsss.errors import BadInput


class Store:
    """Files that all processes see."""

    def __init__(self, folder):
        self.folder = folder

    def set(self, key, value):
        path = self.folder / key.replace("/", "-")
        path.with_suffix(".part").write_text(value)
        path.with_suffix(".part").rename(path)

    def get(self, key):
        while not (self.folder / key.replace("/", "-")).exists():
            time.sleep(0.01)
        return (self.folder / key.replace("/", "-")).read_bytes()


def wait():
    time.sleep(60)


def deaf():
    """Wait as for a sum over all processes: no signal is heard."""
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
    time.sleep(60)


def pictures():
    with stopping.deferring_signals():
        for done in range(1000):
            time.sleep(0.05)
            stopping.check(f"work: at least {done} of 1000 are done")


def careless():
    time.sleep(30)
    time.sleep(30)


def bad():
    raise BadInput("a.png", "nothing", "a picture", "Mend it.")


def ended_twice():
    """Two threads end this process, which hears it only after both have said so; the first of them has the reason."""
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
    for status in (2, 1):
        threading.Thread(target=stopping.end, args=(status,), daemon=True).start()
        time.sleep(0.1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
    wait()


def late():
    """As `deaf`, on a machine where a thread that ends this process because of bad input is late."""
    end = stopping.end
    stopping.end = lambda status: (time.sleep(0.5 if status == 2 else 0), end(status))
    deaf()


def slip():
    raise ZeroDivisionError("a slip")


def refused():
    print("usage: ...", file=sys.stderr)
    sys.exit(2)


def finish():
    pass


def finish_later():
    time.sleep(0.5)


def bad_later():
    time.sleep(0.7)
    bad()


def fork_and_wait():
    if os.fork() == 0:  # as a loader process, which outlives its parent
        while not (Path(sys.argv[1]) / "over").exists():
            time.sleep(0.05)
        os._exit(0)
    wait()


def main(folder, rank, count, name):
    stopping.GRACE = 0.5
    if name == "careless":
        stopping.SAME_SIGNAL = 0.2
    if name == "deaf_to_hup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        name = "wait"

    def run():
        if count > 1:
            peers.connect(Store(folder), rank, count, "localhost")
        # signals are deferred before the test can send one
        with stopping.deferring_signals() if name == "careless" else contextlib.nullcontext():
            (folder / f"there {rank}").touch()
            while len(list(folder.glob("there *"))) < count:
                time.sleep(0.01)
            globals()[name]()

    return peers.guarded(run)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
