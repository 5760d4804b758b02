"""Two machines with one shared folder: two process groups with homes, caches and temporary folders of their own."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from tests.end_to_end.conftest import ENVIRONMENT
from tests.end_to_end.test_run_cam import prefixed, stages
from wsss.run import DONE
from wsss.weights import read_weights

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def alone(folder):
    """The environment of a machine on which nobody has ever used the program."""
    own = {"HOME": folder, "NUMBA_CACHE_DIR": folder / "numba", "WSSS_CACHE": folder / "wsss"}
    folder.mkdir(parents=True)
    inherited = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("XDG_")}
    return {**inherited, **{name: str(path) for name, path in own.items()}}


def by_torchrun(rank, port):
    where = [
        "--nnodes=2",
        f"--node-rank={rank}",
        "--nproc-per-node=1",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    ]
    return [sys.executable, "-m", "torch.distributed.run", *where, "-m", "wsss"], {}


def by_srun(rank, port):
    """What srun sets for a task on each of two nodes; the job script sets the last two."""
    slurm = {
        "SLURM_PROCID": rank,
        "SLURM_NTASKS": 2,
        "SLURM_LOCALID": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return [sys.executable, "-m", "wsss"], {name: str(value) for name, value in slurm.items()}


def on_both(start, folder, *words):
    """Run `wsss WORDS` on two machines, which have to succeed; the folders of the machines."""
    port, machines, running = free_port(), [folder / "machine 0", folder / "machine 1"], []
    for rank, machine in enumerate(machines):
        line, more = start(rank, port)
        own = alone(machine) | more
        log = (machine / "log").open("w")
        running.append(
            subprocess.Popen(
                [*line, *map(str, words)], env=own, stdout=log, stderr=log, cwd=machine, start_new_session=True
            )
        )
    statuses = [one.wait(600) for one in running]
    assert statuses == [0, 0], "\n".join((machine / "log").read_text()[-3000:] for machine in machines)
    return machines


@pytest.mark.parametrize("start", [by_torchrun, by_srun])
def test_maps_and_masks_are_those_of_one_machine(start, tmp_path, finished, shapes, tiny):
    run = tmp_path / "shared" / "run"
    shutil.copytree(finished / "classifier", run / "classifier")
    machines = on_both(start, tmp_path, "run", "cam", "--data", shapes, "--config", tiny, "--out", run)
    same = ("classifier", "cams", "cams-scores", "masks", "masks-scores")
    for stage in same:
        assert prefixed(run, stage) == prefixed(finished, stage)
    assert stages(run).keys() == stages(finished).keys()
    assert not list(run.rglob("*.lock"))
    # only process 0 prints the scores
    assert ["mIoU" in (machine / "log").read_text() for machine in machines] == [True, False]
    # each has compiled the dense CRF for itself
    assert all(list((machine / "numba").rglob("*.nbi")) for machine in machines)


def test_a_machine_alone_goes_on_where_two_were(tmp_path, finished, shapes, tiny):
    """A run of two machines that lost its last stages is finished by one of them, and then has nothing left to do on both."""
    run = tmp_path / "shared" / "run"
    shutil.copytree(finished, run)
    for stage in ("predictions", "predictions-scores"):
        shutil.rmtree(run / stage)
    words = ("run", "cam", "--data", shapes, "--config", tiny, "--out", run)
    environment = alone(tmp_path / "third")
    line = [sys.executable, "-m", "wsss", *map(str, words)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert prefixed(run, "predictions") == prefixed(finished, "predictions")
    before = {path: path.stat().st_mtime_ns for path in run.rglob(DONE)}
    on_both(by_torchrun, tmp_path, *words)
    assert {path: path.stat().st_mtime_ns for path in run.rglob(DONE)} == before
    weights = [read_weights(one / "segmenter" / "weights.safetensors")[0] for one in (run, finished)]
    assert weights[0].keys() == weights[1].keys()
    assert os.listdir(tmp_path / "shared") == ["run"]
