"""AffinityNet (Ahn and Kwak, Learning pixel-level semantic affinity with image-level supervision, CVPR 2018).

Known as PSA. The network computes features x of a picture; the affinity of neighbouring cells is
a_ij = exp(-mean_c |x_i(c) - x_j(c)|). This module also has its losses, and the classifier whose maps it refines. SEAM and ICAM use
the same network.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn

from wsss.arrays import Float, Shaped
from wsss.errors import BadInput
from wsss.networks.backbone import create_backbone, freeze_batch_norm
from wsss.networks.body import Backbone, ParamGroup
from wsss.networks.resnet38 import PSA_HEADS, ResNet38

VGG_BODY = "psa-vgg16"
_STRIDE = 8
# channels of x
FEATURES = 448
_EPSILON = 1e-5


class VGG16(Backbone):
    """VGG-16 (Simonyan and Zisserman, ICLR 2015) at stride 8 as in PSA, for BGR pictures in 0..255 minus the mean.

    Pooling is 3x3, the fourth with stride 1, and there is no fifth; fc6 is a 3x3 convolution. Names are those of Caffe's layers.

    Args:
        fc6_dilation: 1 in the classifier, 4 in the affinity network.
    """

    IMAGENET = None
    INITIAL = "a state dict of Caffe's VGG-16 with the names of its layers (conv1_1 .. fc7)"
    LEFT_OUT = PSA_HEADS

    def __init__(self, fc6_dilation: int) -> None:
        super().__init__()
        channels = 3
        for stage, (convs, out, dilation) in enumerate(
            ((2, 64, 1), (2, 128, 1), (3, 256, 1), (3, 512, 1), (3, 512, 2)), start=1
        ):
            for i in range(1, convs + 1):
                self.add_module(f"conv{stage}_{i}", nn.Conv2d(channels, out, 3, 1, dilation, dilation))
                channels = out
        self.fc6 = nn.Conv2d(512, 1024, 3, 1, fc6_dilation, fc6_dilation)
        self.drop6 = nn.Dropout2d(0.5)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.channels = [128, 256, 512, 512, 1024]
        self.strides = [2, 4, 8, 8, 8]

    def stages(self) -> list[list[nn.Module]]:
        """The convolutions conv1_*, .. conv5_*."""
        return [
            [layer for name, layer in self.named_children() if name.startswith(f"conv{stage}_")]
            for stage in range(1, 6)
        ]

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Caffe's names are those used here."""
        return dict(state)

    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        layers = [conv for convs in self.stages()[: feature + 2] for conv in convs]
        if feature == len(self.channels) - 1:
            layers += [self.fc6, self.fc7]
        return [parameter for layer in layers for parameter in layer.parameters()]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features conv2 (stride 2), conv3 (4), conv4, conv5 and conv5fc (8)."""
        features, x = [], image
        for stage, convs in enumerate(self.stages(), start=1):
            for conv in convs:
                x = F.relu(conv(x))
            features.append(x)
            if stage < 5:
                x = F.max_pool2d(x, 3, 2 if stage < 4 else 1, 1)
        x = self.drop6(F.relu(self.fc6(x)))
        return [*features[1:], F.relu(self.fc7(x))]


class TrunkWithHeads(nn.Module):
    """A backbone with additional layers, as PSA, SEAM and ICAM build and train their networks.

    The layers of ResNet-38 and of PSA's VGG-16 have no prefix in the state dict, as in the published checkpoints; those
    of other backbones have the prefix `backbone.`. Subclasses add their own layers and `forward`.
    """

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        if isinstance(body, ResNet38 | VGG16):
            for name, layer in body.named_children():
                self.add_module(name, layer)
        else:
            self.backbone = body
        self._body = (body,)  # in a tuple, so that nn.Module does not register it as a submodule
        self._frozen = False

    @property
    def body(self) -> Backbone:
        """The backbone."""
        return self._body[0]

    @property
    def colours(self) -> Literal["imagenet", "caffe"]:
        """The normalisation of pictures; see `wsss.data.augment.normalise`."""
        return "caffe" if isinstance(self.body, VGG16) else "imagenet"

    def freeze(self) -> "TrunkWithHeads":
        """Freeze what PSA freezes for pretrained weights: the layers before the first feature, and every batch norm.

        In ResNet-38 these are conv1a, b2, b2_1 and b2_2, in VGG-16 conv1_* and conv2_*. Batch norms use their running
        statistics from now on, and keep their scale and shift.
        """
        self._frozen = True
        norms = [m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for parameter in [*self.body.parameters_until(0), *(p for norm in norms for p in norm.parameters())]:
            parameter.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "TrunkWithHeads":
        super().train(mode)
        if self._frozen:
            freeze_batch_norm(self)
        return self

    def param_groups(self, lr: float, weight_decay: float = 5e-4, heads: float = 10) -> list[ParamGroup]:
        """The published groups: weights and biases of the backbone with `lr` and 2 `lr`, those of new layers with 10 (`heads`) and 20 `lr`.

        Biases have no decay. Group norms belong to the backbone's groups. PSA makes its groups before it freezes layers, so frozen
        convolutions are in the first group, where they never get a gradient and never decay. Frozen batch norms are in no group;
        trained ones, and the other vectors that a backbone may have, make a fifth group with `lr` and without decay.
        """
        in_body = {id(layer) for layer in self.body.modules()}
        groups: list[list[nn.Parameter]] = [[], [], [], [], []]
        for layer in self.modules():
            published = isinstance(layer, nn.Conv2d | nn.GroupNorm)
            new = id(layer) not in in_body and not isinstance(layer, nn.GroupNorm)
            for name, parameter in layer.named_parameters(recurse=False):
                if published:
                    groups[2 * new + (name == "bias")].append(parameter)
                elif parameter.requires_grad:
                    groups[0 if parameter.ndim > 1 else 4].append(parameter)
        rates = [(1, weight_decay), (2, 0.0), (heads, weight_decay), (2 * heads, 0.0), (1, 0.0)]
        return [
            {"params": group, "lr": factor * lr, "weight_decay": decay}
            for group, (factor, decay) in zip(groups[: 5 if groups[4] else 4], rates, strict=False)
        ]


class AffinityNet(TrunkWithHeads):
    """Computes the feature x with 448 channels, one cell per 8 x 8 pixels.

    f8_3, f8_4 and f8_5 reduce the backbone's last three features (conv4, conv5, conv6 of ResNet-38; conv4, conv5, conv5fc
    of VGG-16) to 64, 128 and 256 channels; f9 mixes them. Each is a 1x1 convolution without bias, followed by an ELU.

    Args:
        backbone: `resnet38`, `psa-vgg16` (with group norms before the ELUs of f8, for BGR pictures minus the mean), or any other
            backbone that `create_backbone` makes at stride 8.

    Raises:
        BadInput: there is no such backbone, or its last features are not all at stride 8.
    """

    def __init__(self, backbone: str = "resnet38") -> None:
        body = VGG16(fc6_dilation=4) if backbone == VGG_BODY else create_backbone(backbone, _STRIDE)
        if len(body.strides) < 3 or any(stride != _STRIDE for stride in body.strides[-3:]):
            raise BadInput(
                f"backbone {backbone}",
                f"features at the strides {', '.join(map(str, body.strides))}",
                f"the last three at stride {_STRIDE}",
                "Choose resnet38, resnet50 or another dilated network.",
            )
        super().__init__(body)
        channels = body.channels[-3:]
        self.f8_3 = nn.Conv2d(channels[0], 64, 1, bias=False)
        self.f8_4 = nn.Conv2d(channels[1], 128, 1, bias=False)
        self.f8_5 = nn.Conv2d(channels[2], 256, 1, bias=False)
        grouped = backbone == VGG_BODY
        self.gn8_3 = nn.GroupNorm(8, 64) if grouped else nn.Identity()
        self.gn8_4 = nn.GroupNorm(16, 128) if grouped else nn.Identity()
        self.gn8_5 = nn.GroupNorm(32, 256) if grouped else nn.Identity()
        self.f9 = nn.Conv2d(FEATURES, FEATURES, 1, bias=False)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 448 hs ws"]:
        third, fourth, fifth = self.body(image)[-3:]
        reduced = [
            F.elu(self.gn8_3(self.f8_3(third))),
            F.elu(self.gn8_4(self.f8_4(fourth))),
            F.elu(self.gn8_5(self.f8_5(fifth))),
        ]
        return F.elu(self.f9(cat(reduced, 1)))


class Classifier(TrunkWithHeads):
    """PSA's classifier: channel dropout, global average pooling, and fc8, a 1x1 convolution without bias.

    Args:
        backbone: see `AffinityNet`.
    """

    def __init__(self, n_classes: int, backbone: str = "resnet38") -> None:
        body = VGG16(fc6_dilation=1) if backbone == VGG_BODY else create_backbone(backbone, _STRIDE)
        super().__init__(body)
        self.dropout7 = nn.Dropout2d(0.5)
        self.fc8 = nn.Conv2d(body.channels[-1], n_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Logits of the classes."""
        pooled = self.dropout7(self.body(image)[-1]).mean((2, 3), keepdim=True)
        return self.fc8(pooled)[:, :, 0, 0]

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Class activation maps, ReLU(fc8(feature)); of VGG-16 their square root, as published."""
        maps = F.relu(self.fc8(self.body(image)[-1]))
        return maps.sqrt() if isinstance(self.body, VGG16) else maps


def affinity_losses(
    affinities: Float[Tensor, "b d s"],
    background: Shaped[Tensor, "b d s"],
    foreground: Shaped[Tensor, "b d s"],
    different: Shaped[Tensor, "b d s"],
    *,
    over_processes: Callable[[Tensor], Tensor] = Tensor.detach,
) -> dict[str, Float[Tensor, ""]]:
    """The cross-entropy of three kinds of pairs, each divided by their number; the sum of the three is minimised.

    With N the number of pairs of a kind and ε = 1e-5: ¼ Σ -ln(a + ε) / (N + ε) over pairs within the background, the same
    over pairs within a class, and ½ Σ -ln(1 + ε - a) / (N + ε) over pairs of different labels.

    Args:
        affinities: in 0..1, in d directions from s cells.
        background, foreground, different: 1 (or True) for the pairs of each kind, else 0; pairs with label 255 are in none.
        over_processes: averages a tensor over all processes; the mean of the losses and gradients over the processes is then
            that over all pairs.
    """
    a = affinities if affinities.dtype == torch.float64 else affinities.float()
    attracted, repelled = -(a + _EPSILON).log(), -(1 + _EPSILON - a).log()

    def mean(losses: Tensor, pairs: Tensor) -> Tensor:
        pairs = pairs.to(losses.dtype)
        return (losses * pairs).sum() / (over_processes(pairs.sum()) + _EPSILON)

    return {
        "background_pairs": mean(attracted, background) / 4,
        "foreground_pairs": mean(attracted, foreground) / 4,
        "different_pairs": mean(repelled, different) / 2,
    }
