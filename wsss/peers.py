"""The other processes of a command: when one of them ends, all end within seconds and report the same reason.

Process 0 holds a connection to each of the others. The kernel closes it when a process ends, for whatever reason and
whatever the others are waiting for, so this needs neither a clock nor the launcher. A process announces a normal exit.
No torch here, so that the command line starts quickly.
"""

import atexit
import contextlib
import json
import os
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

# Seconds that processes wait for each other when a command starts
JOIN_TIMEOUT = 600.0
WELCOME = b"welcome\n"
# Seconds that a failed process waits for a message from another one that may be the cause
REASON_TIMEOUT = 3.0
# Seconds that a process may take to reach a safe point after another process was stopped
STOP_TIMEOUT = 20.0


class Store(Protocol):
    """The part of torch.distributed's store that is used: how processes find each other before they are connected."""

    def set(self, key: str, value: str) -> None:
        """Set a value."""

    def get(self, key: str) -> bytes:
        """Wait for a value and return it."""


class Peers:
    """The connections of this process: to all others from process 0, to process 0 from the others.

    Args:
        rank: of this process.
        count: how many there are.
        links: connections by the rank of the other process.
    """

    def __init__(self, rank: int, count: int, links: dict[int, socket.socket]) -> None:
        self.rank, self.count, self.links = rank, count, links
        self.reported, self.leaving, self.notified = False, False, threading.Event()
        self.ending = False
        self.closed = {number: threading.Event() for number in links}
        self._announced: set[int] = set()
        self._lock = threading.Lock()
        # a loader process inherits its parent's sockets, which would hide that the parent has ended
        os.register_at_fork(after_in_child=self.forget)
        for number, link in links.items():
            threading.Thread(target=self._listen, args=(number, link), name=f"peer {number}", daemon=True).start()

    def forget(self) -> None:
        """Close a forked process's copies of the connections, without sending anything and without touching the objects."""
        devnull = os.open(os.devnull, os.O_RDWR)
        for link in self.links.values():
            os.dup2(devnull, link.fileno())
        os.close(devnull)

    def report_once(self, text: str) -> None:
        """Print why this command ends, unless a reason was printed before."""
        with self._lock:
            first, self.reported = not self.reported, True
        if first and text:
            stopping.print_error(text)

    def send(self, message: dict[str, Any], except_to: int | None = None) -> None:
        """Send a message over all connections, except to one process."""
        for number, link in self.links.items():
            if number != except_to:
                with contextlib.suppress(OSError):  # it has ended, which _listen handles
                    link.sendall(json.dumps(message).encode() + b"\n")

    def leave(self, status: int, text: str, number: int | None = None) -> None:
        """Tell the others that this process ends, and print the reason once, here or on process 0.

        Args:
            status: exit status; 0 after success.
            text: the reason, for the terminal.
            number: the signal that stopped it, None if there was none.
        """
        self.leaving = True  # from here on the others end because of this process
        if status == 0:
            self.send({"kind": "done"})
            return
        if self.rank == 0:
            self.report_once(text)
        kind = {"kind": "end", "status": status} if number is None else {"kind": "stop", "number": number}
        self.send({**kind, "text": "" if self.rank == 0 else text})
        # a process that ends before the others have read its message may lose it
        deadline = time.monotonic() + REASON_TIMEOUT
        for other, link in self.links.items():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)
            self.closed[other].wait(max(0.0, deadline - time.monotonic()))
        if self.rank != 0 and 0 in self._announced and not self.notified.is_set():
            self.report_once(text)  # process 0 had finished before

    def _listen(self, number: int, link: socket.socket) -> None:
        try:
            with link.makefile("rb") as lines:
                for line in lines:
                    self._receive(number, json.loads(line))
        except (OSError, ValueError):
            pass  # the connection broke, as it does when the other process is killed
        self.closed[number].set()
        if number not in self._announced and not self.leaving:
            self._lost(number)

    def _receive(self, number: int, message: dict[str, Any]) -> None:
        self._announced.add(number)
        if message["kind"] == "done":
            return
        self.notified.set()
        if message["kind"] == "stop":
            self.send(message, except_to=number)
            stopping.request(message["number"])
            threading.Thread(target=_end_late, args=(128 + message["number"],), daemon=True).start()
            return
        self.report_once(message["text"])
        if self._is_first_reason():
            self.send({**message, "text": ""}, except_to=number)
            self._end(message["status"])

    def _lost(self, number: int) -> None:
        self.notified.set()
        if not self._is_first_reason():
            return
        if self.rank < 2:  # process 0, or process 1 if process 0 is the one that ended
            self.report_once(
                f"wsss: error: process {number} of {self.count} ended unexpectedly: it was killed, or ran out of "
                "memory; the others end too. Run the same command to continue from the last checkpoint and the finished pictures."
            )
        self.send({"kind": "end", "status": 1, "text": ""}, except_to=number)
        self._end(1)

    def _is_first_reason(self) -> bool:
        """Whether nothing ends this process yet. What comes later follows from it: the others end too, and their connections close."""
        with self._lock:
            first, self.ending = not self.ending, True
        return first

    def _end(self, status: int) -> None:
        # in another thread: this one has to keep listening
        threading.Thread(target=stopping.end, args=(status,), daemon=True).start()


