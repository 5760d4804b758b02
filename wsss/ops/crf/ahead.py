"""Compiles this package in processes of their own, while a command does something else: `python -m wsss.ops.crf.ahead` compiles all.

One process compiles the lattice, another the mean field, for one width of a row after the other, the most frequent first. Each writes a
line when a part is finished. Numba keeps the code in its cache, where this and later processes find it.
"""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

import numpy as np

# numbers of labels, one for each width of a row: see `field._layout`
LABELS = (3, 5, 21)
LATTICE, FIELD = PARTS = ("lattice", "field")
_GENTLY = "gently"

# the processes that this one has started, by what they compile; the lines that they have written; and a lock for reading more
_running: "dict[str, subprocess.Popen[str]]" = {}
_compiled: set[str] = set()
_lock = threading.Lock()


def compile_ahead(*, gently: bool) -> None:
    """Start processes that compile the dense CRF; the first call waits for what it needs.

    They end with this one, unless that is killed so that it cannot end them: then they compile to their end. If one fails, the first call
    compiles as usual.

    Args:
        gently: they give way to other processes, since this one has much to do before it needs them.
    """
    for part in PARTS:
        _running[part] = subprocess.Popen(
            [sys.executable, "-m", __name__, part, *([_GENTLY] if gently else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # signals from the terminal are for the command; it ends these processes itself
            start_new_session=True,
        )
        atexit.register(_running[part].kill)


def wait_for(width: int) -> None:
    """Wait until the processes of `compile_ahead`, if there are any, have compiled the lattice and the mean field.

    Args:
        width: of the vectors in which rows are filtered.
    """
    for part, wanted in ((LATTICE, LATTICE), (FIELD, f"{width}")) if _running else ():
        with _lock:
            while wanted not in _compiled and part in _running:
                lines = _running[part].stdout
                if lines is not None and (line := lines.readline()):
                    _compiled.add(line.strip())
                else:  # it has ended
                    del _running[part]


def main(words: Sequence[str]) -> None:
    """Compile these parts, or all; the mean field for all widths, the most frequent first."""
    parts = set(words) - {_GENTLY} or set(PARTS)
    from wsss.ops.crf.features import picture_features
    from wsss.ops.crf.field import compile_for
    from wsss.ops.crf.filters import PermutohedralFilter

    if _GENTLY in words and hasattr(os, "nice"):
        os.nice(5)
    features = picture_features(np.zeros((8, 8, 3), np.uint8), 1, 1)
    if LATTICE in parts:
        PermutohedralFilter(features)
        print(LATTICE, flush=True)
    for labels in LABELS if FIELD in parts else ():
        print(compile_for([labels], features), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
