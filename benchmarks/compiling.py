"""CPU seconds until the dense CRF is compiled in a new environment, against an earlier build (benchmarks/startup.py says how to make one).

Both builds take turns, each in processes of its own with an empty cache of numba. "first" is the first call, with 3
labels; "all" are calls for all widths of a row (3, 5 and 21 labels) together.

    OMP_NUM_THREADS=1 python benchmarks/compiling.py --baseline ../earlier/.venv/bin/python --repeats 3
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

CALLS = """
import sys, time
import numpy as np
from wsss.ops.crf import PRESETS, dense_crf
image = np.zeros((8, 8, 3), np.uint8)
began = time.process_time()
for labels in (3, 5, 21):
    dense_crf(image, np.zeros((labels, 8, 8), np.float32), PRESETS["irn"], threads=1)
    print(time.process_time() - began)
"""


def compiling(python: str) -> tuple[float, float]:
    """CPU seconds of the first call, and of the calls for all widths."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        done = subprocess.run(
            [python, "-c", CALLS], cwd="/", env=environment, check=True, capture_output=True, text=True
        )
    first, _, every = map(float, done.stdout.split())
    return first, every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, help="Python of an environment with the earlier build")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {options.baseline: [], sys.executable: []}
    for _ in range(options.repeats):
        for python, found in taken.items():
            found.append(compiling(python))
    print("| | CPU s before | CPU s | ratio |\n|---|---|---|---|")
    for name, position in (("first", 0), ("all", 1)):
        before, now = (statistics.median(one[position] for one in found) for found in taken.values())
        print(f"| {name} | {before:.1f} | {now:.1f} | {before / now:.2f} |")


if __name__ == "__main__":
    main()
