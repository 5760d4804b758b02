"""Compiling the dense CRF beside something else: a call waits for what it needs, and for nothing else."""

import subprocess
import sys

import numba
import numpy as np
import pytest

from wsss.ops.crf import ahead
from wsss.ops.crf.features import picture_features


@pytest.fixture
def started(monkeypatch):
    """Starts processes that write lines instead of compiling; they then wait until they are killed, or end."""
    running = []

    def start(ends=False, **lines):
        for part, words in lines.items():
            code = f"import time; print({words!r}, sep='\\n', flush=True); time.sleep({0 if ends else 600})"
            running.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
            ahead._running[part] = running[-1]

    monkeypatch.setattr(ahead, "_running", {})
    monkeypatch.setattr(ahead, "_compiled", set())
    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_call_waits_for_the_lattice_and_its_own_width(started):
    started(lattice="lattice", field="4\n8")
    for width in (8, 4, 8):
        ahead.wait_for(width)
    assert ahead._compiled == {"lattice", "4", "8"}


def test_what_has_failed_is_not_waited_for(started):
    started(lattice="", field="4", ends=True)
    for width in (24, 4):
        ahead.wait_for(width)
    assert ahead._running == {}


def test_without_processes_nothing_is_waited_for(started):
    ahead.wait_for(24)


def test_pictures_that_can_be_written_and_others_share_compiled_code():
    """Pictures are read-only where they come from a file, and can be written where they are resized or drawn."""
    picture = np.zeros((4, 5, 3), np.uint8)
    fixed = picture.copy()
    fixed.flags.writeable = False
    kinds = {
        numba.typeof(picture_features(one, 1, 1)) for one in (picture, fixed, picture[..., ::-1], picture[..., :0])
    }
    assert len(kinds) == 1
    assert picture.flags.writeable
