"""Two processes on the CPU: what they share out, add up and decide; they train what one trains."""

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tests.conftest import write_squares
from tests.end_to_end.conftest import ENVIRONMENT
from wsss import launch
from wsss.errors import BadInput
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS, read_weights, write_weights

NORMS = {"plain": nn.BatchNorm2d, "timm": BatchNormAct2d, "average": lambda n: nn.BatchNorm2d(n, momentum=None)}


def norm_step(kind: str, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """One step through a small network; gradients as averaged over the processes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), NORMS[kind](4), nn.Conv2d(4, 2, 1)).double()
    launch.synchronise_batch_norm(network)
    out = network(batch)
    (out**2).mean().backward()
    gradients = {}
    for name, parameter in network.named_parameters():
        gradients[name] = launch.mean_over_processes(parameter.grad)
    return {**gradients, **{name: value.double() for name, value in network.named_buffers()}}


def batch_of_all() -> torch.Tensor:
    return torch.randn(4, 3, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Double:
    """A classifier in float64, whose rounding cannot hide a wrong gradient."""

    title: ClassVar[str] = "double"

    training: Training = Training(batch=4, accumulate=2, epochs=4, lr=0.1, momentum=0.9, workers=1)

    def trainable(self, images):
        return Learning(images)


class Learning(nn.Module):
    stop_epochs = repeats = None

    def __init__(self, images):
        super().__init__()
        layers = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 2, 1),
        )
        self.network = nn.Sequential(*layers).double()
        self.examples = partial(example, images)

    def forward(self, batch):
        logits = self.network(batch["image"]).mean((2, 3))
        # the second loss looks at pairs of pictures, whichever process they are on
        pairs = launch.joined(logits) @ launch.joined(logits).T + torch.arange(4.0).double()
        return {
            "toy": nn.functional.multilabel_soft_margin_loss(logits, batch["label"]),
            "pairs": pairs.logsumexp(1).mean(),
        }

    def write(self, out):
        write_weights(out / WEIGHTS, self.network.state_dict(), {"kind": "toy"})

    def param_groups(self, training):
        return [{"params": list(self.network.parameters()), "lr": training.lr, "weight_decay": 0.01}]


def example(images, index, rng):
    picture = images.read(index) / 255 + rng.normal(0, 0.1, 3)
    return {
        "image": torch.from_numpy(picture.transpose(2, 0, 1)),
        "label": torch.from_numpy(images.labels[index] * 1.0),
    }


def two_processes() -> None:
    """What each of the two processes runs; an assertion that fails ends it with an error."""
    assert launch.processes() == 2
    rank = launch.rank()
    assert list(launch.share(range(5))) == [[0, 2, 4], [1, 3]][rank]
    assert launch.gathered([rank] * (rank + 1)) == [0, 1, 1]
    assert launch.summed(torch.arange(3).numpy() + rank).tolist() == [1, 3, 5]
    assert launch.decided_by_first(lambda: f"from {rank}") == "from 0"
    with pytest.raises(BadInput, match="Mend it"):
        launch.decided_by_first(refuse)
    for kind in NORMS:
        torch.save(norm_step(kind, launch_share(batch_of_all())), f"{sys.argv[1]}/{kind}-{rank}.pt")
    squares = launch.decided_by_first(lambda: write_squares(Path(sys.argv[1]) / "squares", 18))
    train(Double(), squares, out=Path(sys.argv[1]) / "two")
    # half precision: the statistics stay float32
    norm = nn.Sequential(nn.BatchNorm2d(3))
    launch.synchronise_batch_norm(norm)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(batch_of_all()[rank::2].to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()
    assert norm[0].running_mean.dtype == torch.float32


def launch_share(batch: torch.Tensor) -> torch.Tensor:
    return batch[launch.rank() :: launch.processes()]


def refuse() -> None:
    raise BadInput("here", "this", "that", "Mend it.")


@pytest.mark.whole
def test_two_processes(tmp_path):
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.test_launch",
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in NORMS:
        alone = norm_step(kind, batch_of_all())
        for rank in range(2):
            shared = torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True)
            for name, value in alone.items():
                torch.testing.assert_close(shared[name], value, rtol=1e-10, atol=1e-12, msg=f"{kind} {name}")
    train(Double(), write_squares(tmp_path / "squares", 18), out=tmp_path / "one")
    one, _ = read_weights(tmp_path / "one" / "weights.safetensors")
    two, _ = read_weights(tmp_path / "two" / "weights.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_one_process_decides_alone():
    assert launch.processes() == 1
    assert launch.is_first()
    assert list(launch.share(range(3))) == [0, 1, 2]
    assert launch.threads() >= 1


if __name__ == "__main__":
    two_processes()
