"""What fuzz targets share: hostile pieces, edits of valid files, and a bound on time and memory for each input."""

import contextlib
import copy
import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from wsss.errors import BadInput

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
# for one input, on a busy machine
DEADLINE_SECONDS, MEMORY_BYTES = 20, 3 << 30

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 65536, -(2**31), 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, math.inf, -math.inf,
    math.nan,
    "", " ", "0", "-1", "1e9", "9" * 30, "a", "cat", "\ud800", "\udcff", "\0", "\x1b[2J", "\u202e", "\u2028", "\ufeff", "../a", "/a",
    "a\\b", "x" * 300,
    "=1+1", "'", '"', ";", ",", "|", "0" * 5000, [], {}, [[]], [{}], [None], {"a": None}, [1, 2], [[1, 2, 3, 4, 5, 6]], [1] * 50,
    {"counts": [1], "size": [1, 1]}, {"counts": "0", "size": [1, 1]}, {"counts": [2**62, 2**62], "size": [2**62, 4]},
)  # fmt: skip
PIECES: tuple[bytes, ...] = (
    b"", b"\0", b"\n", b"\r", b"\t", b" ", b'"', b"'", b",", b";", b":", b"[", b"]", b"{", b"}", b"[" * 3000, b'{"a":' * 3000,
    b"9" * 5000, b"-", b"1e999",
    b"NaN", b"Infinity", b"null", b"true", b'"\\ud800"', b"\\", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff" * 4, b"\xff" * 8,
    b"\x7f\xff\xff\xff", b"\0" * 8,
    b"<a>" * 3000, b"</object>", b"<!DOCTYPE a [<!ENTITY b 'c'><!ENTITY d '&b;&b;&b;'>]>", b"&d;", b"&#0;", b"<name>", b"<![CDATA[",
    b"=cmd", b"\x1b[2J",
    b"\xed\xa0\x80", b"\xc0\x80", b"\xe2\x80\xa8", b"\x80\x02", b"cos\nsystem\n", b"(S'x'\ntR.", b"PK\x03\x04", b"\x93NUMPY\x01\x00",
    b"!!python/name:os.x", b"&a [*a]",
)  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file with some bytes changed, put in, taken out or doubled; now and then cut off."""
    content = whole
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.sampled_from((0, 0, 1, 2, 4, 8, 30))))
        piece = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8), st.just(content[at:to] * 2)))
        content = content[:at] + piece + content[to:]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON-able value with some of its parts replaced, taken out or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, 3))):
        value = draw(_once(value))
    return value


@st.composite
def _once(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        action = draw(st.integers(0, 9))
        if action == 0:
            del value[key]
        elif action == 1 and isinstance(value, list):
            value.insert(key, value[key])
        elif action == 2 and isinstance(value, dict):
            value[draw(st.sampled_from(("a", "id", "name", "size", "\ud800")))] = value[key]
        else:
            value[key] = draw(_once(value[key]))
        return value
    return copy.deepcopy(draw(st.sampled_from(VALUES)))


def as_json(value: Any) -> bytes:
    """JSON as careless tools write it, with infinities and halves of letters."""
    return json.dumps(value).encode()


def files(*valid: bytes) -> st.SearchStrategy[bytes]:
    """Random bytes, and edits of these."""
    return st.one_of(st.binary(max_size=200), st.one_of([edited(whole) for whole in valid]))


def json_files(valid: Any) -> st.SearchStrategy[bytes]:
    """Random bytes, edits of a JSON file's bytes, and edits of what it says."""
    return st.one_of(st.binary(max_size=50), edited(as_json(valid)), changed(valid).map(as_json))


class TookTooLong(BaseException):
    """Nothing that a reader could catch."""


def fuzz(contents: st.SearchStrategy[bytes], path: Path, read: Callable[[Path], object]) -> int:
    """Read random contents for `SECONDS`; anything but a result or BadInput is an error. Gives the number of inputs."""
    count = 0
    end = time.monotonic() + SECONDS

    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def one(content: bytes) -> None:
        nonlocal count
        if time.monotonic() > end:
            return
        count += 1
        path.write_bytes(content)
        with contextlib.suppress(BadInput), bounded():
            read(path)

    # hypothesis counts inputs and not seconds: many short rounds
    while time.monotonic() < end:
        one()
    return count


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """End what takes too long, and what takes too much memory."""

    def late(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, late)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
