"""The demo's first two runs, CAM and CLIP-ES, by this version and by an earlier one: CPU seconds and mIoU of the predictions, for several seeds.

    OMP_NUM_THREADS=1 python benchmarks/demo.py --baseline OTHER/.venv/bin/python --seeds 0 1 2 --out FOLDER [--float32]

OTHER is a checkout of the earlier version with an environment of its own:

    git worktree add OTHER 8185a4c && cd OTHER && make install

Both run their own command lines of the demo on the same generated pictures, one after the other; finished runs in FOLDER are not repeated.
The CPU seconds are those of the whole command with its loader processes, imports included. The first runs compile the dense CRF, unless that
is in numba's cache. On processors with instructions for bfloat16, the demo computes in it; with --float32 it does not there either.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

METHODS = ("cam", "clip_es")
RUN = "import sys; from wsss.cli import main; sys.exit(main())"
COMMANDS = (
    "import json, pathlib, sys, wsss.demo; print(json.dumps(list(wsss.demo.commands(pathlib.Path(sys.argv[1])))))"
)


def run(python: str, words: list[str]) -> float:
    """Run a command of an interpreter's version, and return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    silent = subprocess.DEVNULL
    subprocess.run([python, "-c", RUN, *words], cwd="/", check=True, stdout=silent, stderr=silent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_demo(python: str, folder: Path) -> dict[str, list[str]]:
    """The demo's command lines in an interpreter's version, by their output folders."""
    asked = [python, "-c", COMMANDS, str(folder)]
    found = subprocess.run(asked, cwd="/", check=True, capture_output=True, text=True).stdout
    return {words[words.index("--out") + 1]: words for words in json.loads(found) if "--out" in words}


def in_float32(words: list[str]) -> list[str]:
    """A command line without the settings of a precision."""
    left = list(words)
    while flags := [index for index, word in enumerate(left) if word.endswith(".precision")]:
        del left[flags[0] : flags[0] + 2]
    return left


def measured(python: str, folder: Path, out: Path, method: str, seed: int) -> dict[str, float]:
    """CPU seconds and mIoU of a run; read from its file if it was measured before."""
    known = out.with_suffix(".json")
    if not known.exists():
        words = [*of_demo(python, folder)[str(folder / method)], "--segmenter.training.seed", str(seed)]
        if method == "cam":
            words += ["--classifier.training.seed", str(seed)]
        words[words.index("--out") + 1] = str(out)
        if out.name.split()[1] == "float32":
            words = in_float32(words)
        cpu = run(python, words)
        scores = json.loads((out / "predictions-scores" / "scores.json").read_text())
        known.write_text(json.dumps({"cpu": cpu, "miou": 100 * scores["scores"]["miou"]}))
    return json.loads(known.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, help="the interpreter of the earlier version")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--float32", action="store_true", help="this version without bfloat16")
    options = parser.parse_args()
    # commands run in /, since python would import the package of the folder that it is started in
    options.out, options.baseline = options.out.absolute(), os.path.abspath(options.baseline)
    data = options.out / "shapes"
    if not data.exists():
        run(sys.executable, ["data", "shapes", str(data), "--train", "300", "--val", "100", "--size", "112"])
    ways = {"before": options.baseline, "float32" if options.float32 else "now": sys.executable}
    for method in METHODS:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for seed in options.seeds:
            for name, python in ways.items():
                found[name].append(measured(python, options.out, options.out / f"{method} {name} {seed}", method, seed))
            before, now = (found[name][-1] for name in ways)
            print(
                f"{method}, seed {seed}: {before['cpu']:.0f} and {now['cpu']:.0f} CPU s, ratio {before['cpu'] / now['cpu']:.2f}; "
                f"mIoU {before['miou']:.1f} and {now['miou']:.1f}",
                flush=True,
            )
        cpu, miou = ([sum(one[key] for one in found[name]) for name in ways] for key in ("cpu", "miou"))
        means = [one / len(options.seeds) for one in miou]
        print(
            f"{method}, all seeds: ratio {cpu[0] / cpu[1]:.2f}; mean mIoU {means[0]:.1f} and {means[1]:.1f}", flush=True
        )


if __name__ == "__main__":
    main()
