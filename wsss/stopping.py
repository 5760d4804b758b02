"""Stopping a command: signals take effect where no work is lost. No torch here, so that the command line starts quickly.

Outside `deferring_signals`, a signal raises `Stopped` at once. Inside, it is remembered, and the work stops at a safe
point: training after the current update, a per-picture stage after the current picture. A second
signal ends the process immediately, which loses no more than a kill does.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from wsss.terminal import show

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds. Launchers forward a signal that the terminal, `timeout` or SLURM has already sent to all processes
SAME_SIGNAL = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 1.0
# Seconds that a process may take to leave its files in order before it is ended
GRACE = 5.0


class Stopped(BaseException):
    """A signal stopped the work.

    Attributes:
        number: of the signal.
        notes: how much of the work in progress is saved.
    """

    def __init__(self, number: int, *notes: str) -> None:
        self.number, self.notes = number, list(notes)
        super().__init__(number)

    def __str__(self) -> str:
        by = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return ". ".join([f"stopped by {by}", *self.notes, "Run the same command to continue"]) + "."


class Ended(BaseException):
    """Another process of this command has ended, so this one ends too; the reason is already on the terminal."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


@dataclasses.dataclass
class _State:
    """Signals and state of this process; `process` is None while no command runs."""

    process: int | None = None
    signal_number: int | None = None
    deferring: int = 0
    ended: int | None = None
    leaving: bool = False


_state = _State()


def requested_signal() -> int | None:
    """The number of the signal that asks this process to stop, None if there was none."""
    return _state.signal_number


def check(*notes: str) -> None:
    """Raise Stopped if a signal has asked this process to stop."""
    if _state.signal_number is not None:
        raise Stopped(_state.signal_number, *notes)


@contextlib.contextmanager
def deferring_signals() -> Iterator[None]:
    """Only remember signals inside this block: the work has to look at `requested_signal` or call `check`.

    Raises:
        Stopped: on entry, if a signal has already arrived.
    """
    check()
    _state.deferring += 1
    try:
        yield
    finally:
        _state.deferring -= 1


def request(number: int) -> None:
    """Ask this process to stop: another process of the command has received this signal."""
    if _state.signal_number is None:
        os.kill(os.getpid(), number)


def end(status: int) -> None:
    """End this process from a thread: raise an error in its main thread, or exit if that takes longer than `GRACE`.

    The first status wins: later ones have the same cause.
    """
    if _state.leaving or _state.ended is not None:
        return
    _state.ended = status
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(GRACE)
    end_at_once(status)


def end_at_once(status: int) -> None:
    """End this process and its loader processes without waiting for anything."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream.isatty():
                stream.write("\x1b[?25h")  # the cursor, which a progress bar hides
            stream.flush()
    os._exit(status)


def is_running() -> bool:
    """Whether signals are handled as this module describes."""
    return _state.process is not None


def start_leaving() -> None:
    """Declare that this process is about to end; from here on only a second signal interrupts it."""
    _state.leaving = True


def print_error(text: str) -> None:
    """Print to the error stream; does nothing if the terminal has been closed."""
    with contextlib.suppress(OSError, ValueError):
        show(text, stream=sys.stderr)


@contextlib.contextmanager
def handling_signals() -> Iterator[None]:
    """Let signals stop the command, as this module describes, inside this block.

    Signals that were ignored when the process started (`nohup`, a script's background jobs) stay ignored. Outside the main
    thread, nothing is changed.
    """
    if is_running() or threading.current_thread() is not threading.main_thread():
        yield
        return
    global _state
    _state = _State(process=os.getpid())
    _at_fork()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    counting = threading.Thread(target=_end_on_second_signal, args=(receiver,), name="signals", daemon=True)
    counting.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that Python did not set
                signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        sender.close()
        counting.join()
        receiver.close()
        _state = _State()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _state.leaving:
        return
    if _state.ended is not None:
        raise Ended(_state.ended)
    first, _state.signal_number = _state.signal_number is None, _state.signal_number or number
    if first and not _state.deferring:
        raise Stopped(number)


def _end_on_second_signal(receiver: socket.socket) -> None:
    """Read signal numbers as they arrive, whatever the main thread is doing."""
    first = None
    while number := receiver.recv(1):
        if number[0] not in SIGNALS or _state.ended is not None:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > SAME_SIGNAL:
            end_at_once(128 + number[0])


@functools.cache
def _at_fork() -> None:
    os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    """Let only the parent end a loader process: it still needs the loader to finish an update."""
    if _state.process is None:
        return
    _state.process = None
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
