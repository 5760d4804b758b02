import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from wsss.errors import BadInput
from wsss.networks import deeplab

SIDES = st.integers(1, 400)
SMALL = deeplab.DeepLabLayers(
    backbone="resnet18", output_stride=16, atrous_rates=(1, 2), pyramid_scales=(0.5, 0.75), batch_norm="live"
)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return deeplab.create_deeplab(4, SMALL)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_label_resize_is_pillows_at_any_size(height, width, new_height, new_width):
    labels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width), np.uint8)
    expected = np.asarray(Image.fromarray(labels).resize((new_width, new_height), Image.Resampling.NEAREST))
    resized = deeplab.resize_labels(torch.from_numpy(labels), (new_height, new_width))
    np.testing.assert_array_equal(resized, expected)


def test_label_resize_of_a_batch_resizes_each_map():
    labels = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0))
    resized = deeplab.resize_labels(labels, (7, 11))
    assert resized.dtype == torch.int64
    for i in range(3):
        assert torch.equal(resized[i], deeplab.resize_labels(labels[i], (7, 11)))


@pytest.mark.parametrize("scales", [(), (0.5,), (0.5, 0.75)])
@pytest.mark.parametrize("interpolation", ["current", "recompute"])
def test_wrapper_against_its_definition(scales, interpolation):
    class OneConv(nn.Module):
        def __init__(self):
            super().__init__()
            self.aspp = nn.Conv2d(3, 5, 3, stride=4, padding=1)

        def forward(self, x):
            return self.aspp(x)

    torch.manual_seed(1)
    base = OneConv()
    wrapper = deeplab.MSC(base, scales, interpolation=interpolation)
    image = torch.randn(2, 3, 45, 62)
    parts = [base(image)]
    for scale in scales:
        how = (
            {"scale_factor": scale}
            if interpolation == "current"
            else {"size": [int(side * scale) for side in image.shape[2:]]}
        )
        parts.append(base(F.interpolate(image, mode="bilinear", align_corners=False, **how)))
    maximum = torch.stack(
        [F.interpolate(part, parts[0].shape[2:], mode="bilinear", align_corners=False) for part in parts]
    ).amax(0)
    expected = [*parts, maximum] if scales else parts
    outputs = wrapper.train()(image)
    assert len(outputs) == len(expected)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(wrapper.eval()(image), maximum)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (17, 15)])
def test_images_below_a_cell_have_a_prediction_and_a_loss(small, size):
    image = torch.randn(2, 3, *size)
    assert small.eval()(image).shape[:2] == (2, 4)
    outputs = small.train()(image)
    losses = deeplab.output_losses(outputs, torch.zeros(2, *size, dtype=torch.uint8))
    assert len(losses) == 4
    assert all(loss.isfinite() for loss in losses)
    assert deeplab.resize_logits(outputs[-1], size).shape == (2, 4, *size)


def test_live_batch_norm_trains_every_parameter(small):
    groups = small.param_groups(0.1, 0.01)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in small.parameters()}
    assert len(grouped) == len({id(p) for p in grouped})
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.1, 0.01), (1.0, 0.01), (2.0, 0.0), (0.1, 0.0),
    ]  # fmt: skip
    assert all(p.ndim == 1 for p in groups[3]["params"])
    norm = small.base.backbone.bn1
    before = norm.running_mean.clone()
    outputs = small.train()(torch.randn(2, 3, 64, 64))
    torch.stack(deeplab.output_losses(outputs, torch.ones(2, 64, 64, dtype=torch.uint8))).sum().backward()
    assert not torch.equal(before, norm.running_mean)
    assert all(p.grad is not None for p in grouped)


