"""Any timm model (Wightman, PyTorch image models, 2019) that returns feature maps of pictures of any size."""

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models._features import FeatureGetterNet, FeatureInfo
from torch import Tensor, nn

from wsss.arrays import Float
from wsss.errors import BadInput
from wsss.networks.body import Backbone

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# errors of models that cannot be built, or do not accept a picture
_FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    NotImplementedError,
    AttributeError,
    AssertionError,
    KeyError,
    IndexError,
)
# options of timm's families for pictures of other sizes than that of their weights; the first that a model accepts is used
_ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
# picture sizes that every backbone must accept: a wide one whose sides are no multiples of any stride, and a tall one
_SIZES_HW = ((97, 131), (144, 96))
_ALTERNATIVES = (
    "Choose one that does, for example resnet50, convnext_atto, vit_small_patch16_224 or swin_tiny_patch4_window7_224."
)


@dataclass(frozen=True)
class _Plan:
    """How to build a model, and how to apply it to pictures of any size."""

    options: dict[str, Any]
    """of `timm.create_model`"""
    depth: int
    """number of blocks of a plain transformer, whose features are taken at four depths, after its last norm; 0: timm's choice"""
    multiple: int
    """pictures are padded to multiples of this number of pixels, and the cells of the padding are cut off"""
    channels_last: bool
    """whether features have the layout (b, h, w, c)"""


class TimmBackbone(Backbone):
    """The feature maps of a timm model.

    Transformers work at any size: timm resamples their position embeddings, and pictures are padded (at the right and at the bottom,
    with the mean colour) to multiples of the patch. The deepest stride of a plain transformer (ViT, DeiT, DINOv2) is the side of its
    patches; its features are those after a quarter, a half, three quarters, and all of its blocks.

    Args:
        name: timm's name of the model.
        output_stride: stride of the deepest feature. Most convolutional networks support 8, 16 and 32, others only one stride.

    Raises:
        BadInput: there is no such model, it only accepts pictures of a single size, or it does not support this stride.
    """

    IMAGENET = "timm"

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        self.name = name
        self.plan = _plan(name, output_stride)
        self.body = _built(name, self.plan.options, self.plan.depth)
        self.features = _info(self.body)
        self.channels = list(self.features.channels())
        self.strides = list(self.features.reduction())
        # images are normalised with ImageNet's mean and standard deviation; a third of timm's pretrained models need others
        config = timm.models.get_pretrained_cfg(name)
        self.scale: Tensor
        self.shift: Tensor
        self.normalise_by(config.mean if config else _IMAGENET[0], config.std if config else _IMAGENET[1])

    def normalise_by(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        """Use this mean and standard deviation of RGB values in [0, 1] instead of those of timm's weights."""
        theirs = [torch.tensor(values)[:, None, None] for values in (mean, deviation)]
        ours = [torch.tensor(values)[:, None, None] for values in _IMAGENET]
        self.register_buffer("scale", ours[1] / theirs[1], persistent=False)
        self.register_buffer("shift", (ours[0] - theirs[0]) / theirs[1], persistent=False)

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a state dict of the full model to the names of its features; the classifier is left out.

        timm flattens some containers in feature networks.
        """
        names, full_names = self.state_dict().keys(), _full_names(self.name)
        named = {}
        for name, value in state.items():
            forms = (name, f"body.{name}", f"body.{name.replace('.', '_', 1)}", f"body.model.{name}")
            new_name = next((form for form in forms if form in names), None)
            if new_name or name not in full_names:
                named[new_name or f"body.{name}"] = value
        return named

    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        modules = self.features.module_name()
        if end := self._positions(modules[feature]):
            return list(self.body.parameters())[: end[-1] + 1]
        # the feature is the output of an activation: take all parameters before the module of the next feature
        if feature + 1 < len(modules) and (following := self._positions(modules[feature + 1])):
            return list(self.body.parameters())[: following[0]]
        raise BadInput(
            f"backbone {self.name}",
            f"no parameters below {modules[feature]}",
            "a backbone whose first stages can be identified, since they should be frozen",
            "Train all layers (frozen: nothing), or choose another backbone.",
        )

    def _positions(self, module: str) -> list[int]:
        # timm flattens containers in some feature networks: blocks.1 becomes blocks_1
        prefixes = (f"{module}.", f"{module.replace('.', '_')}.", f"model.{module}.")
        names = [name for name, _ in self.body.named_parameters()]
        return [position for position, name in enumerate(names) if name.startswith(prefixes)]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        return _features(self.body, self.plan, image * self.scale + self.shift, self.strides)


def own_stride(name: str) -> int:
    """The stride of the deepest feature of a model as timm builds it.

    Raises:
        BadInput: the model has no feature maps.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        try:
            return _info(_first(name, {})[1]).reduction()[-1]
        except _FAILURES as error:
            raise _no_features(name, error) from error


def _no_features(name: str, error: Exception) -> BadInput:
    found = f"a timm model without features ({_line(error)})"
    return BadInput(f"backbone {name}", found, "one that supports features_only", _ALTERNATIVES)


def near(name: str, ours: Iterable[str]) -> str:
    """A suggestion for an unknown name."""
    known = list(dict.fromkeys([*ours, *timm.list_models()]))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6) or timm.list_models(f"*{name.split('_')[0]}*")[:3]
    return f"Did you mean {' or '.join(close)}?" if close else "Choose resnet50, or a name of timm.list_models()."


