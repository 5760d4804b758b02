"""How long a command takes to begin, against an earlier build: CPU seconds and peak memory of help, errors, an overview, and one prediction.

The earlier build is a checkout with its own environment:

    git worktree add ../earlier 8185a4c && python -m venv ../earlier/.venv && ../earlier/.venv/bin/pip install -e ../earlier

Both builds take turns, in processes of their own. Python compiles modules once and keeps the result, so each command runs once before it is measured.

    OMP_NUM_THREADS=1 python benchmarks/startup.py --baseline ../earlier/.venv/bin/python --repeats 5
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAINING = ("--preset", "paper", "--segmenter.init", "none", "--segmenter.network.batch_norm", "live")
TINY = (
    "--segmenter.network.backbone",
    "resnet18",
    "--segmenter.network.pyramid_scales",
    "[]",
    "--segmenter.training.steps",
    "1",
)


def run(python: str, words: list[str]) -> tuple[float, float]:
    """CPU seconds and peak MiB of one command."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # not in this checkout, whose modules would be found first
    process = subprocess.Popen(
        [python, "-m", "wsss", *words],
        cwd="/",
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wanted = 2 if "--dota" in words else 0
    if os.waitstatus_to_exitcode(status) != wanted:
        sys.exit(f"wsss {' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def commands(folder: Path) -> dict[str, list[str]]:
    """What is measured, by its name in the table."""
    data, picture = folder / "data", next((folder / "data" / "JPEGImages").iterdir())
    return {
        "`--help`": ["--help"],
        "`run cam --help`": ["run", "cam", "--help"],
        "a misspelt flag": ["run", "cam", "--dota", "x"],
        "`data info`, 25 pictures": ["data", "info", str(data)],
        "`predict`, 1 picture": [
            "predict",
            "--weights",
            str(folder / "segmenter"),
            "--pictures",
            str(picture),
            "--out",
            str(folder / "masks"),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, help="Python of an environment with the earlier build")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(options.baseline, ["data", "shapes", str(folder / "data"), "--train", "20", "--val", "5", "--size", "64"])
        where = ["--data", str(folder / "data"), "--masks", str(folder / "data" / "SegmentationClass")]
        # by the earlier build, since the later one reads its files
        run(
            options.baseline,
            [
                "segment",
                *where,
                "--out",
                str(folder / "segmenter"),
                *TRAINING,
                *TINY,
                "--segmenter.training.batch",
                "2",
            ],
        )
        print("| | CPU s before | CPU s | ratio | MiB before | MiB |\n|---|---|---|---|---|---|")
        for name, words in commands(folder).items():
            found: dict[str, list[tuple[float, float]]] = {options.baseline: [], sys.executable: []}
            for turn in range(options.repeats + 1):
                for python, taken in found.items():
                    shutil.rmtree(folder / "masks", ignore_errors=True)
                    one = run(python, words)
                    if turn:
                        taken.append(one)
            (before, old), (now, new) = (
                (statistics.median(part) for part in zip(*taken, strict=True)) for taken in found.values()
            )
            print(f"| {name} | {before:.2f} | {now:.2f} | {before / now:.1f} | {old:.0f} | {new:.0f} |", flush=True)


if __name__ == "__main__":
    main()
