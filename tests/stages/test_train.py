"""The training loop: same network after a kill, whatever the number of loaders; errors of the user."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import tree
from wsss import peers
from wsss.errors import BadInput
from wsss.run import DONE
from wsss.stages import train as train_module
from wsss.stages.checkpoint import CHECKPOINT, PREVIOUS
from wsss.stages.train import HISTORY, Training, make_optimizer, train
from wsss.weights import WEIGHTS, read_weights, write_weights


@dataclasses.dataclass(frozen=True)
class Toy:
    title: ClassVar[str] = "toy"

    training: Training = Training(batch=4, epochs=2, lr=0.1, workers=0, momentum=0.9)
    stop_at: int | None = None

    def trainable(self, images):
        return Learning(self, images)


class Learning(nn.Module):
    stop_epochs = repeats = None

    def __init__(self, settings, images):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
        self.examples = partial(example, images)
        self.steps = 0

    def forward(self, batch):
        logits = self.network(batch["image"]).mean((2, 3))
        return {"toy": nn.functional.multilabel_soft_margin_loss(logits, batch["label"])}

    def write(self, out):
        write_weights(out / WEIGHTS, self.network.state_dict(), {"kind": "toy"})

    def param_groups(self, training):
        return [{"params": list(self.network.parameters()), "lr": training.lr, "weight_decay": 0.0}]


def example(images, index, rng):
    picture = images.read(index).astype(np.float32) / 255 + rng.normal(0, 0.1, 3).astype(np.float32)
    return {
        "image": torch.from_numpy(picture.transpose(2, 0, 1)),
        "label": torch.from_numpy(images.labels[index].astype(np.float32)),
    }


def test_training_lowers_the_loss_and_records_it(tmp_path, squares):
    settings = Toy(dataclasses.replace(Toy().training, epochs=30))
    train(settings, squares, out=tmp_path / "run")
    history = json.loads((tmp_path / "run" / HISTORY).read_text())
    assert [row["step"] for row in history] == list(range(90))
    assert np.mean([row["toy"] for row in history[-9:]]) < np.mean([row["toy"] for row in history[:9]])
    state, metadata = read_weights(tmp_path / "run" / "weights.safetensors")
    assert metadata == {"kind": "toy"}
    assert set(state) == set(Learning(settings, squares).network.state_dict())


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_killed_training_ends_in_the_same_bytes(tmp_path, squares, monkeypatch, stop_after):
    settings = Toy(Training(batch=4, epochs=2, lr=0.1, workers=0, momentum=0.9, checkpoint_steps=2))
    train(settings, squares, out=tmp_path / "whole")
    saves, forward = [], Learning.forward

    def killed(self, batch):
        saves.append(1)
        if len(saves) > stop_after:
            raise KeyboardInterrupt
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learning, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings, squares, out=tmp_path / "killed")
    assert (tmp_path / "killed" / CHECKPOINT).exists() == (stop_after >= 2)
    assert not (tmp_path / "killed" / DONE).exists()
    train(settings, squares, out=tmp_path / "killed")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


class Counted:
    """Does something in the forward pass of one update."""

    def __init__(self, update, action):
        self.made, self.update, self.action, self.forward = 0, update, action, Learning.forward

    def patch(self, monkeypatch):
        counted = self

        def forward(self, batch):
            counted.made += 1
            if counted.made == counted.update:
                counted.action()
            return counted.forward(self, batch)

        monkeypatch.setattr(Learning, "forward", forward)


@pytest.mark.parametrize(
    ("number", "update", "workers"),
    [(signal.SIGINT, 1, 0), (signal.SIGTERM, 4, 2), (signal.SIGHUP, 6, 0)],
    ids=["first update", "loader processes", "last update"],
)
def test_a_signal_saves_a_checkpoint_first(tmp_path, squares, monkeypatch, capsys, number, update, workers):
    settings = Toy(dataclasses.replace(Toy().training, workers=workers))
    train(settings, squares, out=tmp_path / "whole")
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        counted = Counted(update, lambda: os.kill(os.getpid(), number))
        counted.patch(patch)
        assert peers.guarded(lambda: train(settings, squares, out=out)) == 128 + number
    assert counted.made == update
    by = "Ctrl-C" if number == signal.SIGINT else number.name
    said = f"wsss: stopped by {by}. train stopped: {update} of 6 updates are saved. Run the same command to continue."
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert not multiprocessing.active_children()
    counted = Counted(0, None)
    counted.patch(monkeypatch)
    train(settings, squares, out=out)
    assert counted.made == 6 - update
    assert tree(out) == tree(tmp_path / "whole")


def test_a_checkpoint_comes_after_so_many_minutes_too(tmp_path, squares, monkeypatch):
    settings = Toy(dataclasses.replace(Toy().training, checkpoint_minutes=0.0))
    whole = train(Toy(), squares, out=tmp_path / "whole")

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        Counted(4, stop).patch(patch)
        with pytest.raises(KeyboardInterrupt):
            train(settings, squares, out=tmp_path / "run")
    assert (tmp_path / "run" / CHECKPOINT).exists()
    assert (tmp_path / "run" / PREVIOUS).exists()
    counted = Counted(0, None)
    counted.patch(monkeypatch)
    train(settings, squares, out=tmp_path / "run")
    assert counted.made == 3
    assert tree(tmp_path / "run") == tree(whole)


def test_damaged_checkpoints_cost_updates_and_nothing_else(tmp_path, squares, monkeypatch, caplog):
    settings = Toy(dataclasses.replace(Toy().training, checkpoint_steps=2))
    whole = train(settings, squares, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        Counted(5, lambda: os.kill(os.getpid(), signal.SIGTERM)).patch(patch)
        peers.guarded(lambda: train(settings, squares, out=tmp_path / "run"))
    for damaged, left in (((CHECKPOINT,), 4), ((CHECKPOINT, PREVIOUS), 0)):
        out = tmp_path / str(left)
        shutil.copytree(tmp_path / "run", out)
        for name in damaged:
            content = bytearray((out / name).read_bytes())
            content[len(content) // 2] ^= 4
            (out / name).write_bytes(content)
        with monkeypatch.context() as patch:
            counted = Counted(0, None)
            counted.patch(patch)
            train(settings, squares, out=out)
        assert counted.made == 6 - left
        assert f"{out / CHECKPOINT}: cannot be used (it is truncated or its bytes have changed)" in caplog.text
        assert tree(out) == tree(whole)


def test_a_killed_loader_process_is_named(tmp_path, squares, monkeypatch):
    def kill():
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    Counted(2, kill).patch(monkeypatch)
    settings = Toy(dataclasses.replace(Toy().training, workers=1, epochs=20))
    with pytest.raises(BadInput, match=r"training.workers: found a loader process that was killed"):
        train(settings, squares, out=tmp_path / "run")


def test_loader_processes_do_not_change_the_result(tmp_path, squares):
    for workers in (0, 2):
        train(Toy(dataclasses.replace(Toy().training, workers=workers)), squares, out=tmp_path / str(workers))
    assert tree(tmp_path / "0") == tree(tmp_path / "2")


def test_accumulated_batches_equal_a_large_one(tmp_path, squares, monkeypatch):
    # no dropout and no batch statistics, which do depend on the batch
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x)
    base = Training(epochs=None, steps=3, lr=0.1, workers=0, momentum=0.9)
    train(Toy(dataclasses.replace(base, batch=4, accumulate=3)), squares, out=tmp_path / "parts")
    train(Toy(dataclasses.replace(base, batch=12)), squares, out=tmp_path / "whole")
    parts, _ = read_weights(tmp_path / "parts" / "weights.safetensors")
    whole, _ = read_weights(tmp_path / "whole" / "weights.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-5)  # 2e-6 with one thread


def test_steps_overrule_epochs_and_epochs_are_reshuffled(squares):
    training = Training(batch=4, epochs=None, steps=7)
    batches = list(train_module._Batches(training, [(i, 0) for i in range(12)], 3, 0, 7))
    assert len(batches) == 7
    epochs = [[index for batch in batches[i : i + 3] for _, index, _ in batch] for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    resumed = list(train_module._Batches(training, [(i, 0) for i in range(12)], 3, 5, 7))
    assert resumed == batches[5:]


def test_too_few_pictures(tmp_path, squares):
    with pytest.raises(BadInput, match="12 pictures; expected at least one batch of 16"):
        train(Toy(Training(batch=16, workers=0)), squares, out=tmp_path / "run")


def test_no_pictures(tmp_path, squares):
    with pytest.raises(BadInput, match="no pictures"):
        train(Toy(), squares.subset([]), out=tmp_path / "run")


def test_a_loss_that_is_no_number_stops_the_training(tmp_path, squares):
    with pytest.raises(BadInput, match=r"update \d+: found a loss that is not finite"):
        train(Toy(Training(batch=4, epochs=50, lr=1e30, workers=0)), squares, out=tmp_path / "run")


def test_a_bad_picture_in_a_loader_process_is_named(tmp_path, squares):
    squares.paths[3].write_bytes(b"")
    with pytest.raises(BadInput, match="bild_3"):
        train(Toy(dataclasses.replace(Toy().training, workers=1)), squares, out=tmp_path / "run")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trackers_and_clipping(tmp_path, squares, precision):
    for name in (precision, "no"):  # one command trains several networks
        training = Training(batch=4, epochs=1, lr=0.01, workers=0, precision=name, clip=1.0, tensorboard=True)
        train(Toy(training), squares, out=tmp_path / name)
        assert list((tmp_path / name / "tensorboard").rglob("events.out.*"))
        state, _ = read_weights(tmp_path / name / "weights.safetensors")
        assert state["0.weight"].dtype == torch.float32


def test_a_kill_after_the_last_write_needs_no_training(tmp_path, squares, monkeypatch):
    out = train(Toy(), squares, out=tmp_path / "run")
    whole = tree(out)
    (out / DONE).rename(out / "started.json")
    monkeypatch.setattr(Learning, "forward", lambda *_: pytest.fail("it trained again"))
    record = json.loads((out / "started.json").read_text())
    del record["result"], record["files"]
    (out / "started.json").write_text(json.dumps(record))
    train(Toy(), squares, out=out)
    assert tree(out) == whole


@pytest.mark.parametrize(
    "setting",
    [{"batch": 0}, {"accumulate": 0}, {"seed": -1}, {"epochs": None}, {"lr": -0.1}, {"stop_epochs": 0}],
)
def test_settings_that_make_no_sense(setting):
    with pytest.raises(BadInput, match="training"):
        Training(**setting)


def test_warmup_and_floor_of_the_schedule():
    training = Training(warmup=3, poly_power=0.0)
    assert [train_module.poly_factor(training, step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_training_stops_where_its_schedule_goes_on(tmp_path, squares):
    whole = dataclasses.replace(Toy().training, epochs=3, checkpoint_steps=1)
    train(Toy(whole), squares, out=tmp_path / "whole")
    out = train(Toy(dataclasses.replace(whole, stop_epochs=2)), squares, out=tmp_path / "stopped")
    histories = [json.loads((tmp_path / name / HISTORY).read_text()) for name in ("whole", "stopped")]
    assert histories[1] == histories[0][:6]
    assert json.loads((out / DONE).read_text())["result"]["steps"] == 6
    longer = dataclasses.replace(whole, stop_epochs=9)
    train(Toy(longer), squares, out=tmp_path / "longer")
    assert (tmp_path / "longer" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_adamw_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(64, 16, 3, 3, generator=generator), torch.randn(64, generator=generator)]
    ends = []
    for make in (
        partial(make_optimizer, Training(optimizer="adamw", lr=1e-2, weight_decay=0.05)),
        partial(torch.optim.AdamW, fused=False),
    ):
        weights = [nn.Parameter(value.clone()) for value in start]
        groups = [
            {"params": [weight], "lr": 1e-2, "weight_decay": decay}
            for weight, decay in zip(weights, (0.05, 0.0), strict=True)
        ]
        optimizer = make(groups)
        for update in range(3):
            for weight in weights:
                weight.grad = torch.sin(weight.detach() * (update + 1))
            optimizer.step()
        ends.append(weights)
    for weight, expected, before in zip(*ends, start, strict=True):
        assert (weight - before).abs().max() > 1e-2
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)


def test_first_and_last_number_of_the_schedule():
    training = Training(poly_every=10, poly_first=1, poly_power=1.0)
    assert [train_module.poly_factor(training, step, 30) for step in (0, 8, 9, 28, 29)] == [
        1,
        1,
        1 - 10 / 30,
        1 - 20 / 30,
        0,
    ]
    beyond = Training(poly_beyond=1, poly_power=1.0)
    assert [train_module.poly_factor(beyond, step, 3) for step in range(4)] == [1, 0.75, 0.5, 0.5]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch shares memory in another way")
@pytest.mark.parametrize(("workers", "length", "refused"), [(1, 76, True), (1, 75, False), (0, 76, False)])
def test_a_folder_for_temporary_files_whose_sockets_have_too_long_paths(
    tmp_path, squares, monkeypatch, workers, length, refused
):
    """The loader's processes would wait forever."""
    short = tempfile.mkdtemp(prefix="w")
    folder = Path(short) / ("x" * (length - len(short) - 1))
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    settings = Toy(dataclasses.replace(Toy().training, workers=workers))
    try:
        if refused:
            with pytest.raises(BadInput, match=r"TMPDIR: found .* 76 bytes"):
                train(settings, squares, out=tmp_path / "out")
        else:
            train(settings, squares, out=tmp_path / "out")
    finally:
        shutil.rmtree(short)
