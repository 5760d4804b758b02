"""Checkpoints: whatever befalls the file, a training goes on from a whole one, or from its start, and says so."""

import copy
import errno
import hashlib
import io
import json
import logging
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from wsss.errors import BadInput
from wsss.run import STARTED
from wsss.stages.checkpoint import CHECKPOINT, PREVIOUS, Checkpoints

HISTORY = [{"step": step, "lr": 0.1, "toy": 1.0 / (step + 1)} for step in range(9)]


class Kept:
    """A small network that has made three updates, with checkpoints after the second and the third."""

    def __init__(self, folder, identity="a training", width=3):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / STARTED).write_text(json.dumps({"identity": identity}))
        self.states = {}
        module, optimizer, checkpoints = self.make(width)
        for step in (1, 2, 3):
            module(torch.full((1, 2), float(step))).sum().backward()
            optimizer.step()
            self.states[step] = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
            if step > 1:
                checkpoints.save(step, HISTORY[:step])
        self.files = {name: (folder / name).read_bytes() for name in (CHECKPOINT, PREVIOUS)}

    def make(self, width=3):
        torch.manual_seed(0)
        module = nn.Linear(2, width)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        return module, optimizer, Checkpoints(self.folder, module, optimizer, None)

    def check(self, files, step):
        """The number of updates after which a training with these files goes on, 0 for its start."""
        for name in (CHECKPOINT, PREVIOUS):
            (self.folder / name).unlink(missing_ok=True)
            if name in files:
                (self.folder / name).write_bytes(files[name])
        module, optimizer, checkpoints = self.make()
        untouched = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
        assert checkpoints.restore(9) == (step, HISTORY[:step])
        expected = self.states[step] if step else untouched
        torch.testing.assert_close((module.state_dict(), optimizer.state_dict()), expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("kept") / "run")


def written(content, identity=b"a training\n"):
    """Bytes of a file that is whole and holds something else."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    rest = identity + buffer.getvalue()
    return b"wsss checkpoint 1\n" + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def test_the_last_one_and_without_it_the_one_before(kept):
    kept.check(kept.files, 3)
    kept.check({PREVIOUS: kept.files[PREVIOUS]}, 2)
    kept.check({}, 0)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_at_any_byte(kept, data):
    whole = kept.files[CHECKPOINT]
    at = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "zeros", "inserted", "removed", "appended"]))
    damaged = {
        "flip": lambda: whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :],
        "cut": lambda: whole[:at],
        "zeros": lambda: whole[:at] + bytes(len(whole) - at),
        "inserted": lambda: whole[:at] + b"x" + whole[at:],
        "removed": lambda: whole[:at] + whole[at + 1 :],
        "appended": lambda: whole + whole[:at] + b"x",
    }[kind]()
    if damaged != whole:
        kept.check({**kept.files, CHECKPOINT: damaged}, 2)


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


GOOD = {"step": 1, "history": HISTORY[:1], "network": {}, "optimizer": {}, "scaler": None}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04cut",
        pickle.dumps({"step": 3}),
        written([1, 2]),
        written({**GOOD, "step": "3"}),
        written({**GOOD, "step": True}),
        written({**GOOD, "step": 10}),
        written({**GOOD, "history": []}),
        written({**GOOD, "history": [{"step": 0, "lr": float("nan")}]}),
        written(GOOD),
        written({**GOOD, "network": nn.Linear(2, 3).state_dict()}),
        written({**GOOD, "network": nn.Linear(2, 3).double().state_dict()}),
        written(
            {
                **GOOD,
                "network": nn.Linear(2, 3).state_dict(),
                "optimizer": torch.optim.AdamW(nn.Linear(2, 3).parameters()).state_dict(),
            }
        ),
        written({**GOOD, "network": Evil()}),
        written(GOOD, b"another training\n"),
    ],
    ids=range(15),
)
def test_what_is_no_checkpoint_of_this_training(kept, content, caplog, capsys):
    with caplog.at_level(logging.INFO):
        kept.check({**kept.files, CHECKPOINT: content}, 2)
    assert f"{CHECKPOINT}: cannot be used (" in caplog.text
    assert "continues from update 2" in caplog.text
    with caplog.at_level(logging.INFO):
        kept.check({CHECKPOINT: content, PREVIOUS: content}, 0)
    assert "continues from its start" in caplog.text
    assert not (kept.folder / CHECKPOINT).exists()
    assert "it ran" not in capsys.readouterr().out


def test_of_another_network_or_another_training(kept, tmp_path, caplog):
    for other in (Kept(tmp_path / "wide", width=4), Kept(tmp_path / "other", identity="another training")):
        kept.check(other.files, 0)
    assert "its network has other layers" in caplog.text
    assert "it belongs to another training" in caplog.text


def test_a_disk_that_refuses_leaves_both(tmp_path, monkeypatch):
    own = Kept(tmp_path / "run")
    _, _, checkpoints = own.make()

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(BadInput, match="a full disk"):
            checkpoints.save(4, HISTORY[:4])
    assert {path.name: path.read_bytes() for path in own.folder.iterdir() if path.name != STARTED} == own.files
