"""Compiles this package in a process of its own, while a command does something else: `python -m wsss.ops.crf.ahead`."""

import atexit
import os
import subprocess
import sys

import numpy as np

from wsss.ops.crf.inference import dense_crf
from wsss.ops.crf.presets import PRESETS

# one for each width of a row: see `field._layout`
LABELS = (3, 5, 21)


def compile_ahead() -> None:
    """Start a process that compiles the dense CRF; it leaves the code in numba's cache, where later calls find it.

    It gives way to other processes, and ends with this one at the latest. If it fails, the first call compiles as usual.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # signals from the terminal are for the command; it ends this process itself
        start_new_session=True,
    )
    atexit.register(process.kill)


def main() -> None:
    """Compile for all widths, the most frequent first."""
    if hasattr(os, "nice"):
        os.nice(5)
    image = np.zeros((8, 8, 3), np.uint8)
    for labels in LABELS:
        dense_crf(image, np.zeros((labels, 8, 8), np.float32), PRESETS["irn"], threads=1)


if __name__ == "__main__":
    main()
