"""IRNet (Ahn et al., Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations, CVPR 2019).

Two branches on a frozen backbone: the probability that a cell lies on the edge between two labels, and the displacement
field D that points from each cell to the centre of its instance. Without the second branch this is the "AffinityNet" on
ResNet-50 published with CLIMS (Xie et al., CVPR 2022). Layers and state-dict names are those of the irn
repository, with a single name for each tensor.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsss.arrays import Float, Integer
from wsss.errors import BadInput
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Backbone, ParamGroup
from wsss.ops.affinity import Cells, at_destinations, at_sources, directions, pair_labels, path_affinity

EPSILON = 1e-5

# IRNet and CLIMS save every tensor under several names, and IRNet also its index buffers; the names to load are resnet50.*,
# classifier.weight, fc_edge*, fc_dp* and mean_shift.running_mean
IRNET_ALIASES = (
    "stage[1-5].*",
    "backbone.*",
    "newly_added.*",
    "edge_layers.*",
    "dp_layers.*",
    "fc_dp7.4.running_mean",
    "path_indices*",
    "disp_target",
)

# directions per chunk of the losses, which are recomputed for the gradient: this needs a small part of the memory of all 152
# directions of radius 10
_CHUNK = 8

Averaged = Callable[[Tensor], Tensor]


class Branches(NamedTuple):
    """The output of IRNet for a batch, one cell per `stride` pixels."""

    edge: Float[Tensor, "b 1 h w"]
    """logits of the edge map"""
    displacement: Float[Tensor, "b 2 h w"] | None
    """dy and dx in cells; None without the displacement branch"""


class MeanShift(nn.Module):
    """Subtracts the mean displacement of a dataset, only in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.running_mean: Tensor
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, displacement: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b 2 h w"]:
        return displacement if self.training else displacement - self.running_mean[:, None, None]