def test_frozen_batch_norm_never_moves():
    frozen = deeplab.MSC(deeplab.BackboneASPP("resnet18", 4, (1,), 16))
    norms = [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    frozen.train()
    assert frozen.training
    assert not any(norm.training for norm in norms)
    grouped = {id(p) for group in frozen.param_groups(1.0) for p in group["params"]}
    assert not grouped & {id(p) for norm in norms for p in norm.parameters()}
    assert len(frozen.param_groups(1.0)) == 3


def test_head_starts_as_published():
    torch.manual_seed(0)
    head = deeplab.ASPP(512, 21, (6, 12))
    for conv in head.children():
        assert conv.padding == conv.dilation
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not conv.bias.any()


def test_head_is_a_sum_of_dilated_convolutions():
    torch.manual_seed(0)
    head = deeplab.ASPP(3, 2, (2, 5))
    feature = torch.randn(1, 3, 6, 7)
    expected = sum(
        F.conv2d(feature, conv.weight, conv.bias, padding=rate, dilation=rate)
        for conv, rate in ((head.c0, 2), (head.c1, 5))
    )
    torch.testing.assert_close(head(feature), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 4), (5, 6), (17, 9), (33, 64), (40, 89)])
def test_size_of_the_logits(size):
    with torch.device("meta"):
        logits = deeplab.DeepLabV2(3, (1,), (1, 1, 1, 1)).eval()(torch.empty(1, 3, *size))
    assert logits.shape[2:] == tuple(-(-((-(-side // 2)) // 2 + 1) // 2) for side in size)


def test_published_body_has_stride_8_only():
    with pytest.raises(BadInput, match="output stride"):
        deeplab.create_deeplab(21, deeplab.DeepLabLayers(output_stride=16))


def losses_of_halves(loss, logits, labels):
    """The mean of the losses of two processes that each hold half of the batch."""
    counts = []
    for half in (slice(0, 2), slice(2, 4)):
        recorded = []
        loss(logits[half], labels[half], over_processes=lambda value, to=recorded: to.append(value) or value)
        counts.append(recorded)
    means = [torch.stack(pair).mean() for pair in zip(*counts, strict=True)]
    results = []
    for half in (slice(0, 2), slice(2, 4)):
        answers = iter(means)
        results.append(loss(logits[half], labels[half], over_processes=lambda _, it=answers: next(it)))
    return torch.stack(results).mean()


@pytest.mark.parametrize(
    "loss", [deeplab.cross_entropy, deeplab.balanced_cross_entropy, deeplab.pretended_underfitting]
)
def test_two_processes_agree_with_one(loss):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 5, 6, 7, generator=generator)
    labels = torch.randint(0, 5, (4, 6, 7), generator=generator)
    labels[0, :4] = 255
    labels[3] = 0
    torch.testing.assert_close(losses_of_halves(loss, logits, labels), loss(logits, labels))


def test_guards_against_missing_cells():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ignored = torch.full((2, 4, 4), 255)
    background = torch.zeros(2, 4, 4, dtype=torch.int64)
    assert deeplab.cross_entropy(logits, ignored) == 0
    assert deeplab.cross_entropy(logits, ignored, nan_guard=False).isnan()
    assert deeplab.balanced_cross_entropy(logits, ignored) == 0
    torch.testing.assert_close(
        deeplab.balanced_cross_entropy(logits, background), F.cross_entropy(logits, background) / 2
    )
    deeplab.balanced_cross_entropy(logits, ignored).backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("rule", ["off", "clamp", "pow", "ignore"])
def test_pretended_underfitting_starts_below_beta_only(rule):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 3, 9, 9, generator=generator), torch.randint(0, 3, (2, 9, 9), generator=generator)
    plain = F.cross_entropy(logits, labels)
    untouched = deeplab.pretended_underfitting(logits, labels, rule, beta=plain.item() * 0.99, k=0.5)
    torch.testing.assert_close(untouched, plain)
    doubted = deeplab.pretended_underfitting(logits, labels, rule, beta=plain.item() * 1.01, k=0.5)
    assert (doubted == untouched) == (rule == "off")


def test_pretended_underfitting_counts_ignored_pixels():
    logits = torch.zeros(1, 2, 2, 2)
    labels = torch.tensor([[[0, 1], [255, 255]]])
    value = deeplab.pretended_underfitting(logits, labels, "off")
    assert value.item() == pytest.approx(np.log(2) / 2)
