"""The command line as users call it, on a few generated pictures and with networks that train in seconds."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from wsss.cli import main
from wsss.data.shapes import make_shapes

TINY = {
    "classifier": {
        "backbone": "test_resnet",
        "init": "none",
        "classifier_lr": 1.0,
        "augment": {"long_side": [48, 64], "crop": 48},
        "training": {
            "batch": 8,
            "epochs": 4,
            "optimizer": "adamw",
            "lr": 0.003,
            "workers": 1,
            "checkpoint_steps": 2,
        },
    },
    "inference": {"scales": [1.0, 0.5]},
    "segmenter": {
        "init": "none",
        "network": {
            "backbone": "test_resnet",
            "atrous_rates": [1, 2],
            "pyramid_scales": [0.5],
            "batch_norm": "live",
        },
        "augment": {"crop": 48},
        "training": {
            "batch": 8,
            "accumulate": 1,
            "steps": 8,
            "optimizer": "adamw",
            "lr": 0.001,
            "workers": 1,
            "checkpoint_steps": 2,
        },
    },
}
# One thread each: as many sums in the same order, whatever the machine does besides
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def wsss(*words: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run `wsss WORDS` to its end: several processes as such, a single one here, where torch is imported already."""
    line = command(*words, processes=processes)
    if processes > 1:
        return subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    out, err, root, threads = io.StringIO(), io.StringIO(), logging.getLogger(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(root, "handlers", [])  # the command line makes one, for the stderr of now
        torch.set_num_threads(1)
        try:
            status = main([str(word) for word in words])
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            torch.set_num_threads(threads)
    return subprocess.CompletedProcess(line, status, out.getvalue(), err.getvalue())


def command(*words: object, processes: int = 1) -> list[str]:
    """The command line of `wsss WORDS`."""
    start = [sys.executable, "-m", "wsss"]
    if processes > 1:
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            "-m",
            "wsss",
        ]
    return start + [str(word) for word in words]


def ok(*words: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run `wsss WORDS`, which has to succeed."""
    done = wsss(*words, processes=processes)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def kill_at(out: Path, moment: str, *words: object) -> None:
    """Start `wsss WORDS` and kill it (-9) as soon as a file like `moment` is there in `out`."""
    process = subprocess.Popen(command(*words), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(out.glob(moment)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def pictures(tmp_path):
    """A folder a class, four pictures each."""
    rng = np.random.default_rng(0)
    for name, colour in (("cat", (200, 40, 40)), ("dog", (40, 40, 200))):
        for index in range(4):
            picture = rng.integers(80, 140, (40, 48, 3)).astype(np.uint8)
            picture[8:28, 10:32] = colour
            path = tmp_path / "pictures" / name / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, quality=95)
    return tmp_path / "pictures"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """Generated pictures in VOC's layout."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=24, val=8, size=64)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Settings of a run that takes seconds."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, shapes, tiny) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    ok("run", "cam", "--data", shapes, "--config", tiny, "--out", out)
    return out