def _features(body: nn.Module, plan: _Plan, image: Tensor, strides: list[int]) -> list[Tensor]:
    height, width = image.shape[-2:]
    if plan.multiple > 1:
        image = F.pad(image, (0, -width % plan.multiple, 0, -height % plan.multiple))
    features = [f.permute(0, 3, 1, 2) if plan.channels_last else f for f in body(image)]
    # no division of negative numbers, which torch's ONNX exporter rounds towards zero
    return [f[..., : (height + s - 1) // s, : (width + s - 1) // s] for f, s in zip(features, strides, strict=True)]


def _built(name: str, options: Mapping[str, Any], depth: int) -> nn.Module:
    if not depth:
        return timm.create_model(name, features_only=True, pretrained=False, **options)
    quarters = tuple(sorted({-(-depth * part // 4) - 1 for part in (1, 2, 3, 4)}))
    # timm's features lack the last norm, which its own classifiers use
    return FeatureGetterNet(timm.create_model(name, pretrained=False, **options), out_indices=quarters, norm=True)


@functools.cache
def _full_names(name: str) -> frozenset[str]:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return frozenset(timm.create_model(name, pretrained=False).state_dict())


@functools.cache
def _plan(name: str, output_stride: int) -> _Plan:
    """How to build the model; it is tried with pictures of several sizes, on the meta device."""
    # random numbers drawn here, only in the first call, would shift all later ones
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        try:
            options, body = _first(name, {})
        except _FAILURES as error:
            raise _no_features(name, error) from error
        found = _info(body).reduction()[-1]
        if found == output_stride:
            return _tried(name, options, body)
        try:
            dilated, body_dilated = _first(name, {"output_stride": output_stride})
            if _info(body_dilated).reduction()[-1] == output_stride:
                return _tried(name, dilated, body_dilated)
        except _FAILURES:
            pass
        # a model that cannot be used at all is refused for that reason
        _tried(name, options, body)
    raise BadInput(
        f"backbone {name}",
        f"a deepest feature at stride {found}, which cannot be changed to {output_stride}",
        f"one at stride {output_stride}",
        f"Set the output stride to {found}, or choose another backbone.",
    )


def _first(name: str, more: Mapping[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """The first options for pictures of any size that the model accepts, and the model."""
    failures: list[Exception] = []
    for any_size in _ANY_SIZE:
        options = {**any_size, **more}
        try:
            return options, timm.create_model(name, features_only=True, pretrained=False, **options)
        except _FAILURES as error:
            failures.append(error)
    raise failures[-1]


def _tried(name: str, options: dict[str, Any], body: nn.Module) -> _Plan:
    """How to apply the model to pictures of any size; BadInput if that is not possible."""
    depth = 0
    if isinstance(body, FeatureGetterNet) and hasattr(body.model, "norm"):
        # a plain transformer has one stride throughout
        blocks = cast(list[dict[str, Any]], body.model.feature_info)
        if len({block["reduction"] for block in blocks}) == 1:
            depth = len(blocks)
            body = _built(name, options, depth)
    info = _info(body)
    channels, strides = info.channels(), info.reduction()
    faults = []
    for multiple in (1, max(strides), 2 * max(strides)):
        fault, channels_last = _fault(body.eval(), multiple, channels, strides)
        if fault is None:
            return _Plan(options, depth, multiple, channels_last)
        faults.append(fault)
    expected = "one that accepts pictures of any size, since maps are computed at several scales"
    raise BadInput(f"backbone {name}", f"a timm model that {faults[-1]}", expected, _ALTERNATIVES)


def _fault(body: nn.Module, multiple: int, channels: Sequence[int], strides: Sequence[int]) -> tuple[str | None, bool]:
    """The fault of the features of padded pictures, None if there is none, and whether their channels come last."""
    last = False
    for height, width in _SIZES_HW:
        padded = [side + -side % multiple for side in (height, width)]
        picture = f"a picture of {padded[0]} x {padded[1]} pixels"
        try:
            shapes = [tuple(feature.shape) for feature in body(torch.empty(1, 3, *padded))]
        except _FAILURES as error:
            return f"does not accept {picture} ({_line(error)})", last
        grids = [tuple(-(-side // stride) for side in padded) for stride in strides]
        last = shapes[-1][1:] == (*grids[-1], channels[-1])
        for shape, grid, width_c, stride in zip(shapes, grids, channels, strides, strict=True):
            cells = shape[1:3] if last else shape[2:]
            if shape != ((1, *grid, width_c) if last else (1, width_c, *grid)):
                found = " x ".join(map(str, cells))
                return f"returns {found} cells for {picture}, but stride {stride} requires {grid[0]} x {grid[1]}", last
    return None, last


def _info(model: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, model.feature_info)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120].rstrip(".")