class IRNet(nn.Module):
    """Edge and displacement branches on the five features of a frozen backbone.

    Entries of the state dict: `resnet50.*` (or the name of the ResNet used; `backbone.*` for timm models), `fc_edge*`,
    `fc_dp*` and `mean_shift.running_mean`.

    Args:
        backbone: resnet18 .. resnet152, or a timm model with five features. The first two of resnet50 have stride 4;
            in all cases the branches have the stride of the second feature.
        output_stride: of the deepest feature.
        displacement: whether there is a displacement branch.

    Raises:
        BadInput: there is no such backbone, it does not support this stride, or it does not have five features.
    """

    def __init__(self, backbone: str = "resnet50", *, output_stride: int = 16, displacement: bool = True) -> None:
        super().__init__()
        body = create_backbone(backbone, output_stride)
        if len(body.channels) != 5:
            raise BadInput(
                f"backbone {backbone}",
                f"{len(body.channels)} features",
                "five, those of a stem and four stages",
                "Choose a backbone with a stem, such as resnet50 or mobilenetv3_small_050.",
            )
        self.body_name = backbone if backbone.startswith("resnet") and hasattr(body, "layer4") else "backbone"
        self.add_module(self.body_name, body.requires_grad_(False))
        self.stride = body.strides[1]
        c, s = body.channels, body.strides
        self.fc_edge1 = _layer(c[0], 32, 4, s[0], s[1])
        self.fc_edge2 = _layer(c[1], 32, 4, s[1], s[1])
        self.fc_edge3 = _layer(c[2], 32, 4, s[2], s[1])
        self.fc_edge4 = _layer(c[3], 32, 4, s[3], s[1])
        self.fc_edge5 = _layer(c[4], 32, 4, s[4], s[1])
        self.fc_edge6 = nn.Conv2d(160, 1, 1)
        self.displacement = displacement
        if displacement:
            self.fc_dp1 = _layer(c[0], 64, 8, s[0], s[1])
            self.fc_dp2 = _layer(c[1], 128, 16, s[1], s[1])
            self.fc_dp3 = _layer(c[2], 256, 16, s[2], s[2])
            self.fc_dp4 = _layer(c[3], 256, 16, s[3], s[2])
            self.fc_dp5 = _layer(c[4], 256, 16, s[4], s[2])
            self.fc_dp6 = _layer(768, 256, 16, s[2], s[1])
            self.fc_dp7 = nn.Sequential(*_layer(448, 256, 16, s[1], s[1]), nn.Conv2d(256, 2, 1, bias=False))
            self.mean_shift = MeanShift()
        self.train()

    @property
    def body(self) -> Backbone:
        """The backbone."""
        return cast(Backbone, self.get_submodule(self.body_name))

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a published state dict, of `res50_irn.pth` or of the affinity network of the camera-ready CLIMS.

        Both have each tensor under several names (`IRNET_ALIASES`); the second calls its backbone `model`.
        """
        return {re.sub(r"^model\.", "resnet50.", name): value for name, value in state.items()}

    def train(self, mode: bool = True) -> "IRNet":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Branches:
        features = self._features(image)
        displacement = self.mean_shift(self._displacement(features)) if self.displacement else None
        return Branches(self._edge(features), displacement)

    @torch.no_grad()
    def mean_displacement(
        self, batches: Iterable[Float[Tensor, "_ 3 _ _"]], *, over_processes: Averaged = Tensor.detach
    ) -> Float[Tensor, "2"]:
        """The mean displacement of each batch, averaged over the batches, without the mean shift.

        After training, IRNet stores it in `mean_shift.running_mean`, from batches of 32 crops of 512 without augmentation.

        Args:
            batches: of pictures.
            over_processes: averages a tensor over all processes, each of which has its own batches.

        Raises:
            BadInput: no process has any batch.
        """
        total = self.mean_shift.running_mean.new_zeros(3)
        for images in batches:
            mean = self._displacement(self._features(images)).mean((0, 2, 3))
            total += F.pad(mean, (0, 1), value=1.0)
        total = over_processes(total)
        if total[2] == 0:
            raise BadInput("mean displacement", "no batch of pictures", "one or more", "Use smaller batches.")
        return total[:2] / total[2]

    @torch.no_grad()
    def _features(self, image: Tensor) -> list[Tensor]:
        return self.body(image)

    def _edge(self, x: list[Tensor]) -> Tensor:
        layers = (self.fc_edge1, self.fc_edge2, self.fc_edge3, self.fc_edge4, self.fc_edge5)
        edges = [layer(feature) for layer, feature in zip(layers, x, strict=True)]
        return self.fc_edge6(_joined(edges, edges[1]))

    def _displacement(self, x: list[Tensor]) -> Tensor:
        layers = (self.fc_dp1, self.fc_dp2, self.fc_dp3, self.fc_dp4, self.fc_dp5)
        dp1, dp2, dp3, dp4, dp5 = (layer(feature) for layer, feature in zip(layers, x, strict=True))
        upper = self.fc_dp6(_joined([dp3, dp4, dp5], dp3))
        return self.fc_dp7(_joined([dp1, dp2, upper], dp2))

    def param_groups(self, lr: float, weight_decay: float = 1e-4) -> list[ParamGroup]:
        """The published groups: edge layers with `lr`, displacement layers with 10 `lr`."""
        rates = {"fc_edge": lr, "fc_dp": 10 * lr} if self.displacement else {"fc_edge": lr}
        named = list(self.named_parameters())
        return [
            {"params": [p for name, p in named if name.startswith(layers)], "lr": rate, "weight_decay": weight_decay}
            for layers, rate in rates.items()
        ]


def _layer(channels: int, out_channels: int, groups: int, stride: int, to_stride: int) -> nn.Sequential:
    """1x1 convolution, group norm, resampling from one stride to another, and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(channels, out_channels, 1, bias=False), nn.GroupNorm(groups, out_channels)]
    if stride > to_stride:
        layers.append(nn.Upsample(scale_factor=stride // to_stride, mode="bilinear", align_corners=False))
    elif stride < to_stride:  # for example, the stem of timm's ResNets is twice as large as the next stage
        layers.append(nn.AvgPool2d(to_stride // stride, ceil_mode=True))
    return nn.Sequential(*layers, nn.ReLU())


def _joined(maps: list[Tensor], like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    return torch.cat([value[..., :height, :width] for value in maps], 1)


def irnet_losses(
    branches: Branches,
    labels: Integer[Tensor, "b h w"],
    n_labels: int,
    radius: int = 10,
    *,
    over_processes: Averaged = Tensor.detach,
) -> dict[str, Float[Tensor, ""]]:
    """The losses of IRNet on confident labels, weighted as in the published code; their sum is minimised.

    With a the affinity of a pair, e = 1e-5, sums over all pairs of one kind in the batch, and |M| their number:

        background_pairs, foreground_pairs    1/4 · Σ -ln(a + e) / (|M| + e)
        different_pairs                       1/2 · Σ -ln(1 + e - a) / (|M| + e)
        foreground_displacement               1/2 · Σ |D(i) - D(j) - (dy, dx)| / (2 |M| + e)
        background_displacement               1/2 · Σ |D(i) - D(j)| / (2 |M| + e)

    This is half of the paper's sum. Without a displacement branch the last two are left out (camera-ready CLIMS).

    Args:
        branches: the output of the network.
        labels: at the size of the maps; 0 background, `n_labels` and above unknown.
        n_labels: including the background.
        radius: of the pairs, in cells.
        over_processes: averages a tensor over all processes; the mean of the losses and gradients over the processes is then
            that over all pairs.

    Raises:
        BadInput: the labels have another size, or the maps are too small for the radius.
    """
    if labels.shape[-2:] != branches.edge.shape[-2:]:
        raise BadInput(
            "labels of a batch",
            f"{labels.shape[-2]} x {labels.shape[-1]} cells",
            f"{branches.edge.shape[-2]} x {branches.edge.shape[-1]}, like the edge map",
            "Downscale the labels to the stride of the network.",
        )
    edge = _at_least_float32(branches.edge)[:, 0].sigmoid()
    displacement = None if branches.displacement is None else _at_least_float32(branches.displacement)
    everywhere = directions(radius)
    parts = [everywhere[start : start + _CHUNK] for start in range(0, len(everywhere), _CHUNK)]
    sums = torch.stack(
        [
            checkpoint(
                _sums, edge, displacement, labels, n_labels, radius, part, use_reentrant=False, preserve_rng_state=False
            )
            for part in parts
        ]
    ).sum(0)
    bg, fg, neg = over_processes(sums[:3].detach())
    losses = {
        "background_pairs": sums[3] / (bg + EPSILON) / 4,
        "foreground_pairs": sums[4] / (fg + EPSILON) / 4,
        "different_pairs": sums[5] / (neg + EPSILON) / 2,
    }
    if displacement is not None:
        losses["foreground_displacement"] = sums[6] / (2 * fg + EPSILON) / 2
        losses["background_displacement"] = sums[7] / (2 * bg + EPSILON) / 2
    return losses


def _sums(edge: Tensor, displacement: Tensor | None, labels: Tensor, n_labels: int, radius: int, part: Cells) -> Tensor:
    """The numbers of pairs (background, foreground, different), then the sums of the losses in the same order."""
    kinds = [kind.to(edge.dtype) for kind in pair_labels(labels, radius, part, n_labels)]
    bg, fg, neg = kinds
    affinity = path_affinity(edge, radius, part)
    alike, apart = -(affinity + EPSILON).log(), -(1 + EPSILON - affinity).log()
    sums = [kind.sum() for kind in kinds] + [(bg * alike).sum(), (fg * alike).sum(), (neg * apart).sum()]
    if displacement is not None:
        moved = at_sources(displacement, radius)[..., None, :] - at_destinations(displacement, radius, part)
        step = torch.tensor(part, dtype=moved.dtype, device=moved.device).T[..., None]
        sums += [(fg * (moved - step).abs().sum(1)).sum(), (bg * moved.abs().sum(1)).sum()]
    return torch.stack(sums)


def _at_least_float32(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


class Boundaries(NamedTuple):
    """The input of random walks and instances, for one picture."""

    edge: Float[Tensor, "h w"]
    """in [0, 1]"""
    displacement: Float[Tensor, "2 h w"] | None
    """dy and dx in cells"""


@torch.no_grad()
def boundaries(network: IRNet, image: Float[Tensor, "3 h w"], pad_to: int = 512) -> Boundaries:
    """Edge map and displacement of a picture; the edge map is the sigmoid of the logits averaged with those of the mirror image.

    Args:
        network: in evaluation mode.
        image: RGB, normalised with ImageNet's mean and standard deviation.
        pad_to: shorter sides are padded with zeros to this number of pixels, at the right and at the bottom: 512 in IRNet,
            0 (no padding) in CLIMS and QA-CLIMS. Padding changes the statistics of group norms, so the maps differ.

    Returns:
        Maps with one cell per `network.stride` pixels, rounded up.
    """
    height, width = image.shape[-2:]
    pair = torch.stack([image, image.flip(-1)])
    # IRNet's padding becomes negative, and crops, if a side is longer than 512
    edge, displacement = network(F.pad(pair, (0, max(pad_to - width, 0), 0, max(pad_to - height, 0))))
    rows, columns = -(-height // network.stride), -(-width // network.stride)
    edge = edge[:, 0, :rows, :columns]
    edge = (edge[0] / 2 + edge[1].flip(-1) / 2).sigmoid()
    return Boundaries(edge, None if displacement is None else displacement[0, :, :rows, :columns])
