"""Kill and stop runs at random moments of every stage, let them go on, and compare their bytes with those of undisturbed runs.

    python tests/kill_matrix.py --seed 0 --number 20
    python tests/kill_matrix.py --seed 1 --number 200 --commands cam,vwl --processes 2 --table table.md

Each command is started, disturbed in some of its stages one after the other, and at last left to finish. A row is one
disturbance. It fails where the processes do not end within a minute, where one shows a traceback or leaves another process
behind, where the next start is refused, or where a byte differs at the end. The exit status is 1 if any row fails.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.end_to_end.conftest import ENVIRONMENT, TINY
from tests.end_to_end.taught import AROUND, AUGMENT, FEW
from tests.end_to_end.test_run_clims import CLIMS
from tests.end_to_end.test_run_icam import AFFINITYNET, ICAM, SEGMENTER
from tests.end_to_end.test_run_qa_clims import QUESTIONS
from tests.end_to_end.test_run_vwl import VWL
from tests.methods.test_questions import write_blip
from wsss.configs import CONFIGS
from wsss.data.shapes import make_shapes
from wsss.outputs import DONE, LOCK, SECONDS, STARTED
from wsss.stages.check import CONTENTS

# A process has to end within these seconds of what disturbs it, or of the end of another one
PATIENCE = 60.0
# A run has to finish within these
FINISH = 1200.0
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def settings(command: str, folder: Path) -> dict[str, Any]:
    """Settings of a run that takes seconds."""
    clip = str(CONFIGS / "demo_clip")
    taught = {"clip": clip, "augment": AUGMENT, "training": {**FEW, "steps": 4}}
    return {
        "train cam": lambda: {
            **TINY["classifier"],
            "training": {**TINY["classifier"]["training"], "epochs": 30, "checkpoint_steps": 5},
        },
        "run cam": lambda: TINY,
        "run clip_es": lambda: {
            "inference": {"clip": clip, "competitors": "all", "backgrounds": False, "attention_blocks": 3},
            "tail": TINY["tail"],
        },
        "run clims": lambda: {**AROUND, "clims": CLIMS},
        "run qa_clims": lambda: {
            **AROUND,
            "questions": {"blip": str(write_blip(folder / "blip")), **QUESTIONS},
            "qa_clims": {**taught, "mask_prompts": False, "template": "a {}."},
        },
        "run vwl": lambda: {
            "vwl": {**VWL, "variant": "vwl-m", "bank_rate": 0.1},
            "look": {"pictures": 6, "words": 6, "patches": 4, "examples": 3},
            "inference": TINY["inference"],
            "tail": {**TINY["tail"], "refiner": "crf"},
        },
        "run icam": lambda: {
            "icam": ICAM,
            "inference": {"scales": [1.0, 0.5]},
            "tail": {
                "test": {"scales": [1.0]},
                "segmenter": SEGMENTER,
                "affinitynet": {"network": AFFINITYNET, "walk": {"radius": 3}},
            },
        },
    }[command]()


COMMANDS = ("cam", "clip_es", "clims", "qa_clims", "vwl", "icam")


@dataclasses.dataclass
class Row:
    """One disturbance."""

    command: str
    processes: int
    launcher: str
    stage: str
    fraction: float
    signal: signal.Signals
    target: str = ""
    after: float = 0.0
    ended: float = 0.0
    wrong: list[str] = dataclasses.field(default_factory=list)
    differing: int | None = None

    def cells(self) -> list[str]:
        """As the table has them."""
        return [
            self.command,
            self.stage,
            f"{self.after:.2f} s",
            self.signal.name,
            f"{self.processes}{f' ({self.launcher})' if self.processes > 1 else ''}",
            self.target,
            f"{self.ended:.1f} s",
            "?" if self.differing is None else str(self.differing),
            "; ".join(self.wrong) or "-",
        ]


HEAD = ("command", "stage", "moment", "signal", "processes", "sent to", "all ended in", "differing bytes", "wrong")


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


class Started:
    """The processes of one command.

    Args:
        words: of the command line.
        processes: how many.
        launcher: `torchrun`, or `alone` for processes that nobody but they themselves look after, as with srun.
        log: file for all that they print.
    """

    def __init__(self, words: Sequence[str], processes: int, launcher: str, log: Path) -> None:
        self.launcher, self.log = launcher, log
        with log.open("wb") as stream:
            if processes == 1:
                self.all = [_popen([sys.executable, "-m", "wsss", *words], ENVIRONMENT, stream)]
            elif launcher == "torchrun":
                start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "wsss"]
                self.all = [_popen([sys.executable, *start, *words], ENVIRONMENT, stream)]
            else:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                self.all = [
                    _popen([sys.executable, "-m", "wsss", *words], {**ENVIRONMENT, **group, "RANK": str(rank)}, stream)
                    for rank in range(processes)
                ]

    def workers(self) -> list[int]:
        """Ids of the processes that work, by rank."""
        if self.launcher != "torchrun":
            return [process.pid for process in self.all]
        return sorted(_children(self.all[0].pid))

    def running(self) -> bool:
        """Whether one has not ended."""
        return any(process.poll() is None for process in self.all)

    def wait(self, patience: float) -> bool:
        """Whether all ended in time; those that did not are killed."""
        deadline = time.monotonic() + patience
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.01, deadline - time.monotonic()))
        late = [process for process in self.all if process.poll() is None]
        for process in late:
            for child in _descendants(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()
        return not late

    def statuses(self) -> list[int]:
        """Exit statuses; of a process that a signal killed, its number below 0."""
        return [process.returncode for process in self.all]


def _popen(words: Sequence[str], environment: dict[str, str], stream: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _descendants(parent: int) -> list[int]:
    return [one for child in _children(parent) for one in (child, *_descendants(child))]


def _left_behind(out: Path) -> Iterator[int]:
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if (
                any(word.startswith(str(out).encode()) for word in line.read_bytes().split(b"\0"))
                and int(line.parent.name) != os.getpid()
            ):
                yield int(line.parent.name)


def content(run: Path) -> dict[str, bytes]:
    """All files of a run but clocks, the page that shows them, and the locks of killed commands."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in (SECONDS, CONTENTS, LOCK, "report.html")
    }


