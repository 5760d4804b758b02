"""Networks prepared for inference compute what they did before."""

import copy

import pytest
import torch
from torch import nn

from wsss.networks.backbone import create_backbone
from wsss.networks.deeplab import DeepLabLayers, create_deeplab
from wsss.networks.inference import for_inference
from wsss.networks.winograd import Winograd


def with_statistics(network):
    """Batch norms as after a training: not the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.1, 0.1),
            ):
                nn.init.uniform_(value, low, high)
    return network.eval()


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# ResNet-38 normalises before most convolutions; the norms of MobileNet are layers of timm with an activation
@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet18", 0), ("resnet10t", 0), ("resnet38", 17), ("mobilenetv3_small_050", 33), ("test_vit", 0)],
)
def test_features_stay(name, left):
    torch.manual_seed(0)
    body = with_statistics(create_backbone(name, 8 if name == "resnet38" else 16)).double()
    prepared = for_inference(copy.deepcopy(body))
    view = torch.rand(1, 3, 33, 42, dtype=torch.float64)
    with torch.inference_mode():
        for before, after in zip(body(view), prepared(view), strict=True):
            torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)
    assert norms(prepared) == left < max(1, norms(body))


def test_a_convolution_that_is_used_twice_keeps_its_norm():
    class Twice(type(create_backbone("resnet18", 16))):
        def forward(self, image):
            raw = self.conv1(image)
            return [self.bn1(raw) + raw]

    torch.manual_seed(0)
    body = with_statistics(Twice(18))
    view = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        before = body(view)[0]
        after = for_inference(body)(view)[0]
    torch.testing.assert_close(before, after)
    assert isinstance(body.bn1, nn.BatchNorm2d)


@pytest.mark.parametrize("backbone", ["resnet101", "resnet18"])
def test_a_segmenter_keeps_its_logits(backbone):
    """In float32, where dilated stages are computed in squares (`wsss.networks.winograd`)."""
    torch.manual_seed(0)
    network = with_statistics(create_deeplab(3, DeepLabLayers(backbone=backbone, pyramid_scales=())))
    prepared = for_inference(copy.deepcopy(network))
    view = torch.rand(1, 3, 97, 129)
    with torch.inference_mode():
        before = network(view)
        torch.testing.assert_close(prepared(view), before, rtol=0, atol=1e-5 * float(before.abs().max()))
    assert any(isinstance(module, Winograd) and module.filters is not None for module in prepared.modules())
    assert norms(prepared) == 0 < norms(network)
