"""The other processes of a command: when one of them ends, all do, within seconds and with its reason.

Process 0 holds a connection to each of the others. The kernel closes it when a process ends, however that came about and
whatever the others wait for, so this needs no clock and no help of the launcher. Before a process ends in order, it says so.
Without torch, so that the command line starts at once.
"""

import atexit
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from wsss import stopping
from wsss.errors import BadInput
from wsss.stopping import Ended, Stopped

# How long processes wait for each other when a command starts, in seconds
JOIN = 600.0
WELCOME = b"welcome\n"
# How long a process that failed waits for the word of another one that may be the cause, in seconds
WORD = 3.0
# How long a process that does not get to a point where it can stop may go on when another one has stopped, in seconds
LATE = 20.0


class Store(Protocol):
    """Of torch.distributed: what processes tell each other before they are connected."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Wait for a value."""


class Peers:
    """The connections of this process: to all others from process 0, to process 0 from the others.

    Args:
        rank: of this process.
        count: how many there are.
        links: by the rank of the other one.
    """

    def __init__(self, rank: int, count: int, links: dict[int, socket.socket]) -> None:
        self.rank, self.count, self.links = rank, count, links
        self.said, self.leaving, self.word = False, False, threading.Event()
        self.gone = {number: threading.Event() for number in links}
        self._in_order: set[int] = set()
        self._lock = threading.Lock()
        # a loader process keeps copies of its parent's files, and would hide the parent's end
        os.register_at_fork(after_in_child=self.forget)
        for number, link in links.items():
            threading.Thread(target=self._listen, args=(number, link), name=f"peer {number}", daemon=True).start()

    def forget(self) -> None:
        """Let go of a forked process's copies of the connections, without a word and without the objects that hold them."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for link in self.links.values():
            os.dup2(nothing, link.fileno())
        os.close(nothing)

    def say_once(self, text: str) -> None:
        """Print the reason of the end of this command, unless there was one before."""
        with self._lock:
            first, self.said = not self.said, True
        if first and text:
            stopping.say(text)

    def tell(self, message: dict[str, Any], but: int | None = None) -> None:
        """Send a message to all that there is a connection to, but one."""
        for number, link in self.links.items():
            if number != but:
                with contextlib.suppress(OSError):  # it has ended; _listen sees to that
                    link.sendall(json.dumps(message).encode() + b"\n")

    def leave(self, status: int, text: str, number: int | None = None) -> None:
        """Tell the others that this process ends, and print why, here or at process 0, once.

        Args:
            status: with which it ends; 0 when all is done.
            text: the reason, for the terminal.
            number: of the signal that stopped it, None where there was none.
        """
        self.leaving = True  # what ends the others from here on is this process's word
        if status == 0:
            self.tell({"kind": "done"})
            return
        if self.rank == 0:
            self.say_once(text)
        kind = {"kind": "end", "status": status} if number is None else {"kind": "stop", "number": number}
        self.tell({**kind, "text": "" if self.rank == 0 else text})
        # who ends before the others have read it takes the message along
        deadline = time.monotonic() + WORD
        for other, link in self.links.items():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)
            self.gone[other].wait(max(0.0, deadline - time.monotonic()))
        if self.rank != 0 and 0 in self._in_order and not self.word.is_set():
            self.say_once(text)  # process 0 was done before

    def _listen(self, number: int, link: socket.socket) -> None:
        try:
            with link.makefile("rb") as lines:
                for line in lines:
                    self._heard(number, json.loads(line))
        except (OSError, ValueError):
            pass  # the connection broke, as it does when the other one is killed
        self.gone[number].set()
        if number not in self._in_order and not self.leaving:
            self._lost(number)

    def _heard(self, number: int, message: dict[str, Any]) -> None:
        self._in_order.add(number)
        if message["kind"] == "done":
            return
        self.word.set()
        if message["kind"] == "stop":
            self.tell(message, but=number)
            stopping.ask(message["number"])
            threading.Thread(target=_end_late, args=(128 + message["number"],), daemon=True).start()
            return
        self.say_once(message["text"])
        self.tell({**message, "text": ""}, but=number)
        self._end(message["status"])

    def _lost(self, number: int) -> None:
        self.word.set()
        if self.rank < 2:  # process 0, or where that is the one that is gone the next
            self.say_once(
                f"wsss: error: process {number} of {self.count} ended without a word: it was killed, or its memory ran "
                "out; the others end too. The same command goes on from the last checkpoint and the finished pictures."
            )
        self.tell({"kind": "end", "status": 1, "text": ""}, but=number)
        self._end(1)

    def _end(self, status: int) -> None:
        # in a thread of its own: this one has to go on listening
        threading.Thread(target=stopping.end, args=(status,), daemon=True).start()


def _end_late(status: int) -> None:
    time.sleep(LATE)
    stopping.end(status)


_peers: Peers | None = None


def connect(store: Store, rank: int, count: int, host: str) -> None:
    """Connect the processes of this command.

    Args:
        store: shared by all.
        rank: of this process.
        count: how many there are.
        host: where process 0 runs.

    Raises:
        BadInput: not all came in time.
    """
    global _peers
    try:
        links = _accepted(store, count, host) if rank == 0 else {0: _connected(store, rank, host)}
    except OSError as error:
        raise BadInput(
            "processes",
            f"no connection between process {rank} and the others within {JOIN:.0f} s ({error})",
            f"{count} processes that reach {host}",
            "See why some of them did not start, and that MASTER_ADDR is the host of process 0.",
        ) from error
    _peers = Peers(rank, count, links)
    atexit.register(_leave_at_exit, _peers)


def count() -> int:
    """How many processes run this command, as the launcher says (torchrun's variables, which `wsss.launch` makes of srun's)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if count() > 1 and "RANK" in os.environ else 0