def differing(one: dict[str, bytes], two: dict[str, bytes]) -> int:
    """Bytes that differ; a file that only one of them has counts as one more than it holds."""
    total = 0
    for name in {*one, *two}:
        a, b = one.get(name), two.get(name)
        if a is None or b is None:
            total += 1 + len(a or b or b"")
        elif a != b:
            total += abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
    return total


def stages(run: Path) -> dict[str, float]:
    """Seconds of the stages of a finished run, in the order in which they were made."""
    done = sorted(run.glob(f"*/{DONE}"), key=lambda path: path.stat().st_mtime_ns)
    return {path.parent.name: json.loads((path.parent / SECONDS).read_text())["seconds"] for path in done}


def chain(start: Callable[[Path], Started], out: Path, rows: Sequence[Row], whole: Path, rng: random.Random) -> None:
    """Disturb one run as `rows` say, in the order of its stages, let it finish, and write into them what came of it."""
    seconds = stages(whole)
    for number, row in enumerate(rows):
        log = out.with_name(f"{out.name}-{number}.log")
        earlier = _written(out / row.stage / STARTED)
        started = start(log)
        while started.running() and not _begun(out / row.stage, earlier, log):
            time.sleep(0.01)
        row.after = row.fraction * seconds[row.stage]
        time.sleep(row.after)
        if not started.running():
            if any(started.statuses()):
                row.wrong.append(f"failed: {_last(log)}")
            row.target = "nobody, it had ended"
            continue
        finished = all((out / stage / DONE).exists() for stage in seconds)
        _disturb(started, row, rng)
        before = time.monotonic()
        if not started.wait(PATIENCE):
            row.wrong.append(f"still running after {PATIENCE:.0f} s")
        row.ended = time.monotonic() - before
        _judge(started, row, log, finished)
        deadline = time.monotonic() + PATIENCE
        while (left := list(_left_behind(out))) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            row.wrong.append(f"{len(left)} processes left behind")
    log = out.with_name(f"{out.name}-last.log")
    last = start(log)
    if not last.wait(FINISH) or any(last.statuses()):
        rows[-1].wrong.append(f"does not go on: {_last(log)}")
        return
    count = differing(content(whole), content(out))
    for row in rows:
        row.differing = count


def _written(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _begun(stage: Path, earlier: int | None, log: Path) -> bool:
    """Whether a command has come to a stage, which an earlier try of it may have begun at the time `earlier`, or finished."""
    now = _written(stage / STARTED)
    if now is not None and now != earlier:
        return True
    text = log.read_text(errors="replace")
    return f"{stage}: continuing where it stopped" in text or f"{stage}: finished already" in text


def _disturb(started: Started, row: Row, rng: random.Random) -> None:
    workers = started.workers()
    if row.processes == 1:
        row.target = "it"
        targets = workers
    elif row.signal == signal.SIGKILL and workers:
        rank = rng.randrange(len(workers))
        row.target, targets = f"one worker ({rank})", [workers[rank]]
    elif row.launcher == "torchrun":
        row.target, targets = "torchrun", [started.all[0].pid]
    else:
        row.target, targets = "all", workers
    for target in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, row.signal)


