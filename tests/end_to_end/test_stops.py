"""Commands that are stopped or killed, alone and as two processes: a slice of the kill matrix; what is said and kept."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import kill_matrix
from tests.conftest import tree
from tests.end_to_end.conftest import ENVIRONMENT
from tests.stages.test_refine import write_maps
from wsss import peers
from wsss.refiners import crf
from wsss.refiners.crf import MaskSettings, refine


@pytest.mark.slow
def test_a_slice_of_the_kill_matrix(tmp_path, monkeypatch):
    # a process that hangs is found all the same; a busy machine is given time
    monkeypatch.setattr(kill_matrix, "PATIENCE", 600.0)
    # SIGKILL, after a third of the time that the training took before
    (row,) = kill_matrix.run(tmp_path, [("train cam", 1, "alone", 1)], random.Random(9))
    assert row.signal == signal.SIGKILL
    assert row.wrong == []
    assert row.differing == 0


def test_bad_input_of_one_process_ends_both_and_is_said_once(tmp_path, shapes):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = ["-m", "wsss", "train", "cam", "--backbone", "test_resnet", "--out", str(tmp_path / "out"), "--data"]
    both = [
        subprocess.Popen(
            [sys.executable, *words, data],
            env={**ENVIRONMENT, **group, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, data in enumerate([str(shapes), str(tmp_path / "none")])
    ]
    said = "".join(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [2, 2]
    assert said.count("wsss: error: ") == 1
    assert f"{tmp_path / 'none'}: found" in said
    assert "Traceback" not in said


def test_a_stopped_stage_of_pictures_says_how_many_are_done(tmp_path, squares, monkeypatch, capsys):
    cams = tmp_path / "cams"
    write_maps(squares, cams)
    refine(MaskSettings("threshold", 0.5), squares, cams=cams, out=tmp_path / "whole")
    made, mask = [], crf.pseudo_mask

    def stopped(*given):
        made.append(1)
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # until the main thread has heard of it
        return mask(*given)

    run = lambda: refine(MaskSettings("threshold", 0.5), squares, cams=cams, out=tmp_path / "masks")  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(crf, "pseudo_mask", stopped)
        assert peers.guarded(run) == 130
    kept = len(list((tmp_path / "masks").rglob("*.png")))
    said = capsys.readouterr().err.splitlines()[-1]
    start, end = (
        "wsss: stopped by Ctrl-C. refine masks: at least ",
        " of 12 are done. Run the same command to continue.",
    )
    assert said.startswith(start)
    assert said.endswith(end)
    assert 1 <= int(said.removeprefix(start).removesuffix(end)) <= kept < 12
    assert peers.guarded(run) == 0
    assert tree(tmp_path / "masks") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_more_of_the_kill_matrix(tmp_path):
    groups = [("run cam", 1, "alone", 4), ("run cam", 2, "torchrun", 3)]
    for row in kill_matrix.run(tmp_path, groups, random.Random(0)):
        assert row.wrong == []
        assert row.differing == 0
