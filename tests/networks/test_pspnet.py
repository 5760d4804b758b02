"""Res2Net's layout and initial weights, the heads, and what training returns."""

import pytest
import timm
import torch
from torch import nn

from wsss.errors import BadInput
from wsss.loading import load_backbone
from wsss.networks.pspnet import PSPNet, PSPNetLayers, PyramidHead, Res2Net

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_layout_of_res2net():
    with torch.device("meta"):
        body = Res2Net("res2net50d")
        features = body(torch.empty(1, 3, 65, 97))
    for layer, stride, dilation in ((body.layer2, 2, 1), (body.layer3, 1, 2), (body.layer4, 1, 4)):
        assert {conv.dilation[0] for block in layer for conv in block.convs} == {dilation}
        assert {conv.padding[0] for block in layer for conv in block.convs} == {dilation}
        assert {conv.stride[0] for conv in layer[0].convs} == {stride}
        assert isinstance(layer[0].downsample[0], nn.Identity) == (stride == 1)
    assert [feature.shape[1] for feature in features] == body.channels
    assert features[-1].shape[2:] == (9, 13)


def test_initial_weights_of_res2net(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("res2net50d").state_dict()
    torch.save(state, tmp_path / "res2net50_v1b_26w_4s-3cf99910.pth")
    body = Res2Net("res2net50d")
    report = load_backbone(body, "res2net50d", str(tmp_path / "res2net50_v1b_26w_4s-3cf99910.pth"))
    assert report.ignored == ("fc.weight", "fc.bias")
    assert not report.missing
    assert torch.equal(body.layer4[0].convs[1].weight, state["layer4.0.convs.1.weight"])
    with pytest.raises(BadInput, match="weights of another network"):
        load_backbone(Res2Net("res2net101d"), "res2net101d", str(tmp_path / "res2net50_v1b_26w_4s-3cf99910.pth"))


def test_head_sees_the_whole_picture():
    torch.manual_seed(0)
    head = PyramidHead(4, 2).eval()
    feature = torch.zeros(1, 4, 12, 12)
    elsewhere = feature.clone()
    elsewhere[..., 11, 11] = 50
    assert not torch.allclose(head(feature)[..., 0, 0], head(elsewhere)[..., 0, 0])
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not head.conv_seg.bias.any()


def test_training_has_an_auxiliary_output_and_trains_everything():
    torch.manual_seed(0)
    network = PSPNet(3, PSPNetLayers("test_resnet"))
    image = torch.randn(2, 3, 30, 34)
    logits, auxiliary = network.train()(image)
    assert logits.shape == auxiliary.shape == (2, 3, 30, 34)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    (group,) = network.param_groups(0.1, 0.01)
    assert all(p.grad is not None for p in group["params"])
    assert len(group["params"]) == len(list(network.parameters()))
    assert network.eval()(image).shape == (2, 3, 30, 34)