def _leave_at_exit(peers: Peers) -> None:
    """For programs that use this library without its command line."""
    error = getattr(sys, "last_value", None)
    if error is None:
        peers.leave(0, "")
    else:
        peers.leave(1, f"wsss: error: process {peers.rank} failed: {type(error).__name__}: {error}")


def _here(host: str) -> bool:
    """Whether all processes run on one host, so that none needs to be reached from others."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _accepted(store: Store, count: int, host: str) -> dict[int, socket.socket]:
    token = secrets.token_hex(16)
    links: dict[int, socket.socket] = {}
    both = socket.has_dualstack_ipv6() and not _here(host)
    with socket.create_server(
        ("127.0.0.1" if _here(host) else "", 0),
        family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both,
        backlog=count,
    ) as server:
        store.set("wsss/peers", f"{server.getsockname()[1]} {token}")
        deadline = time.monotonic() + JOIN
        while len(links) < count - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            link, _ = server.accept()
            link.settimeout(10.0)
            with contextlib.suppress(OSError), link.makefile("rb") as lines:
                said = lines.readline(100).split()
                if len(said) == 2 and secrets.compare_digest(said[0], token.encode()):
                    link.sendall(WELCOME)
                    links[int(said[1])] = link
                    continue
            link.close()  # of another program
    return {number: _steady(link) for number, link in links.items()}


def _connected(store: Store, rank: int, host: str) -> socket.socket:
    port, token = store.get("wsss/peers").decode().split()
    link = socket.create_connection(("127.0.0.1" if _here(host) else host, int(port)))
    link.sendall(f"{token} {rank}\n".encode())
    link.settimeout(JOIN)
    if link.recv(len(WELCOME)) != WELCOME:
        raise ConnectionError("process 0 has ended")
    return _steady(link)


def _steady(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # a host that lost its power closes nothing: noticed within a minute
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def caused_by_another(error: Exception) -> bool:
    """Whether an error, such as of a sum over all processes, comes of the end of another one; that ends this one too."""
    return _peers is not None and not isinstance(error, BadInput) and _peers.word.wait(WORD)


def guarded(run: Callable[[], None]) -> int:
    """Run a command to its exit status; what ends it early is said in one message, once for all of its processes.

    Returns:
        0, 2 for bad input, 128 and the signal's number where one stopped it, 141 where nobody reads the output any more.
    """
    if stopping.running():  # a command that a command runs
        run()
        return 0
    with stopping.handled():
        try:
            status = _outcome(run)
        except Ended as ended:
            status = ended.status
        stopping.leaving()
        if _peers is not None and status:
            # taking the group of processes apart may wait for those that are gone
            stopping.end_at_once(status)
        return status


def _outcome(run: Callable[[], None]) -> int:
    number: int | None = None
    try:
        run()
    except BadInput as error:
        status, text = 2, f"wsss: error: {error}"
    except Stopped as stopped:
        number, text = stopped.number, f"wsss: {stopped}"
    except KeyboardInterrupt:  # where signals are not handled: outside of the main thread
        number, text = signal.SIGINT, f"wsss: {Stopped(signal.SIGINT)}"
    except BrokenPipeError:  # whoever read the output has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status, text = 141, ""
    except SystemExit as left:  # the settings were wrong, which is printed already
        if _peers is None:
            raise
        status, text = left.code if isinstance(left.code, int) else 1, ""
    except Exception as error:
        if _peers is None:
            raise
        if caused_by_another(error):
            time.sleep(0.1)  # its word ends this process
        number, text = stopping.asked(), f"wsss: {Stopped(stopping.asked() or signal.SIGTERM)}"
        if number is None:
            stopping.say(traceback.format_exc())
            status, text = 1, f"wsss: error: process {_peers.rank} failed: {type(error).__name__}: {error}"
    else:
        status, text = 0, ""
    stopping.leaving()
    status = status if number is None else 128 + number
    if _peers is not None:
        _peers.leave(status, text, number)
    elif text:
        stopping.say(text)
    return status
