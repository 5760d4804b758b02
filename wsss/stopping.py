"""Stopping a command: signals are looked at where nothing is lost; without torch, so that the command line starts at once.

Outside of `held`, a signal raises `Stopped` at once. Inside, it is remembered, and the work there ends itself at a point
of its own choice: a training after the update in progress, a stage of pictures after the picture in progress. A second
signal ends the process where it is, which loses no more than a kill does.
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
# Launchers pass on a signal that the terminal, `timeout` or SLURM has sent to all processes already
SAME_SIGNAL = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 1.0
# How long a process that has to end may take to leave its files in order, in seconds
GRACE = 5.0


class Stopped(BaseException):
    """A signal ended the work.

    Attributes:
        number: of the signal.
        notes: what is kept of the work in progress.
    """

    def __init__(self, number: int, *notes: str) -> None:
        self.number, self.notes = number, list(notes)
        super().__init__(number)

    def __str__(self) -> str:
        by = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return ". ".join([f"stopped by {by}", *self.notes, "The same command goes on from here"]) + "."


class Ended(BaseException):
    """Another process of this command has ended, and this one with it; the reason is on the terminal already."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


@dataclasses.dataclass
class _State:
    """What this process was asked for; `process` is None while no command runs."""

    process: int | None = None
    asked: int | None = None
    held: int = 0
    ended: int | None = None
    leaving: bool = False


_state = _State()


def asked() -> int | None:
    """The number of the signal that asks this process to stop, None where there was none."""
    return _state.asked


def check(*notes: str) -> None:
    """Raise Stopped where a signal has asked for it."""
    if _state.asked is not None:
        raise Stopped(_state.asked, *notes)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """While this lasts, signals are remembered alone: the work has to look at `asked` or call `check`.

    Raises:
        Stopped: at its beginning, where a signal has asked for it already.
    """
    check()
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1


def ask(number: int) -> None:
    """Ask this process to stop, as the signal does that another process of the command has got."""
    if _state.asked is None:
        os.kill(os.getpid(), number)


def end(status: int) -> None:
    """End this process from a thread: by an error in its main thread, and without it where that is not heard in time.

    The first status stays: the others that end for the same reason may look like more that went wrong.
    """
    if _state.leaving or _state.ended is not None:
        return
    _state.ended = status
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(GRACE)
    end_at_once(status)


def end_at_once(status: int) -> None:
    """End this process and its loader processes; nothing is waited for."""
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream.isatty():
                stream.write("\x1b[?25h")  # the cursor, which a progress bar hides
            stream.flush()
    os._exit(status)


def running() -> bool:
    """Whether signals are handled as this module describes."""
    return _state.process is not None


def leaving() -> None:
    """From here on this process is on its way out, and nothing interrupts it but a second signal."""
    _state.leaving = True


def say(text: str) -> None:
    """Print to the error stream, which a closed terminal has taken along."""
    with contextlib.suppress(OSError, ValueError):
        show(text, stream=sys.stderr)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While this lasts, signals stop the command as this module describes.

    Signals that the process was started to ignore (`nohup`, a script's background jobs) stay ignored, and outside of the main
    thread nothing is changed.
    """
    if running() or threading.current_thread() is not threading.main_thread():
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
    counting = threading.Thread(target=_end_at_the_second, args=(receiver,), name="signals", daemon=True)
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
    first, _state.asked = _state.asked is None, _state.asked or number
    if first and not _state.held:
        raise Stopped(number)


def _end_at_the_second(receiver: socket.socket) -> None:
    """Read the numbers of signals as they come, whatever the main thread is doing."""
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
    """A loader process is ended by its parent alone, which has yet to finish an update with its help."""
    if _state.process is None:
        return
    _state.process = None
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
