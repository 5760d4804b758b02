"""ResNets are torchvision's, layer by layer, though torchvision is not imported for them."""

import pytest
import torch
import torchvision

from wsss.networks.resnet import DEPTHS, ResNet

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_are_torchvisions(depth):
    with torch.device("meta"):
        ours, theirs = ResNet(depth), torchvision.models.get_model(f"resnet{depth}", weights=None)
    shapes = {name: (value.shape, value.dtype) for name, value in theirs.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in ours.state_dict().items()} == {
        name: shape for name, shape in shapes.items() if not name.startswith("fc.")
    }


@pytest.mark.parametrize("depth", [18, 50])
def test_a_seed_gives_the_same_weights_and_maps(depth):
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(f"resnet{depth}", weights=None)
    after = torch.rand(3)
    torch.manual_seed(3)
    ours = ResNet(depth, strides=(1, 2, 2, 2))
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=0)
    image = torch.randn(2, 3, 40, 56)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        found, x = ours(image), theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for feature, layer in zip(
            found, (None, theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True
        ):
            x = x if layer is None else layer(x)
            torch.testing.assert_close(feature, x, rtol=0, atol=0)
