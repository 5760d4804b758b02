"""What tests of methods that start from a CLIP or a classifier share: a small CLIP and classifier, features by transformers, memory, processes."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import write_squares
from tests.end_to_end.conftest import ENVIRONMENT
from tests.methods.test_cam import SMALL
from wsss import launch
from wsss.data.augment import ClassifierAugment
from wsss.data.images import Images
from wsss.methods import clip as clip_training
from wsss.networks.clip import CLIP
from wsss.stages.train import HISTORY, Training, train
from wsss.weights import WEIGHTS

NEW_CLIP = clip_training.CLIPSettings(
    init="none",
    architecture=clip_training.Architecture(
        patch=8, width=32, blocks=2, heads=2, text_width=16, text_blocks=1, joint=16, tokens=600
    ),
    augment=ClassifierAugment(long_side=(32, 40), crop=24),
)
TRAINING = Training(batch=4, epochs=None, steps=3, lr=0.01, workers=0, checkpoint_steps=1)
# tags of a batch that two processes share: six pairs on one, one pair or none on the other
UNEVEN = ([[1, 1], [0, 1], [1, 1], [0, 0], [1, 1], [0, 0]], [[1, 1], [0, 0], [1, 0], [0, 0], [1, 1], [0, 0]])


def write_clip(folder: Path, images: Images) -> Path:
    """A CLIP of random weights, for pictures of 24x24; in a folder of transformers."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        NEW_CLIP.trainable(images).write(folder)
    return folder


def write_baseline(folder: Path, images: Images) -> Path:
    """A classifier of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SMALL.trainable(images).write(folder)
    return folder / WEIGHTS


def drawn(label: Sequence[Sequence[int]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, pictures and tags of a batch."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(len(label), 2, 3, 3, generator=generator).requires_grad_()
    return maps, torch.randn(len(label), 3, 32, 32, generator=generator), torch.tensor(label).float()


def text_feature(clip: CLIP, prompt: str) -> Tensor:
    """A unit feature by the forward pass of transformers."""
    tokens, model = clip.vocabulary([prompt]), clip.model
    out = model.get_text_features(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return F.normalize(getattr(out, "pooler_output", out), dim=1)[0]


def picture_feature(clip: CLIP, picture: Tensor) -> Tensor:
    """A unit feature by the forward pass of transformers."""
    out = clip.model.get_image_features(pixel_values=picture)
    return F.normalize(getattr(out, "pooler_output", out), dim=1)[0]


def at_clip_size(value: Tensor) -> Tensor:
    """Maps or pictures at the size of the small CLIP's pictures."""
    return F.interpolate(value, (24, 24), mode="bilinear", align_corners=True)


def bytes_kept(clip: nn.Module, forward: Callable[[], Any]) -> int:
    """Memory that the tensors kept for the backward pass take, the CLIP's weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in clip.parameters()}
    storages = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def gradients(learning: Any, label: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Losses and gradients of one step in float64, averaged over the processes."""
    launch.synchronise_batch_norm(learning)
    generator = torch.Generator().manual_seed(2)
    pictures = torch.randn(len(label), 3, 32, 32, generator=generator).double()
    batch = {"image": pictures, "label": torch.tensor(label).double(), "index": torch.arange(len(label))}
    losses = learning({name: launch.share(value) for name, value in batch.items()})
    sum(losses.values()).backward()
    found = {name: launch.mean_over_processes(value) for name, value in losses.items()}
    for name, parameter in learning.network.named_parameters():
        if parameter.grad is not None:
            found[name] = launch.mean_over_processes(parameter.grad)
    return found


def run_on_two(module: str, folder: Path) -> None:
    """Run `python -m MODULE FOLDER` on two processes, which has to succeed."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", module, str(folder)]
    done = subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def write_gradients(folder: Path, learning: Callable[[], Any]) -> None:
    """The gradients of all uneven batches, on this process."""
    for number, label in enumerate(UNEVEN):
        torch.save(gradients(learning(), label), folder / f"{number}-{launch.rank()}.pt")


def check_gradients(folder: Path, learning: Callable[[], Any]) -> list[dict[str, Tensor]]:
    """Those that both of two processes wrote are those of one, which are given back."""
    found = [gradients(learning(), label) for label in UNEVEN]
    for number, one in enumerate(found):
        for rank in range(2):
            two = torch.load(folder / f"{number}-{rank}.pt", weights_only=True)
            assert one.keys() == two.keys()
            for name, value in one.items():
                torch.testing.assert_close(two[name], value, rtol=1e-8, atol=1e-11, msg=name)
    return found


def train_on_one_of_two(
    folder: Path, settings_of: Callable[[Path, Images], Any], in_double: Callable[..., Any]
) -> None:
    """What each of the processes of `check_two_processes` does."""
    assert launch.processes() == 2
    squares = launch.decided_by_first(lambda: write_squares(folder / "squares", 12))
    settings = launch.decided_by_first(lambda: settings_of(folder / "given", squares))
    write_gradients(folder, lambda: in_double(settings, squares))
    train(settings, squares, out=folder / "two")


def check_two_processes(
    module: str, folder: Path, settings_of: Callable[[Path, Images], Any], in_double: Callable[..., Any]
) -> None:
    """Gradients in double precision and a training on two processes are those on one; `module` calls `train_on_one_of_two`."""
    run_on_two(module, folder)
    squares = write_squares(folder / "squares", 12)
    settings = settings_of(folder / "given", squares)
    check_gradients(folder, lambda: in_double(settings, squares))
    train(settings, squares, out=folder / "one")
    check_histories(folder / "one", folder / "two", rel=1e-3, abs=1e-5)


def check_histories(*trained: Path, **tolerance: float) -> None:
    """Losses of two trainings, update by update, as far as the first one went."""
    one, two = (json.loads((folder / HISTORY).read_text()) for folder in trained)
    for one_step, two_step in zip(one, two, strict=True):
        for name, value in one_step.items():
            assert two_step[name] == pytest.approx(value, **tolerance), name