def _end_late(status: int) -> None:
    time.sleep(STOP_TIMEOUT)
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
        BadInput: not all processes connected in time.
    """
    global _peers
    try:
        links = _accept_all(store, count, host) if rank == 0 else {0: _connect_to_first(store, rank, host)}
    except OSError as error:
        raise BadInput(
            "processes",
            f"no connection between process {rank} and the others within {JOIN_TIMEOUT:.0f} s ({error})",
            f"{count} processes that reach {host}",
            "Find out why some of them did not start, and check that MASTER_ADDR is the host of process 0.",
        ) from error
    _peers = Peers(rank, count, links)
    atexit.register(_leave_at_exit, _peers)


def count() -> int:
    """How many processes run this command, from torchrun's variables, which `wsss.launch` sets from those of srun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if count() > 1 and "RANK" in os.environ else 0


def _leave_at_exit(peers: Peers) -> None:
    """Tell the other processes, in programs that use the library without its command line."""
    error = getattr(sys, "last_value", None)
    if error is None:
        peers.leave(0, "")
    else:
        peers.leave(1, f"wsss: error: process {peers.rank} failed: {type(error).__name__}: {error}")


def _is_local(host: str) -> bool:
    """Whether all processes run on one host, so that no port has to be open to other hosts."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _accept_all(store: Store, count: int, host: str) -> dict[int, socket.socket]:
    import secrets

    token = secrets.token_hex(16)
    links: dict[int, socket.socket] = {}
    dualstack = socket.has_dualstack_ipv6() and not _is_local(host)
    with socket.create_server(
        ("127.0.0.1" if _is_local(host) else "", 0),
        family=socket.AF_INET6 if dualstack else socket.AF_INET,
        dualstack_ipv6=dualstack,
        backlog=count,
    ) as server:
        store.set("wsss/peers", f"{server.getsockname()[1]} {token}")
        deadline = time.monotonic() + JOIN_TIMEOUT
        while len(links) < count - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            link, _ = server.accept()
            link.settimeout(10.0)
            with contextlib.suppress(OSError), link.makefile("rb") as lines:
                greeting = lines.readline(100).split()
                if len(greeting) == 2 and secrets.compare_digest(greeting[0], token.encode()):
                    link.sendall(WELCOME)
                    links[int(greeting[1])] = link
                    continue
            link.close()  # another program
    return {number: _keep_alive(link) for number, link in links.items()}


def _connect_to_first(store: Store, rank: int, host: str) -> socket.socket:
    port, token = store.get("wsss/peers").decode().split()
    link = socket.create_connection(("127.0.0.1" if _is_local(host) else host, int(port)))
    link.sendall(f"{token} {rank}\n".encode())
    link.settimeout(JOIN_TIMEOUT)
    if link.recv(len(WELCOME)) != WELCOME:
        raise ConnectionError("process 0 has ended")
    return _keep_alive(link)


def _keep_alive(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # a host that loses power closes no connection; keep-alive notices it within a minute
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def caused_by_another(error: Exception) -> bool:
    """Whether an error, for example in a sum over all processes, happened because another process ended, which ends this one too."""
    return _peers is not None and not isinstance(error, BadInput) and _peers.notified.wait(REASON_TIMEOUT)


def guarded(run: Callable[[], None]) -> int:
    """Run a command and return its exit status; an early end is reported in one message for all of its processes.

    Returns:
        0 for success, 2 for bad input, 128 plus the signal's number if one stopped it, 141 if the output pipe was closed.
    """
    if stopping.is_running():  # a command started by a command
        run()
        return 0
    with stopping.handling_signals():
        try:
            status = _outcome(run)
        except Ended as ended:
            status = ended.status
        stopping.start_leaving()
        if _peers is not None and status:
            # destroying the process group may wait for processes that have ended
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
    except KeyboardInterrupt:  # where signals are not handled: outside the main thread
        number, text = signal.SIGINT, f"wsss: {Stopped(signal.SIGINT)}"
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status, text = 141, ""
    except SystemExit as left:  # the settings were wrong; the message is already printed
        if _peers is None:
            raise
        status, text = left.code if isinstance(left.code, int) else 1, ""
    except Exception as error:
        if _peers is None:
            raise
        if caused_by_another(error):
            time.sleep(0.1)  # its message ends this process
        number, text = stopping.requested_signal(), f"wsss: {Stopped(stopping.requested_signal() or signal.SIGTERM)}"
        if number is None:
            stopping.print_error(traceback.format_exc())
            status, text = 1, f"wsss: error: process {_peers.rank} failed: {type(error).__name__}: {error}"
    else:
        status, text = 0, ""
    stopping.start_leaving()
    status = status if number is None else 128 + number
    if _peers is not None:
        _peers.leave(status, text, number)
    elif text:
        stopping.print_error(text)
    return status
