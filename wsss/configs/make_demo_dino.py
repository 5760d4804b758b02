"""Make the demo's DINO again: a tiny vision transformer that learns from drawn pictures without any tag. `OUT` is then what lies in `demo_dino`.

    python -m wsss.configs.make_demo_dino OUT

Self-distillation as in DINO (Caron et al., ICCV 2021), with masked patches as in iBOT (Zhou et al., ICLR 2022): a student that is given views of a
picture predicts what its own moving average, the teacher, makes of other views, and of the patches that are hidden from the student. The
pictures are those of `make_demo_clip`.
"""

import copy
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import horizontal_flip, resized_crop
from transformers import Dinov2Config, Dinov2Model

from wsss.configs.make_demo_clip import draw
from wsss.data.augment import normalise
from wsss.stream import in_threads

PICTURES, UPDATES, BATCH, SEED = 2000, 1200, 32, 98
PATCH, LARGE, SMALL = 8, 64, 32
PROTOTYPES, HIDDEN = 256, 0.4
# temperatures of student and teacher, and how slowly the centre of the teacher's outputs moves
STUDENT, TEACHER, CENTRE = 0.1, 0.04, 0.9


class Learner(nn.Module):
    """The transformer, with a head that compares tokens with prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Dinov2Model(
            Dinov2Config(
                hidden_size=64,
                num_hidden_layers=4,
                num_attention_heads=2,
                patch_size=PATCH,
                image_size=LARGE,
                layerscale_value=0.1,
            )
        )
        self.head = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, 64), dim=1))

    def forward(self, views: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Similarities (b, 1 + n, prototypes) of the class token and the patches."""
        tokens = self.body(views, bool_masked_pos=hidden).last_hidden_state
        return F.normalize(self.head(tokens), dim=2) @ F.normalize(self.prototypes, dim=1).T


def view(picture: Tensor, side: int, shares: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """A random part of a picture, resized, perhaps mirrored, with other brightness and contrast."""
    height, width = picture.shape[1:]
    crop = round(math.sqrt(rng.uniform(*shares)) * min(height, width))
    top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
    part = resized_crop(picture, top, left, crop, crop, [side, side])
    part = horizontal_flip(part) if rng.random() < 0.5 else part
    return part * float(rng.uniform(0.8, 1.25)) + float(rng.uniform(-0.2, 0.2))


def cross_entropy(student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
    """-sum of the teacher's sharpened distribution times the log of the student's, averaged over tokens."""
    wanted = ((teacher - centre) / TEACHER).softmax(-1)
    return -(wanted * (student / STUDENT).log_softmax(-1)).sum(-1).mean()


def train() -> Dinov2Model:
    """The teacher after the training."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    pictures = torch.from_numpy(np.stack([*in_threads(lambda index: normalise(draw(index)[0]), range(PICTURES))]))
    student = Learner()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.04)
    centres = [torch.zeros(PROTOTYPES), torch.zeros(PROTOTYPES)]
    for update in range(UPDATES):
        done = update / UPDATES
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (update + 1) / 100) * (1 + math.cos(math.pi * done)) / 2
        chosen = pictures[rng.choice(PICTURES, BATCH, replace=False)]
        large = [torch.stack([view(one, LARGE, (0.5, 1.0), rng) for one in chosen]) for _ in range(2)]
        small = [torch.stack([view(one, SMALL, (0.1, 0.4), rng) for one in chosen]) for _ in range(2)]
        hidden = torch.from_numpy(rng.random((2 * BATCH, (LARGE // PATCH) ** 2)) < HIDDEN)
        with torch.no_grad():
            wanted = teacher(torch.cat(large))
        given = student(torch.cat(large), hidden)
        of_large, of_wanted = given[:, 0].chunk(2), wanted[:, 0].chunk(2)
        of_small = student(torch.cat(small))[:, 0].chunk(2)
        pairs = [(of_large[1], of_wanted[0]), (of_large[0], of_wanted[1])]
        pairs += [(one, other) for one in of_small for other in of_wanted]
        of_views = torch.stack([cross_entropy(*pair, centres[0]) for pair in pairs]).mean()
        of_patches = cross_entropy(given[:, 1:][hidden], wanted[:, 1:][hidden], centres[1])
        optimizer.zero_grad()
        (of_views + of_patches).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        with torch.no_grad():
            means = wanted[:, 0].mean(0), wanted[:, 1:].mean((0, 1))
            centres = [CENTRE * old + (1 - CENTRE) * new for old, new in zip(centres, means, strict=True)]
            momentum = 1 - 0.01 * (1 + math.cos(math.pi * done)) / 2
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.mul_(momentum).add_(new, alpha=1 - momentum)
        if update % 100 == 0:
            print(f"{update} of {UPDATES}: views {of_views:.3f}, patches {of_patches:.3f}", flush=True)
    return teacher.body


if __name__ == "__main__":
    train().half().save_pretrained(Path(sys.argv[1]))