def _judge(started: Started, row: Row, log: Path, finished: bool) -> None:
    text = log.read_text(errors="replace")
    statuses = started.statuses()
    # torchrun shows a traceback of its own when a worker ends with an error
    if row.launcher != "torchrun" and "Traceback" in text:
        row.wrong.append("a traceback")
    if row.signal == signal.SIGKILL:
        # one that had done its part is not missed
        if row.processes > 1 and {*statuses} != {0, -signal.SIGKILL} and text.count("ended unexpectedly") != 1:
            row.wrong.append(f"the reason is there {text.count('ended unexpectedly')} times")
    elif row.launcher != "torchrun":
        # a command that has done everything no longer hears a signal: its interpreter, on its way out, ends by it
        heard = {*statuses} - ({0, -row.signal} if finished else {0})
        if not heard <= {128 + row.signal}:
            row.wrong.append(f"exit statuses {statuses}")
        if heard and text.count("wsss: stopped by") != 1:
            row.wrong.append(f"`stopped by` is there {text.count('wsss: stopped by')} times")


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing printed"


def run(
    folder: Path,
    groups: Sequence[tuple[str, int, str, int]],
    rng: random.Random,
    tell: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Carry out disturbances.

    Args:
        folder: for data and runs.
        groups: command, processes, launcher, and how many disturbances; 0 for one in each stage.
        rng: chooses stages, moments, signals and processes.
        tell: is given each row when it is complete.
    """
    data = folder / "shapes"
    if not data.exists():
        make_shapes(data, train=12, val=4, size=64)
    rows = []
    for number, (command, processes, launcher, count) in enumerate(groups):
        verb, method = command.split()
        config = folder / f"{verb}-{method}.yaml"
        if not config.exists():
            config.write_text(yaml.safe_dump(settings(command, folder)))
        words = [verb, method, "--data", str(data), "--config", str(config)]
        whole = folder / f"{verb}-{method}-{processes}"
        out = whole.with_name(f"{whole.name}-{launcher}-{number}")
        log = folder / f"{whole.name}.log"
        undisturbed = _start(words, whole, processes, "alone", log)
        if not undisturbed.wait(FINISH) or any(undisturbed.statuses()):
            raise RuntimeError(f"{whole} did not finish: {_last(log)}")
        order = list(stages(whole))
        chosen = sorted(rng.choices(range(len(order)), k=count)) if count else range(len(order))
        disturbed = [
            Row(command, processes, launcher, order[stage], rng.random(), rng.choice(SIGNALS)) for stage in chosen
        ]
        chain(partial(_start, words, out, processes, launcher), out, disturbed, whole, rng)
        for row in disturbed:
            tell(row)
        rows += disturbed
    return rows


def _start(words: list[str], out: Path, processes: int, launcher: str, log: Path) -> Started:
    # a single stage has a folder of its own, as in a run
    return Started([*words, "--out", str(out if words[0] == "run" else out / "stage")], processes, launcher, log)


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="chooses all that is left to chance")
    parser.add_argument("--number", type=int, default=20, help="disturbances in all; 0 for one in each stage")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--processes", default="1,2")
    parser.add_argument(
        "--folder", type=Path, default=None, help="for data, runs and logs; by default one that is removed"
    )
    parser.add_argument("--table", type=Path, default=None, help="write the table to this file too")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    kinds = [
        (f"run {command}", processes, rng.choice(("alone", "torchrun")) if processes > 1 else "alone")
        for command in given.commands.split(",")
        for processes in map(int, given.processes.split(","))
    ]
    rng.shuffle(kinds)
    counts = [given.number // len(kinds) + (index < given.number % len(kinds)) for index in range(len(kinds))]
    groups = [(*kind, count) for kind, count in zip(kinds, counts, strict=True) if count or not given.number]
    print(table([]), end="")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = run(folder, groups, rng, lambda row: print(table([row]).splitlines()[2], flush=True))
    if given.table:
        given.table.write_text(table(rows), encoding="utf-8")
    return int(any(row.wrong or row.differing for row in rows))


if __name__ == "__main__":
    sys.exit(main())
