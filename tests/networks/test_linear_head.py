"""Which classifiers have maps, and that these add up to the logits."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from wsss.classifier import CAMNetwork
from wsss.errors import BadInput
from wsss.networks.linear_head import LinearHead

PICTURE = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def torchvision_model(name):
    return lambda: getattr(torchvision.models, name)(num_classes=5)


def timm_model(name, **settings):
    return lambda: timm.create_model(name, num_classes=5, **settings)


class AfterReLU(nn.Module):
    """A convolution, a functional ReLU, a functional mean, a convolution as the head: none of them a module that pools."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Conv2d(4, 5, 1)

    def forward(self, image):
        return self.head(self.body(image).relu().mean((2, 3), keepdim=True)).flatten(1)


class PooledLast(nn.Module):
    """The head comes before the pooling, and one module is called twice."""

    def __init__(self):
        super().__init__()
        self.body, self.again, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 1)

    def forward(self, image):
        return self.head(self.again(self.again(self.body(image)))).mean((2, 3))


@pytest.mark.parametrize(
    "make",
    [
        torchvision_model("resnet18"),
        torchvision_model("shufflenet_v2_x0_5"),
        timm_model("test_resnet"),
        timm_model("test_efficientnet"),
        lambda: CAMNetwork("test_resnet", 5),
        AfterReLU,
        PooledLast,
    ],
)
def test_maps_add_up_to_the_logits(make):
    torch.manual_seed(0)
    network = make().eval()
    head = LinearHead(network, PICTURE[:1])
    maps = head.maps(PICTURE)
    assert head.n_classes == 5
    assert maps.shape[:2] == (2, 5)
    assert maps.shape[2] * maps.shape[3] > 1
    with torch.no_grad():
        logits = network(PICTURE) - network(PICTURE).mean(0)
        # what is left out, the bias, is the same for all pictures
        means = maps.mean((2, 3))
        torch.testing.assert_close(means - means.mean(0), logits, rtol=1e-3, atol=1e-5)


def test_maps_are_those_of_our_own_network():
    torch.manual_seed(0)
    network = CAMNetwork("test_resnet", 3).eval()
    with torch.no_grad():
        torch.testing.assert_close(LinearHead(network, PICTURE[:1]).maps(PICTURE), network.maps(PICTURE))


def test_channels_may_come_last():
    torch.manual_seed(0)
    network = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=64, depths=(1, 1, 1, 1)).eval()
    picture = torch.randn(1, 3, 64, 64)
    maps = LinearHead(network, picture).maps(picture)
    assert maps.shape == (1, 5, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(maps.mean((2, 3)) + network.head.fc.bias, network(picture), rtol=1e-3, atol=1e-5)
        with pytest.raises(BadInput, match=r"AssertionError .*pictures of 32x64.*scales=\(1\.0,\)"):
            LinearHead(network, picture[:, :, :32])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (timm_model("test_vit"), "a list of tokens .* as in a vision transformer"),
        (timm_model("test_vit", global_pool="avg"), "a list of tokens"),
        (
            torchvision_model("squeezenet1_1"),
            r"no feature map of several cells whose mean is the input of its last layer \(Conv2d with 512",
        ),
        # between pooling and linear layer lies something that is not linear
        (
            timm_model("mobilenetv3_small_050"),
            "no feature map of several cells whose mean is the input of its last layer",
        ),
        (timm_model("test_convnext"), "no feature map of several cells"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
            "no linear layer",
        ),
        (lambda: nn.Conv2d(3, 5, 1), r"a tensor \(1, 5, 64, 96\) as output"),
        (lambda: nn.Linear(7, 5), r"RuntimeError \(.*mat1 and mat2"),
        (nn.Flatten, "no weights"),
    ],
)
def test_other_networks_are_refused_by_name(make, found):
    network = make().eval()
    with pytest.raises(BadInput, match=f"{type(network).__name__}: found {found}"):
        LinearHead(network, PICTURE[:1])


def test_a_picture_that_is_too_small_is_named():
    network = timm.create_model("test_resnet", num_classes=5).eval()
    with pytest.raises(BadInput, match="the picture is too small"):
        LinearHead(network, PICTURE[:1, :, :8, :8])


def test_hooks_do_not_stay():
    network = timm.create_model("test_resnet", num_classes=5).eval()
    LinearHead(network, PICTURE[:1]).maps(PICTURE)
    assert not any(module._forward_hooks for module in network.modules())
